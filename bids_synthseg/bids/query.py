"""Which scans of a BIDS data set to segment, and why the others are left out.

A contrast (T1w, T2w) is represented in a session by one scan, chosen from names alone. Never used
are images of another suffix, derivatives lying in `anat/` (`desc-`, `space-`, ... in the name),
and phase, real or imaginary parts (`part-`). Of those that remain the first is taken in this order:

1. `rec-norm` (normalised by the scanner), then no `rec`, then other reconstructions by name;
2. no `part`, then `part-mag`;
3. no contrast agent (`ce`);
4. no `echo` (the combined image), then the lowest echo;
5. no `acq`, then acquisitions by name;
6. no `run`, then the lowest run;
7. the fewest other entities, then the name.

Of `x.nii.gz` and `x.nii` the former is taken. Where the user names a column of `scans.tsv`, the
quality that it gives goes before all this (see `quality_column`). Images are not opened.
"""

import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from bids_synthseg.bids.quality_column import excludes, quality_rank, read_quality
from bids_synthseg.bids.sessions import session_label, session_order
from bids_synthseg.errors import BadData, InputMissing, NothingSelected, UsageProblem

if TYPE_CHECKING:
    from bids import BIDSLayout

CONTRASTS = ("T1w", "T2w")
_EXTENSIONS = (".nii.gz", ".nii")
# Entities that BIDS allows in derivatives only.
_DERIVED = {"desc", "space", "label", "res", "den", "atlas", "seg", "scale", "hemi", "from", "to"}

_PLACE = re.compile(r"sub-(?P<subject>[^/]+)(/ses-(?P<session>[^/]+))?/anat/[^/]+")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scan:
    """One image file; `entities` are those of its name, with BIDS' short keys ("acq", "run")."""

    path: Path
    suffix: str
    entities: dict[str, str]

    @staticmethod
    def from_path(path: Path) -> "Scan":
        """Read the name `key-value_..._suffix.nii.gz`; parts without a hyphen are dropped."""
        *pairs, suffix = path.name.removesuffix(".gz").removesuffix(".nii").split("_")
        entities = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
        return Scan(path, suffix, entities)


@dataclass(frozen=True)
class ScanGroup:
    """The scans of one session (None: the subject has no session folder).

    scans: the representative of each contrast first, then (all_scans) its others; left_out: every
    other image in `anat/` with the reason in words.
    """

    subject: str
    session: str | None
    scans: tuple[Scan, ...]
    left_out: tuple[tuple[Path, str], ...] = ()

    @property
    def label(self) -> str:
        """For example "sub-01_ses-1mo"."""
        return session_label((self.subject, self.session))

    @property
    def repeated(self) -> tuple[str, ...]:
        """Contrasts that `anat/` has several usable images of, taken or left out."""
        paths = [scan.path for scan in self.scans]
        paths += [p for p, _ in self.left_out if not _unusable(p, self.subject, self.session)]
        counts = Counter(Scan.from_path(path).suffix for path in paths)
        return tuple(name for name in CONTRASTS if counts[name] > 1)

    @property
    def by_contrast(self) -> dict[str, list[Scan]]:
        """Scans of each contrast that there is, the representative first."""
        found = {name: [s for s in self.scans if s.suffix == name] for name in CONTRASTS}
        return {name: scans for name, scans in found.items() if scans}


def find_scan_groups(
    bids_dir: Path,
    *,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
    contrasts: Sequence[str] = CONTRASTS,
    filters: dict | None = None,
    database_dir: Path | None = None,
    all_scans: bool = False,
    quality_column: str | None = None,
) -> list[ScanGroup]:
    """The sessions to segment, sorted by subject and session; each has at least one scan.

    participants, sessions: labels with or without "sub-", "ses-"; empty means all. filters: the
    content of a BIDS filter file, of which the keys "t1w" and "t2w" are read (null: entity absent,
    "*": entity present). database_dir: folder of a pybids index made before. all_scans: keep
    every usable scan, not only the representative of each contrast. quality_column: column of
    scans.tsv to choose by.

    Raises InputMissing (no such folder, no dataset_description.json, no scan at all), BadData
    (dataset_description.json is not JSON), NothingSelected (unknown label, nothing left by the
    filters) and UsageProblem (unknown contrast, filter entity or
    quality column).
    """
    root = Path(bids_dir).absolute()
    read_description(root)
    subjects = _wanted_subjects(root, participants)
    queries = _queries(filters or {}, contrasts)
    layout = _open_layout(root, subjects, database_dir)
    images = _anat_images(root, layout, set(subjects))
    allowed = {name: _ask(layout, name, query) for name, query in queries.items()}
    wanted = {label.removeprefix("ses-") for label in sessions}
    _check_labels("ses-", wanted, {session for _, session in images if session}, root)

    quality = read_quality(root, images, quality_column) if quality_column else {}
    groups, seen = [], False
    for subject, session in sorted(images, key=session_order):
        paths = images[subject, session]
        seen = seen or any(_unusable(path, subject, session) is None for path in paths)
        if wanted and session not in wanted:
            continue
        group = choose_scans(
            subject, session, paths, allowed.__getitem__, contrasts, all_scans, quality
        )
        if group.scans:
            groups.append(group)
            continue
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in group.left_out)
        logger.warning("%s: nothing to segment (%s)", group.label, reasons)
    if groups:
        return groups
    if seen:
        raise NothingSelected(
            f"{root}: filters, sessions and contrasts leave no scan; loosen them (see --dry-run)"
        )
    raise InputMissing(
        f"{root}: no T1w or T2w image in sub-*/anat or sub-*/ses-*/anat; "
        "check the folder, or name the files as BIDS does (sub-01_T1w.nii.gz)"
    )


def choose_scans(
    subject: str,
    session: str | None,
    paths: Iterable[Path],
    allowed: Callable[[str], set[Path]],
    contrasts: Sequence[str] = CONTRASTS,
    all_scans: bool = False,
    quality: Mapping[Path, str] = MappingProxyType({}),
) -> ScanGroup:
    """Apply the rule of this module to the images of one `anat/` folder.

    allowed: contrast -> paths that pass the user's filters. quality: image -> what the chosen
    column of scans.tsv says of it.
    """
    candidates: dict[str, list[Scan]] = defaultdict(list)
    left_out = []
    paths = set(paths)
    for path in sorted(paths):
        scan = Scan.from_path(path)
        if reason := _unusable(path, subject, session):
            left_out.append((path, reason))
        elif scan.suffix not in contrasts:
            left_out.append((path, f"{scan.suffix} was not asked for"))
        elif path not in allowed(scan.suffix):
            left_out.append((path, "excluded by the filter file"))
        elif excludes(quality.get(path)):
            left_out.append((path, f"its quality in scans.tsv is '{quality[path]}'"))
        elif path.suffix == ".nii" and path.with_suffix(".nii.gz") in paths:
            left_out.append((path, "the same name exists as .nii.gz"))
        else:
            candidates[scan.suffix].append(scan)
    scans = []
    for contrast in CONTRASTS:
        ranked = sorted(candidates[contrast], key=lambda scan: _rank(scan, quality))
        scans += ranked if all_scans else ranked[:1]
        for scan in [] if all_scans else ranked[1:]:
            left_out.append((scan.path, _why_not(scan, ranked[0], quality)))
    return ScanGroup(subject, session, tuple(scans), tuple(sorted(left_out)))


def _unusable(path: Path, subject: str, session: str | None) -> str | None:
    """Why this file cannot be a scan to segment, whatever the user asks for."""
    scan = Scan.from_path(path)
    if scan.suffix not in CONTRASTS:
        return f"suffix {scan.suffix} is not T1w or T2w"
    if derived := _DERIVED & set(scan.entities):
        return f"a derivative ({', '.join(sorted(derived))} in its name), not a raw scan"
    if (scan.entities.get("sub"), scan.entities.get("ses")) != (subject, session):
        return "its name and its folder disagree about subject or session"
    if scan.entities.get("part", "mag") != "mag":
        return f"part-{scan.entities['part']} is not a magnitude image"
    return None


def _number(value: str | None) -> tuple:
    """Absent first, then by number, then what is no number."""
    return (value is not None, int(value) if value and value.isdigit() else 10**9, value or "")


def _name(value: str | None) -> tuple:
    return (value is not None, value or "")


def _reconstruction(value: str | None) -> tuple:
    return ({"norm": 0, None: 1}.get(value, 2), value or "")


_CRITERIA: tuple[tuple[str, Callable[[str | None], tuple], str], ...] = (
    ("rec", _reconstruction, "rec-norm is preferred, then no rec"),
    ("part", _name, "an image without part is preferred to part-mag"),
    ("ce", _name, "an image without contrast agent is preferred"),
    ("echo", _number, "no echo is preferred, then the lowest"),
    ("acq", _name, "no acq is preferred, then the first by name"),
    ("run", _number, "no run is preferred, then the lowest"),
)


def _rank(scan: Scan, quality: Mapping[Path, str]) -> tuple:
    ranks = tuple(key(scan.entities.get(entity)) for entity, key, _ in _CRITERIA)
    return (quality_rank(scan.path, quality), *ranks, len(scan.entities), scan.path.name)


def _why_not(scan: Scan, chosen: Scan, quality: Mapping[Path, str]) -> str:
    if quality_rank(scan.path, quality) != quality_rank(chosen.path, quality):
        one, other = quality[chosen.path], quality.get(scan.path, "n/a")
        return f"{chosen.path.name} was taken: its quality in scans.tsv is {one}, against {other}"
    for entity, key, words in _CRITERIA:
        if key(scan.entities.get(entity)) != key(chosen.entities.get(entity)):
            return f"{chosen.path.name} was taken: {words}"
    return f"{chosen.path.name} was taken: fewer entities are preferred, then the first by name"


def read_description(root: Path) -> dict:
    """The content of dataset_description.json.

    Raises InputMissing where the folder or the file is missing, BadData where it is no JSON object.
    """
    if not root.is_dir():
        raise InputMissing(f"{root}: no such folder; give the root of a BIDS data set")
    path = root / "dataset_description.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputMissing(
            f"{path}: missing, so this is no BIDS data set; check the folder or create the "
            'file with {"Name": "...", "BIDSVersion": "1.10.0"}'
        ) from error
    except OSError as error:
        raise BadData(f"{path}: cannot be read ({error.strerror}); check its rights") from error
    except ValueError as error:
        raise BadData(f"{path}: not valid JSON ({error}); correct the file") from error
    if not isinstance(content, dict):
        raise BadData(f"{path}: not a JSON object; correct the file")
    return content


def _wanted_subjects(root: Path, participants: Sequence[str]) -> list[str]:
    existing = {path.name.removeprefix("sub-") for path in root.glob("sub-*") if path.is_dir()}
    wanted = {label.removeprefix("sub-") for label in participants}
    _check_labels("sub-", wanted, existing, root)
    return sorted(wanted or existing)


def _check_labels(prefix: str, wanted: set[str], existing: set[str], root: Path) -> None:
    if not (unknown := wanted - existing):
        return
    names = ", ".join(prefix + label for label in sorted(unknown))
    some = ", ".join(prefix + label for label in sorted(existing)[:5]) or "none"
    more = f" and {len(existing) - 5} more" if len(existing) > 5 else ""
    raise NothingSelected(f"{root}: there is no {names}; there is: {some}{more}")


def _queries(filters: dict, contrasts: Sequence[str]) -> dict[str, dict]:
    """Contrast -> pybids filters, null and "*" translated."""
    from bids.layout import Query

    special = {None: Query.NONE, "*": Query.ANY}

    def translate(value: object) -> object:
        if isinstance(value, list):
            return [translate(item) for item in value]
        return special.get(value, value) if value is None or isinstance(value, str) else value

    if unknown := set(contrasts) - set(CONTRASTS):
        raise UsageProblem(f"unknown contrast {sorted(unknown)[0]}; choose from T1w, T2w")
    queries = {}
    for contrast in contrasts:
        chosen = filters.get(contrast.lower(), {})
        if not isinstance(chosen, dict):
            raise UsageProblem(f"filter {contrast.lower()!r}: must be an object of entities")
        query = {entity: translate(value) for entity, value in chosen.items()}
        queries[contrast] = {"datatype": "anat", "suffix": contrast} | query
    return queries


def _open_layout(root: Path, subjects: list[str], database_dir: Path | None) -> "BIDSLayout":
    """An index of the anat folders of these subjects (of a prebuilt index: all it holds)."""
    # pybids takes a second to import, more than `--help` may take.
    from bids import BIDSLayout, BIDSLayoutIndexer

    if database_dir is not None:
        if not (database_dir / "layout_index.sqlite").is_file():
            raise InputMissing(
                f"{database_dir}: holds no layout_index.sqlite; make it with pybids "
                "('pybids layout') or leave out --bids-database-dir"
            )
        return BIDSLayout(root, validate=False, database_path=database_dir)
    labels = "|".join(map(re.escape, subjects))
    # All else is skipped unread: in a large data set it is most of the time. Matched against the
    # path within the data set, of folders on the way as well as files.
    elsewhere = re.compile(rf"^/(?!sub-({labels})(/ses-[^/]+)?(/anat(/[^/]+)?)?$)")
    indexer = BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=[elsewhere])
    return BIDSLayout(root, validate=False, indexer=indexer)


def _anat_images(
    root: Path, layout: "BIDSLayout", subjects: set[str]
) -> dict[tuple[str, str | None], list[Path]]:
    """(subject, session) -> NIfTI files in its anat folder; the folders tell which."""
    images = defaultdict(list)
    for name in layout.get(datatype="anat", extension=list(_EXTENSIONS), return_type="filename"):
        path = Path(name)
        if not path.is_relative_to(root):
            raise InputMissing(f"{path}: the index was made for another folder; make it again")
        place = _PLACE.fullmatch(path.relative_to(root).as_posix())
        if place and place["subject"] in subjects:
            images[place["subject"], place["session"]].append(path)
    return images


def _ask(layout: "BIDSLayout", contrast: str, query: dict) -> set[Path]:
    query = {"extension": list(_EXTENSIONS)} | query
    try:
        return {Path(name) for name in layout.get(return_type="filename", **query)}
    except (TypeError, ValueError) as error:
        raise UsageProblem(f"filter file, {contrast.lower()!r}: {error}") from error
