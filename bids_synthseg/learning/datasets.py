"""Label maps to train on, from BIDS folders and packs: what is there, wanted, and wrong.

Every fault of every data set is found before anything is trained, and told together.
"""

import logging
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.errors import AppError, BadData, InputMissing, NothingSelected, UsageProblem
from bids_synthseg.learning.clusters import intensity_thresholds
from bids_synthseg.learning.label_sets import read_source_labels, twin_classes
from bids_synthseg.learning.maps import TrainingMap
from bids_synthseg.learning.pack import read_pack
from bids_synthseg.reading import read_object
from bids_synthseg.tsv import NOT_AVAILABLE, read_rows

log = logging.getLogger(__name__)

PROBLEMS_SHOWN = 10
MOST_THREADS = 4
"""Reading a map of a whole head takes some 400 MB for a moment."""

SAME_VOXEL = 1.05
"""Voxel sizes within this factor of each other are the same."""


def load_maps(
    folders: Sequence[Path],
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
    with_clusters: bool = False,
) -> tuple[list[TrainingMap], LabelTable]:
    """The maps of all data sets, and the label table they are expressed in.

    A data set is a pack, or a BIDS folder of label maps, or one of scans with a single data set of
    label maps in its derivatives. Scans are looked for beside the maps and then in the folder of
    which they are a derivative. `participants` and `sessions` ("01" or "sub-01"; empty: all) choose
    maps; `with_clusters`: cut the intensities of every scan into clusters (learning.clusters).

    Raises an AppError with a line for each problem: a single one of the kind that fits, else
    BadData; NothingSelected for a participant or session that no data set has.
    """
    table = LabelTable.default()
    maps: list[TrainingMap] = []
    problems: list[AppError] = []
    origins: dict[str, set[Path]] = {}
    for folder in map(Path, folders):
        try:
            if folder.is_file():
                found = _packed(folder, table)
            else:
                found = _read(_find(folder), table, participants, sessions, problems)
        except AppError as problem:
            problems.append(problem)
            continue
        maps += found
        for one in found:
            origins.setdefault(one.dataset, set()).add(folder.resolve())
    _raise([*problems, *_namesakes(origins)])
    maps = _chosen(maps, participants, sessions)
    return [_clustered(one) for one in maps] if with_clusters else maps, table


def find_label_maps(folder: Path) -> list[Path]:
    """All `sub-*/[ses-*/]anat/*_dseg.nii[.gz]` of a data set, sorted."""
    return sorted(
        path
        for pattern in ("sub-*/anat/sub-*_dseg.nii", "sub-*/ses-*/anat/sub-*_dseg.nii")
        for ending in ("", ".gz")
        for path in folder.glob(pattern + ending)
    )


@dataclass(frozen=True)
class _DataSet:
    """`folder` holds the label maps `paths`; `raw`, if any, the scans that they were made from."""

    name: str
    folder: Path
    raw: Path | None
    paths: Sequence[Path]


def _find(folder: Path) -> _DataSet:
    """The data set that a folder is or holds."""
    name = folder.resolve().name
    if paths := find_label_maps(folder):
        above = folder.resolve().parent
        return _DataSet(name, folder, above.parent if above.name == "derivatives" else None, paths)
    inside = [_DataSet(name, one, folder, find_label_maps(one)) for one in _derivatives(folder)]
    inside = [one for one in inside if one.paths]
    if not inside:
        raise InputMissing(
            f"{folder}: no sub-*/[ses-*/]anat/*_dseg.nii.gz to train on; give a BIDS folder of "
            "label maps"
        )
    if len(inside) > 1:
        names = ", ".join(one.folder.name for one in inside)
        raise UsageProblem(f"{folder}: label maps in derivatives/ of {names}; give one of them")
    return inside[0]


def _derivatives(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "derivatives").glob("*") if path.is_dir())


def _read(
    data: _DataSet,
    table: LabelTable,
    participants: Sequence[str],
    sessions: Sequence[str],
    problems: list[AppError],
) -> list[TrainingMap]:
    """The chosen maps of one data set; what is wrong with single ones goes to `problems`."""
    # Only here are libraries needed that a machine with packs need not have.
    from bids_synthseg.learning.map_files import load_map

    labels = read_source_labels(data.folder / "dseg.tsv", table)
    try:
        twin_classes(labels, table)
    except ValueError as problem:
        raise BadData(f"{data.folder / 'dseg.tsv'}: {problem}") from problem
    about = _participants(data)
    licence = _licence(data.folder / "dataset_description.json")

    def read(path: Path) -> TrainingMap | AppError:
        raw = [data.raw / path.parent.relative_to(data.folder)] if data.raw else []
        try:
            one = load_map(path, data.name, labels, table, raw)
        except AppError as problem:
            return problem
        row = about.get(one.subject, {})
        return replace(
            one,
            age_weeks=_number(row.get("age_weeks_pma")),
            split=(row.get("split") or "").strip().lower(),
            licence=licence,
        )

    wanted = [path for path in data.paths if _is_wanted(path.name, participants, sessions)]
    # The distance transform, which takes the longest, leaves Python to other threads.
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as threads:
        found = list(threads.map(read, wanted))
    problems += [one for one in found if isinstance(one, AppError)]
    maps = [one for one in found if isinstance(one, TrainingMap)]
    sizes_mm = np.array([one.source.voxel_mm for one in maps]).reshape(-1, 3)
    if len(maps) and (sizes_mm.max(axis=0) > SAME_VOXEL * sizes_mm.min(axis=0)).any():
        log.warning(
            "%s: voxels of several sizes, %.3g to %.3g mm; check that all of its maps belong here",
            data.folder,
            sizes_mm.min(),
            sizes_mm.max(),
        )
    return maps


def _packed(path: Path, table: LabelTable) -> list[TrainingMap]:
    maps, own = read_pack(path)
    if own != table:
        raise BadData(f"{path}: packed for other labels than this version's; pack the maps again")
    return maps


def _participants(data: _DataSet) -> dict[str, dict[str, str]]:
    """Subject -> what participants.tsv states, that of the label maps before that of the scans.

    Where several rows of a subject contradict each other a column states nothing, which is said.
    """
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for folder in (data.raw, data.folder):
        stated: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        for row in read_rows(folder / "participants.tsv") if folder else []:
            for column, value in row.items():
                if value.strip().lower() not in NOT_AVAILABLE:
                    subject = _entity("sub", row.get("participant_id", ""))
                    stated[subject][column].add(value.strip())
        for subject, columns in stated.items():
            for column in ("age_weeks_pma", "split"):
                if len(values := columns.get(column, set())) > 1:
                    log.warning(
                        "%s: %s of %s is %s in several rows; none of them counts",
                        folder and folder / "participants.tsv",
                        column,
                        subject,
                        " and ".join(sorted(values)),
                    )
            told = {column: min(values) for column, values in columns.items() if len(values) == 1}
            found[subject].update(told)
    return found


def _number(word: str | None) -> float:
    """A number, or NaN for anything else."""
    try:
        return float(word) if word else math.nan
    except ValueError:  # "adult"
        return math.nan


def _licence(path: Path) -> str:
    try:
        return str(read_object(path).get("License", ""))
    except AppError as problem:
        log.warning("%s; its licence is not known", problem)
        return ""


def _entity(key: str, value: str) -> str:
    """ "01" and "sub-01" -> "sub-01"."""
    return f"{key}-{value.strip().removeprefix(f'{key}-')}"


def _is_wanted(name: str, participants: Sequence[str], sessions: Sequence[str]) -> bool:
    words = name.split("_")
    return all(
        not values or any(_entity(key, value) in words for value in values)
        for key, values in (("sub", participants), ("ses", sessions))
    )


def _chosen(
    maps: list[TrainingMap], participants: Sequence[str], sessions: Sequence[str]
) -> list[TrainingMap]:
    """The chosen maps; NothingSelected for a participant or session of none, or no map at all."""
    chosen = [one for one in maps if _is_wanted(one.name, participants, sessions)]
    words = {word for one in chosen for word in one.name.split("_")}
    wanted = [_entity("sub", p) for p in participants] + [_entity("ses", s) for s in sessions]
    unknown = [word for word in wanted if word not in words]
    if unknown or not chosen:
        raise NothingSelected(
            f"no label map of {', '.join(unknown) or 'any data set'}; check --participant-label "
            "and --session-label"
        )
    return chosen


def _namesakes(origins: dict[str, set[Path]]) -> list[AppError]:
    """A problem for every name that several data sets have: weights and splits go by name."""
    return [
        UsageProblem(
            f"{' and '.join(map(str, sorted(paths)))}: both hold a data set named {name!r}; rename "
            "one, or give the folder of scans that it is a derivative of"
        )
        for name, paths in sorted(origins.items())
        if len(paths) > 1
    ]


def _clustered(one: TrainingMap) -> TrainingMap:
    """The map with thresholds between clusters of its scans' intensities."""
    source = one.source
    if len(source.thresholds) == len(source.contrasts):
        return one
    tissues = source.tissues[source.classes.numpy()]
    try:
        thresholds = [
            intensity_thresholds(image.float().numpy(), tissues) for image in source.images
        ]
    except ModuleNotFoundError as problem:
        raise UsageProblem(
            f"{one.dataset}/{one.name}: clusters of intensity need {problem.name}; install it, or "
            "pack the maps with their clusters"
        ) from problem
    return replace(one, source=replace(source, thresholds=np.stack(thresholds)))


def _raise(problems: Sequence[AppError]) -> None:
    """Tell all problems at once, if there are any."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        kinds = {type(problem) for problem in problems}
        lines = [str(problem) for problem in problems[:PROBLEMS_SHOWN]]
        if len(problems) > PROBLEMS_SHOWN:
            lines.append(f"and {len(problems) - PROBLEMS_SHOWN} more")
        raise (kinds.pop() if len(kinds) == 1 else BadData)("\n".join(lines))
