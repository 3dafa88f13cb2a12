"""Derivatives against a reference: overlap, surface distance and volume error per structure.

References come in label schemes of their own: FreeSurfer's with or without sides of the cerebellum,
or tissues of the fetus and the newborn. Both label maps are brought to the labels that can be told
apart in both before they are compared.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.metrics import dice, hd95_mm, remap, volumes_mm3
from bids_synthseg.bids.tables import format_table
from bids_synthseg.errors import BadData, InputMissing
from bids_synthseg.nifti import Image, read_labels

if TYPE_CHECKING:
    from bids_synthseg.learning.label_sets import SourceLabel

LOG = logging.getLogger(__name__)
COLUMNS = ("T1w", "T2w", "merged")
# Where a reference has no place for the smaller label, it holds it in the larger one: cerebellar
# white matter in the hemisphere, corpus callosum in the white matter.
_PART_OF = {7: 8, 46: 47, 1004: 2, 2004: 41}
_WHOLE = {8: "cerebellum", 47: "cerebellum"}


@dataclass(frozen=True)
class Score:
    """One structure of one session in one column; left and right are averaged.

    dice 0..1; hd95_mm in mm and volume_error_percent (unsigned) are NaN unless asked for. A measure
    without an answer is NaN.
    """

    session: str
    structure: str
    column: str
    dice: float
    hd95_mm: float = math.nan
    volume_error_percent: float = math.nan


@dataclass(frozen=True)
class Comparison:
    """How two label maps become comparable.

    prediction, reference: id -> common id (0: not scored); names: common id -> structure, the same
    for left and right; unjudged: reference ids that may be background or something else, whose
    voxels do not count.
    """

    prediction: dict[int, int]
    reference: dict[int, int]
    names: dict[int, str]
    unjudged: frozenset[int] = frozenset()

    def judged(self, reference: np.ndarray) -> np.ndarray:
        """Bool array of the voxels (X, Y, Z) whose reference id tells what is right there."""
        return ~np.isin(reference, list(self.unjudged))

    def common(
        self, prediction: np.ndarray, reference: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Both maps (X, Y, Z) in common ids, int32, with 0 where the voxels do not count."""
        judged = self.judged(reference)
        ours, theirs = remap(prediction, self.prediction), remap(reference, self.reference)
        return ours * judged, theirs * judged


def comparison(
    labels: "Sequence[SourceLabel]", available: Iterable[int], table: LabelTable
) -> Comparison:
    """Match the labels of a reference with those that the prediction can hold.

    A model label goes to the reference label of its own id, else to the first whose set contains
    it, else to where the label that it is a part of goes. A reference label that nothing then goes
    to (21, a second white matter) joins the label that its own meaning goes to. 172 without a
    vermis in the reference counts to the left hemisphere. A reference label that the background may
    be (CSF, in a reference that labels little of it) is background; one that may be background
    or something else (vessels, optic chiasm) is not judged.
    """
    available = set(available)
    background = next(label.labels for label in labels if label.index == 0)
    unjudged = {
        label.index for label in labels if 0 in label.labels and not label.labels <= background
    }
    scored = [
        label
        for label in labels
        if label.index == 0 or not (label.index in unjudged or label.labels <= background)
    ]

    def home(index: int) -> int:
        candidates = [label.index for label in scored if index in label.labels]
        if index in candidates:
            return index
        if not candidates and index in _PART_OF:
            return home(_PART_OF[index])
        return candidates[0] if candidates else 0

    prediction = {index: home(index) for index in available}
    reached = set(prediction.values())
    folded = dict(zip(table.ids.tolist(), (row.aseg for row in table.rows), strict=True))
    reference = {}
    for label in labels:
        own = min(label.labels)
        meaning = own if own in available else folded[own]
        reference[label.index] = label.index if label.index in reached else home(meaning)
    structures = {(row.index, row.name): row.structure for row in table.rows}
    names = {
        label.index: structures.get((label.index, label.name), label.name)
        for label in labels
        if label.index and label.index in reference.values()
    }
    for part, whole in _PART_OF.items():
        if whole in names and part in prediction and home(part) == whole:
            names[whole] = _WHOLE.get(whole, names[whole])
    return Comparison(prediction, reference, names, frozenset(unjudged))


def compare(
    prediction: np.ndarray,
    reference: np.ndarray,
    match: Comparison,
    spacing_mm: Sequence[float],
    full: bool = False,
) -> dict[str, tuple[float, float, float]]:
    """Structure -> (Dice, HD95 in mm, volume error in percent), left and right averaged.

    prediction, reference: (X, Y, Z) ids as they stand in the files; the last two measures are NaN
    unless `full`.
    """
    ours, theirs = match.common(prediction, reference)
    ids = sorted(match.names)
    overlap = dice(ours, theirs, ids)
    volume = float(np.prod(spacing_mm))
    sizes, truths = volumes_mm3(ours, ids, volume), volumes_mm3(theirs, ids, volume)
    sides: dict[str, list[tuple[float, float, float]]] = {}
    for index in ids:
        distance = error = math.nan
        if full:
            distance = hd95_mm(ours == index, theirs == index, spacing_mm)
            if truths[index] > 0:
                error = 100 * abs(sizes[index] - truths[index]) / truths[index]
        sides.setdefault(match.names[index], []).append((overlap[index], distance, error))
    return {
        name: (mean(r[0] for r in rows), mean(r[1] for r in rows), mean(r[2] for r in rows))
        for name, rows in sides.items()
    }


def evaluate(output_dir: Path, reference_dir: Path, full: bool = False) -> list[Score]:
    """Scores of every session that has a reference `sub-*/[ses-*/]anat/*_dseg.nii.gz`.

    Column merged is the result of the session, T1w and T2w those of single scans (written with
    --save-per-image); a column without files is left out. Sessions without any segmentation are
    named in the log. Raises InputMissing where nothing can be compared, BadData where a grid or a
    label does not fit.
    """
    from bids_synthseg.learning.label_sets import read_source_labels

    table = LabelTable.default()
    labels = read_source_labels(reference_dir / "dseg.tsv", table)
    scores: list[Score] = []
    for session, path in find_references(reference_dir):
        found = predictions(output_dir / path.parent.relative_to(reference_dir))
        if not found:
            LOG.warning("%s: no segmentation in %s; left out", session, output_dir)
            continue
        scores += _session(session, path, found, labels, table, full)
    if not scores:
        raise InputMissing(f"{output_dir}: holds no segmentation of any subject of {reference_dir}")
    return scores


def find_references(reference_dir: Path) -> list[tuple[str, Path]]:
    """Session ("sub-01_ses-1mo") and label map of every `sub-*/[ses-*/]anat/*_dseg.nii.gz`.

    Raises InputMissing where there is none.
    """
    found = sorted(
        path
        for pattern in ("sub-*/anat/*_dseg.nii.gz", "sub-*/ses-*/anat/*_dseg.nii.gz")
        for path in reference_dir.glob(pattern)
    )
    if not found:
        raise InputMissing(f"{reference_dir}: no sub-*/anat/*_dseg.nii.gz to compare with")
    return [("_".join(path.parent.relative_to(reference_dir).parts[:-1]), path) for path in found]


def predictions(anat: Path) -> dict[str, list[Path]]:
    """Column -> segmentations of one session, the best first; columns without any are left out.

    All are native labels where every column has them, else all are aseg: columns must be alike to
    be compared.
    """
    levels = []
    for level in ("native", "aseg"):
        patterns = {
            "T1w": [f"*_space-orig_desc-{level}T1w_dseg.nii.gz"],
            "T2w": [f"*_space-orig_desc-{level}T2w_dseg.nii.gz"],
            "merged": [f"*_space-{c}_desc-{level}_dseg.nii.gz" for c in ("T1w", "T2w")],
        }
        found = {
            column: [path for pattern in patterns[column] for path in sorted(anat.glob(pattern))]
            for column in COLUMNS
        }
        levels.append({column: paths for column, paths in found.items() if paths})
    native, aseg = levels
    return native if native.keys() >= aseg.keys() else aseg


def _session(
    session: str,
    path: Path,
    found: Mapping[str, list[Path]],
    labels: "Sequence[SourceLabel]",
    table: LabelTable,
    full: bool,
) -> list[Score]:
    reference = read_labels(path)
    _check_ids(reference, {label.index for label in labels}, "the reference's dseg.tsv")
    scores = []
    for column, paths in found.items():
        prediction = _on_grid_of(reference, paths)
        native = "_desc-native" in prediction.path.name
        available = table.ids.tolist() if native else table.fold("aseg")[0].ids.tolist()
        _check_ids(prediction, set(available), "the label table of this version")
        match = comparison(labels, available, table)
        measures = compare(
            prediction.volume.data,
            reference.volume.data,
            match,
            reference.volume.grid.voxel_size_mm.tolist(),
            full,
        )
        scores += [Score(session, name, column, *values) for name, values in measures.items()]
    return scores


def _check_ids(image: Image, known: set[int], where: str) -> None:
    unknown = sorted(set(np.unique(image.volume.data).tolist()) - known)
    if unknown:
        raise BadData(f"{image.path}: ids {unknown[:8]} are not in {where}")


def _on_grid_of(reference: Image, paths: Sequence[Path]) -> Image:
    for path in paths:
        image = read_labels(path)
        if image.volume.grid.same_as(reference.volume.grid):
            return image
    raise BadData(
        f"{paths[0]}: lies on another grid than {reference.path}; compare on the raw scan's grid"
    )


def mean(values: Iterable[float]) -> float:
    """Mean of the numbers among the values; NaN where there is none."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


@dataclass(frozen=True)
class Gain:
    """What merging brought a session: Dice, mean over structures, of the merged result less that of
    its better and of its worse single contrast."""

    session: str
    over_better: float
    over_worse: float


def gains(scores: Sequence[Score]) -> list[Gain]:
    """The gain of every session with a merged result and with both contrasts alone."""
    found = []
    for session in dict.fromkeys(score.session for score in scores):
        own = [score for score in scores if score.session == session]
        t1w, t2w, merged = (mean(s.dice for s in own if s.column == name) for name in COLUMNS)
        if not math.isnan(t1w + t2w + merged):
            found.append(Gain(session, merged - max(t1w, t2w), merged - min(t1w, t2w)))
    return found


def summary(scores: Sequence[Score], measure: str = "dice", digits: int = 3) -> str:
    """Table of structures by columns, each the mean over sessions, and a last row: their mean."""
    return _table(scores, measure, digits, lambda score: score.structure, "structure")


def session_summary(scores: Sequence[Score], measure: str = "dice", digits: int = 3) -> str:
    """Table of sessions by columns, each the mean over structures, and a last row: their mean."""
    return _table(scores, measure, digits, lambda score: score.session, "session")


def _table(
    scores: Sequence[Score], measure: str, digits: int, key: Callable[[Score], str], title: str
) -> str:
    rows = list(dict.fromkeys(map(key, scores)))
    cells = {
        (row, column): mean(
            getattr(s, measure) for s in scores if key(s) == row and s.column == column
        )
        for row in rows
        for column in COLUMNS
    }
    cells |= {("mean", column): mean(cells[row, column] for row in rows) for column in COLUMNS}
    width = max(map(len, [*rows, title]))
    lines = [f"{title:{width}}" + "".join(f"{column:>9}" for column in COLUMNS)]
    for row in [*rows, "mean"]:
        values = [cells[row, column] for column in COLUMNS]
        shown = ["-" if math.isnan(value) else f"{value:.{digits}f}" for value in values]
        lines.append(f"{row:{width}}" + "".join(f"{text:>9}" for text in shown))
    return "\n".join(lines)


def scores_table(scores: Sequence[Score]) -> str:
    """All scores as tab-separated text, one row each."""
    names = list(Score.__dataclass_fields__)
    return format_table({name: [getattr(score, name) for score in scores] for name in names})
