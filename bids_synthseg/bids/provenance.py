"""The record of a session: what it was made from, and whether it is finished.

Every finished session has one, `logs/sub-01_ses-1mo.json` in the output (`logs/` is in
.bidsignore): the signature of inputs, version, weights and options, these themselves, and the
checksum of every output. It takes its name as the last step (`staging`): no record means not
finished.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from bids_synthseg.bids.scans import Scan
from bids_synthseg.errors import AppError, BadData
from bids_synthseg.reading import is_there, read_head, read_json, unreadable
from bids_synthseg.storage import file_sha256

logger = logging.getLogger(__name__)


def made_with(scans: Sequence[Scan], version: str, weights_sha256: str, options: dict) -> dict:
    """All that decides the result of a session, as plain JSON: names and checksums of the scans
    (their order is that of preference, so it counts), the version, the weights and the options.

    options: plain JSON values, only those that change an output. Raises InputMissing or BadData
    where a scan is missing, a stand-in, or cannot be read.
    """
    inputs = []
    for scan in scans:
        read_head(scan.path)
        try:
            inputs.append([scan.path.name, file_sha256(scan.path)])
        except OSError as error:
            raise unreadable(error, scan.path) from error
    basis = {"Version": version, "WeightsSHA256": weights_sha256, "Options": options}
    # As it will be read again: tuples become lists.
    return json.loads(json.dumps({"Inputs": inputs, **basis}))


def options_sha256(options: dict) -> str:
    """SHA-256 of plain JSON values, independent of the order of keys."""
    text = json.dumps(options, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def differences(before: dict, now: dict) -> str:
    """In words, how `made_with` of the finished session differs from that of this run."""
    old, new = _settings(before), _settings(now)
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    words = []
    if changed:
        was = ", ".join(f"{name} {old.get(name, 'unknown')}" for name in changed)
        words.append(f"{was}; now {', '.join(new.get(name, 'not so') for name in changed)}")
    inputs, scans = _inputs(before), _inputs(now)
    words += [f"another {name}" for name in scans if inputs.get(name, scans[name]) != scans[name]]
    words += [f"no {name}" for name in scans if name not in inputs]
    words += [f"{name} as well" for name in inputs if name not in scans]
    return f"done before with {'; with '.join(words or ['scans in another order'])}"


def _settings(basis: dict) -> dict[str, str]:
    """Name -> value in words, of all but the inputs."""
    options = basis.get("Options")
    told = {"version": basis.get("Version"), "weights": str(basis.get("WeightsSHA256"))[:12]}
    told |= options if isinstance(options, dict) else {}
    return {name: _words(value) for name, value in told.items()}


def _words(value: object) -> str:
    if isinstance(value, list):
        return "+".join(map(str, value)) or "none"
    return str(value)


def _inputs(basis: dict) -> dict[str, str]:
    try:
        return dict(basis.get("Inputs", []))
    except (TypeError, ValueError):
        return {}


@dataclass(frozen=True)
class SessionRecord:
    """The record of one session at `path`; outputs are named relative to `output_dir`."""

    path: Path
    output_dir: Path

    def read(self) -> dict:
        """What the record holds; {} where there is none, or, with a warning, none that this App
        could have written."""
        try:
            if not is_there(self.path):
                return {}
            record = read_json(self.path)
        except AppError as error:
            reason = str(error)
        else:
            if not (reason := _odd(record)):
                return record
        logger.warning("%s: no record (%s); the session counts as not done", self.path, reason)
        return {}

    def finished_with(self) -> str | None:
        """The signature of the last run; None where none ended, or outputs are damaged."""
        record = self.read()
        return None if self.damaged(record) else record.get("Signature")

    def is_finished(self, signature: str) -> bool:
        """True where a run with this signature ended and its outputs are as it left them."""
        return signature is not None and self.finished_with() == signature

    def damaged(self, record: dict) -> list[str]:
        """Outputs in the content of this record that are gone or not as they were written."""
        return [
            name
            for name, checksum in record.get("Outputs", {}).items()
            if checksum != _checksum(self.output_dir / name)
        ]

    def outputs(self, record: dict) -> dict[str, Path]:
        """Name -> place of the outputs in the content of this record.

        A record is a text file that anybody may edit: what lies outside the output is left out,
        with a warning.
        """
        found = {}
        for name in record.get("Outputs", {}):
            path = self.output_dir / name
            if path.resolve().is_relative_to(self.output_dir.resolve()):
                found[name] = path
            else:
                logger.warning("%s: lists %s, outside the output; left alone", self.path, name)
        return found

    def reason_to_skip(self, basis: dict, *, overwrite: bool, redo_changed: bool) -> str | None:
        """Why a session that is to be made with `basis` is left as it is; None: it is not.

        What is damaged is done again, what is finished with `overwrite`, and what was finished
        with another basis with `redo_changed`.
        """
        record = self.read()
        if not record.get("Signature"):
            return None
        if damaged := self.damaged(record):
            logger.warning(
                "%s: gone, or not as it was written, so the session is done again",
                self.output_dir / damaged[0],
            )
            return None
        if overwrite:
            return None
        if record["Signature"] == options_sha256(basis):
            return "already done"
        changes = differences(record.get("MadeWith", {}), basis)
        if redo_changed:
            logger.info("%s: %s; done again", self.path.stem, changes)
            return None
        logger.warning("%s: %s; left as it is without --redo-changed", self.path.stem, changes)
        return changes


_TYPES = {
    "Signature": str | None,
    "MadeWith": dict,
    "Outputs": dict,
    "Warnings": list,
    "Scans": list,
    "LeftOut": dict,
    "Edited": dict,
}
"""Keys of a record, and what stands there."""


def _odd(record: object) -> str:
    """What shows that this App did not write the content of a record, "" for nothing."""
    if not isinstance(record, dict):
        return "not a JSON object"
    for name, kind in _TYPES.items():
        if name in record and not isinstance(record[name], kind):
            return f"{name} is of another type"
    if not isinstance(record.get("MadeWith", {}).get("Inputs", []), list):
        return "MadeWith is of another type"
    if not all(isinstance(checksum, str) for checksum in record.get("Outputs", {}).values()):
        return "Outputs without checksums"
    return ""


def _checksum(path: Path) -> str | None:
    """SHA-256 of a file, None where it cannot be read."""
    try:
        return file_sha256(path)
    except OSError:
        return None


def bids_uri(
    path: Path,
    bids_dir: Path,
    output_dir: Path,
    links: Mapping[str, Path] = MappingProxyType({}),
) -> str:
    """`bids::sub-01/...` for a file of the output, `bids:raw:sub-01/...` for one of the input,
    `bids:NAME:sub-01/...` for one of the other data sets, `links`.

    Data sets may lie within each other (derivatives/): the innermost one names the file. Raises
    ValueError for a file of none of them.
    """
    target = Path(os.path.abspath(path))
    holding = {
        name: root
        for name, root in _roots(bids_dir, output_dir, links).items()
        if target.is_relative_to(root)
    }
    if not holding:
        raise ValueError(f"{path} is neither in {bids_dir} nor in {output_dir}")
    name = max(holding, key=lambda name: len(holding[name].parts))
    return f"bids:{name}:{target.relative_to(holding[name]).as_posix()}"


def resolve_uri(
    uri: str,
    bids_dir: Path,
    output_dir: Path,
    links: Mapping[str, Path] = MappingProxyType({}),
) -> Path:
    """The absolute path that a BIDS URI stands for: the inverse of `bids_uri`.

    Raises BadData for what is no BIDS URI, names another data set, or leads out of its own.
    """
    scheme, _, rest = uri.partition(":")
    name, colon, place = rest.partition(":")
    if scheme != "bids" or not colon:
        raise BadData(f"{uri}: no BIDS URI (bids:NAME:PATH); mend it, or run the session again")
    roots = _roots(bids_dir, output_dir, links)
    if name not in roots:
        raise BadData(f"{uri}: no data set of that name is known; add --derivatives {name}=PATH")
    path = Path(os.path.abspath(roots[name] / place))
    if not path.is_relative_to(roots[name]):
        raise BadData(f"{uri}: leads out of its data set; mend it, or run the session again")
    return path


def _roots(bids_dir: Path, output_dir: Path, links: Mapping[str, Path]) -> dict[str, Path]:
    """Name in a BIDS URI -> folder; of equal folders the first is to be taken."""
    folders = {"": output_dir, "raw": bids_dir, **links}
    return {name: Path(os.path.abspath(folder)) for name, folder in folders.items()}
