"""What a session was made from, and whether it is finished.

Every session keeps a record, `logs/sub-01_ses-1mo.json` in the output (`logs/` is in .bidsignore).
It lists each output before that is written, so that a later run can remove what a killed one left,
and gets the signature of inputs, version, weights and options as the last step: no signature means
not finished.
"""

import hashlib
import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from bids_synthseg.bids.scans import Scan
from bids_synthseg.errors import BadData
from bids_synthseg.reading import read_head, unreadable
from bids_synthseg.storage import explain, file_sha256, write_json

logger = logging.getLogger(__name__)


def session_signature(
    scans: Sequence[Scan], version: str, weights_sha256: str, options: dict
) -> str:
    """SHA-256 over all that decides the result: names, sizes and contents of the scans (their
    order is that of preference, so it counts), the version, the weights and the options.

    options: plain JSON values, only those that change an output. Raises InputMissing or BadData
    where a scan is missing, a stand-in, or cannot be read.
    """
    files = []
    for scan in scans:
        read_head(scan.path)
        try:
            files.append((scan.path.name, scan.path.stat().st_size, file_sha256(scan.path)))
        except OSError as error:
            raise unreadable(error, scan.path) from error
    return options_sha256(
        {"scans": files, "version": version, "weights": weights_sha256, "options": options}
    )


def options_sha256(options: dict) -> str:
    """SHA-256 of plain JSON values, independent of the order of keys."""
    text = json.dumps(options, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


class SessionRecord:
    """The record of one session at `path`; outputs are named relative to `output_dir`.

    Starting one removes what the previous record lists and files of an interrupted write, as an
    output that is not written again would otherwise stay beside results it does not belong to.
    """

    def __init__(self, path: Path, output_dir: Path) -> None:
        self.path = path
        self.output_dir = output_dir
        self.outputs: list[Path] = []

    def start(self, keep: Collection[Path] = ()) -> None:
        """Make the session unfinished, then remove its earlier outputs, all but those to keep."""
        earlier = self.read().get("Outputs", {})
        # First of all: a run that dies from here on must not look finished.
        write_json(self.path, {"Signature": None, "Outputs": earlier})
        for name in earlier:
            path = self.output_dir / name
            if path in keep:
                continue
            # A record is a text file that anybody may edit: nothing outside the output is removed.
            if not path.resolve().is_relative_to(self.output_dir.resolve()):
                logger.warning("%s: lists %s, outside the output; left alone", self.path, name)
                continue
            try:
                path.unlink(missing_ok=True)
                for leftover in path.parent.glob(f".{path.name}.*.tmp"):
                    leftover.unlink()
            except OSError as error:
                raise explain(error, path) from error
        self.outputs = [path for name in earlier if (path := self.output_dir / name) in keep]
        self._write(None)

    def add(self, *paths: Path) -> None:
        """List outputs that are about to be written."""
        self.outputs += [path for path in paths if path not in self.outputs]
        self._write(None)

    def finish(self, signature: str, details: dict | None = None) -> None:
        """The completion mark; `details` (plain JSON) are kept for readers of the record.

        Raises FileNotFoundError where a listed output was not written.
        """
        self._write(signature, details)

    def is_finished(self, signature: str) -> bool:
        """True where a run with this signature ended and its outputs are there in full size."""
        return signature is not None and self.finished_with() == signature

    def finished_with(self) -> str | None:
        """The signature of the last run; None where it did not end, or outputs are missing."""
        record = self.read()
        complete = all(
            (path := self.output_dir / name).is_file() and path.stat().st_size == size
            for name, size in record.get("Outputs", {}).items()
        )
        return record.get("Signature") if complete else None

    def _write(self, signature: str | None, details: dict | None = None) -> None:
        sizes = {
            path.relative_to(self.output_dir).as_posix(): path.stat().st_size if signature else None
            for path in self.outputs
        }
        write_json(self.path, {"Signature": signature, **(details or {}), "Outputs": sizes})

    def read(self) -> dict:
        """What the record holds; {} where there is none, or, with a warning, none that is JSON."""
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            logger.warning("%s: unreadable (%s); the session is done again", self.path, error)
            return {}
        return record if isinstance(record, dict) else {}


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
