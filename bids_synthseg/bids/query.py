"""The scans of a BIDS data set, session by session, as the user's options select them.

Folders are listed as they are; pybids is asked only for what users know from it: filter files as in
fMRIPrep, and an index made before. Which scan represents a contrast is the rule of `scans`. Images
are not opened.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from bids_synthseg.bids.derived import EDITS, check_names, find_derived
from bids_synthseg.bids.folders import EXTENSIONS, Listing, anat_images, subjects_in
from bids_synthseg.bids.quality_column import read_quality
from bids_synthseg.bids.scans import CONTRASTS, Scan, ScanGroup, choose_scans, unusable
from bids_synthseg.bids.sessions import Key, session_order
from bids_synthseg.errors import BadData, InputMissing, NothingSelected, UsageProblem
from bids_synthseg.reading import is_there, read_object

if TYPE_CHECKING:
    from bids import BIDSLayout

_PLACE = re.compile(r"sub-(?P<subject>[^/]+)(/ses-(?P<session>[^/]+))?/anat/[^/]+")

logger = logging.getLogger(__name__)


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
    derivatives: Mapping[str, Path] = MappingProxyType({}),
) -> list[ScanGroup]:
    """The sessions to segment, sorted by subject and session; each has at least one scan, or a
    problem: a folder of its own that cannot be listed.

    participants, sessions: labels with or without "sub-", "ses-"; empty means all. filters: the
    content of a BIDS filter file, of which the keys "t1w" and "t2w" are read (null: entity absent,
    "*": entity present). database_dir: folder of a pybids index made before. all_scans: keep
    every usable scan, not only the representative of each contrast. quality_column: column of
    scans.tsv to choose by. derivatives: name -> data set whose scans take the place of raw ones,
    and which filters and quality column do not concern (but for EDITS, which holds none).

    Raises InputMissing (no such folder, no dataset_description.json, no scan at all), BadData
    (dataset_description.json is not JSON), NothingSelected (unknown label, nothing left by the
    filters) and UsageProblem (unknown contrast, filter entity or quality column, or a name of a
    data set that cannot be used).
    """
    root = Path(bids_dir).absolute()
    check_names(derivatives)
    others = {name: Path(path).absolute() for name, path in derivatives.items() if name != EDITS}
    for folder in (root, *others.values()):
        read_description(folder)
    subjects = _wanted_subjects(root, others, participants)
    queries = _queries(filters or {}, contrasts)
    layout = _open_layout(root, subjects, database_dir) if queries or database_dir else None
    listing = (
        Listing(_indexed_images(root, layout, subjects))
        if layout and database_dir
        else anat_images(root, subjects)
    )
    images = listing.images
    excluded = {
        path
        for contrast, query in queries.items()
        for path in _excluded(layout, contrast, query, images)
    }
    derived, problems = find_derived(others, subjects)
    listing = Listing(images, listing.problems | problems)
    wanted = {label.removeprefix("ses-") for label in sessions}
    keys = images.keys() | derived.keys() | listing.problems.keys()
    _check_labels("ses-", wanted, {session for _, session in keys if session}, root)

    if without := set(subjects) - {subject for subject, _ in keys}:
        logger.info("no image in anat, so left out: %s", _some("sub-", without))

    quality, unrated = read_quality(root, images, quality_column) if quality_column else ({}, {})
    groups, seen = [], False
    for key in sorted(keys, key=session_order):
        paths, also = images.get(key, []), derived.get(key, [])
        seen = seen or any(unusable(s, key) is None for s in (*map(Scan.from_path, paths), *also))
        # What a subject's folder would have held is not known: it fails whatever was asked for.
        if wanted and key[1] not in wanted and not (key[1] is None and key in listing.problems):
            continue
        if problem := listing.problem(key) or unrated.get(key):
            groups.append(ScanGroup(*key, (), problem=problem))
            continue
        group = choose_scans(
            *key, paths, contrasts, all_scans, excluded=excluded, quality=quality, derived=also
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
    who = f"sub-{subjects[0]}" if len(subjects) == 1 else "sub-*"
    raise InputMissing(
        f"{root}: no T1w or T2w image in {who}/anat or {who}/ses-*/anat; "
        "check the folder, or name the files as BIDS does (sub-01_T1w.nii.gz)"
    )


def read_description(root: Path) -> dict:
    """The content of dataset_description.json.

    Raises InputMissing where the folder or the file is missing, BadData where it is no JSON object.
    """
    if not is_there(root) or not root.is_dir():
        raise InputMissing(f"{root}: no such folder; give the root of a BIDS data set")
    path = root / "dataset_description.json"
    if not is_there(path):
        raise InputMissing(
            f"{path}: missing, so this is no BIDS data set; check the folder or create the "
            'file with {"Name": "...", "BIDSVersion": "1.10.0"}'
        )
    return read_object(path)


def _wanted_subjects(
    root: Path, others: Mapping[str, Path], participants: Sequence[str]
) -> list[str]:
    existing = set().union(*map(subjects_in, (root, *others.values())))
    wanted = {label.removeprefix("sub-") for label in participants}
    _check_labels("sub-", wanted, existing, root)
    return sorted(wanted or existing)


def _check_labels(prefix: str, wanted: set[str], existing: set[str], root: Path) -> None:
    if not (unknown := wanted - existing):
        return
    names = ", ".join(prefix + label for label in sorted(unknown))
    raise NothingSelected(f"{root}: there is no {names}; there is: {_some(prefix, existing)}")


def _some(prefix: str, labels: set[str]) -> str:
    """The first few labels, and how many more there are."""
    names = ", ".join(prefix + label for label in sorted(labels)[:5]) or "none"
    return names + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")


def _queries(filters: dict, contrasts: Sequence[str]) -> dict[str, dict]:
    """Contrast -> its pybids filters, null and "*" translated; contrasts without any left out."""
    if unknown := set(contrasts) - set(CONTRASTS):
        raise UsageProblem(f"unknown contrast {sorted(unknown)[0]}; choose from T1w, T2w")
    chosen = {name: filters[name.lower()] for name in contrasts if filters.get(name.lower())}
    for contrast, query in chosen.items():
        if not isinstance(query, dict):
            raise UsageProblem(f"filter {contrast.lower()!r}: must be an object of entities")
    return {
        contrast: {entity: _translated(value) for entity, value in query.items()}
        for contrast, query in chosen.items()
    }


def _translated(value: object) -> object:
    from bids.layout import Query

    if isinstance(value, list):
        return [_translated(item) for item in value]
    if value is None:
        return Query.NONE
    return Query.ANY if value == "*" else value


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
    elsewhere = re.compile(rf"^/(?!sub-({labels})(/ses-[^/]+)?(/anat(/[^/]+\.nii(\.gz)?)?)?$)")
    indexer = BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=[elsewhere])
    try:
        return BIDSLayout(root, validate=False, indexer=indexer)
    except (OSError, ValueError) as error:  # names that are no UTF-8 among them
        raise BadData(
            f"{root}: pybids, which filter files need, cannot index it ({error}); choose by "
            "--participant-label, --session-label and --contrast instead"
        ) from error


def _indexed_images(
    root: Path, layout: "BIDSLayout", subjects: Sequence[str]
) -> dict[Key, list[Path]]:
    """As `anat_images`, by an index made before."""
    images = defaultdict(list)
    for name in layout.get(datatype="anat", extension=list(EXTENSIONS), return_type="filename"):
        path = Path(name)
        if not path.is_relative_to(root):
            raise InputMissing(f"{path}: the index was made for another folder; make it again")
        place = _PLACE.fullmatch(path.relative_to(root).as_posix())
        if place and place["subject"] in subjects:
            images[place["subject"], place["session"]].append(path)
    return images


def _excluded(
    layout: "BIDSLayout", contrast: str, query: dict, images: Mapping[Key, Sequence[Path]]
) -> set[Path]:
    """The images of a contrast that its filters do not let pass."""
    query = {"datatype": "anat", "suffix": contrast, "extension": list(EXTENSIONS)} | query
    try:
        passed = {Path(name) for name in layout.get(return_type="filename", **query)}
    except (TypeError, ValueError) as error:
        raise UsageProblem(f"filter file, {contrast.lower()!r}: {error}") from error
    there = {path for paths in images.values() for path in paths}
    return {path for path in there - passed if Scan.from_path(path).suffix == contrast}
