"""What the networks make of images whose truth is known, measured without writing files.

Every trial takes images from disk or paints them, runs the App's own steps, and gives numbers.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_synthseg.anatomy.calibration import Reliability, reliability, uncertain
from bids_synthseg.anatomy.intensity import standardised
from bids_synthseg.anatomy.islands import largest_component
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.metrics import dice, remap
from bids_synthseg.anatomy.posteriors import fold
from bids_synthseg.anatomy.volume import Grid, Volume, resample
from bids_synthseg.evaluation import Comparison, compare, comparison, mean
from bids_synthseg.nifti import read_labels, read_scan
from bids_synthseg.painting import PaintedHead, Sitter, paint_age, paint_contrast
from bids_synthseg.pipeline import SMALLEST_BRAIN_ML, Segmenter
from bids_synthseg.scorecard import ALL, Number
from bids_synthseg.segmentation.field import PosteriorField, background_where_silent, slabs
from bids_synthseg.segmentation.labelling import label_volume
from bids_synthseg.segmentation.locate import BrainBox, box_of, locate
from bids_synthseg.segmentation.predict import segment
from bids_synthseg.spaces import Part, merged_field

LOG = logging.getLogger(__name__)

FAILED_DICE = 0.5
"""Below this mean Dice a segmentation is of no use."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """`labels` (X, Y, Z) ids of `table`, the model's own; `brain_ml` is the volume of the mask;
    `flagged`: the App would have refused the scan or warned of it."""

    labels: np.ndarray
    table: LabelTable
    brain_ml: float
    flagged: bool


def segmented(scan: Volume, segmenter: Segmenter) -> Outcome:
    """One scan through the locator, the network and the cleaning of its labels."""
    result = segment(scan, segmenter.model, segmenter.locator)
    labelled = label_volume(result.answer, scan.grid)
    brain_ml = float(labelled.mask.sum()) * scan.grid.voxel_volume_mm3 / 1000
    flagged = bool(result.warnings) or brain_ml < SMALLEST_BRAIN_ML
    return Outcome(labelled.native, segmenter.table, brain_ml, flagged)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Reliability of one session's posteriors, of a contrast alone or "merged" (`image`), and the
    percentage of the reference's labelled voxels that they are wrongly certain are background."""

    session: str
    image: str
    reliability: Reliability
    missed_percent: float


def calibrations(
    session: str, parts: Sequence[Part], reference: Volume, match: Comparison
) -> list[Calibration]:
    """That of each contrast of a session, and of what two contrasts say together.

    The posteriors are summed to the labels that `match` tells apart: a reference need not know all
    of the model's.
    """
    fields: dict[str, PosteriorField] = {part.scan.suffix: part.result.answer for part in parts}
    if len(fields) == 2 and all(part.alignment.accepted for part in parts):
        fields["merged"] = merged_field(parts, parts[0])
    return [
        Calibration(session, image, *field_reliability(field, reference, match))
        for image, field in fields.items()
    ]


def calibration_numbers(section: str, found: Sequence[Calibration]) -> list[Number]:
    """Numbers of every calibration, and, as subject ALL, those of the voxels of all sessions."""
    numbers = []
    for image in dict.fromkeys(calibration.image for calibration in found):
        sessions = [calibration for calibration in found if calibration.image == image]
        total = sum((one.reliability for one in sessions), Reliability.of_nothing())
        missed_percent = mean(calibration.missed_percent for calibration in sessions)
        for calibration in [*sessions, Calibration(ALL, image, total, missed_percent)]:
            values = {
                "ece": calibration.reliability.ece,
                "mean_confidence": calibration.reliability.mean_confidence,
                "accuracy": calibration.reliability.accuracy,
                "missed_percent": calibration.missed_percent,
            }
            place = section, calibration.session, image, ""
            numbers += [Number(*place, name, value) for name, value in values.items()]
        for low, high, n, confidence, accuracy in total.bins:
            place = section, ALL, image, f"confidence {low:.2f} to {high:.2f}"
            numbers += [
                Number(*place, "voxels", n),
                Number(*place, "mean_confidence", confidence),
                Number(*place, "accuracy", accuracy),
            ]
    return numbers


def field_reliability(
    field: PosteriorField, reference: Volume, match: Comparison
) -> tuple[Reliability, float]:
    """Reliability at judged voxels that are not certain background, and the percentage of the
    reference's labelled voxels that are, wrongly, and so escape it."""
    common = np.array(sorted({0, *match.prediction.values(), *match.reference.values()}))
    homes = [match.prediction[index] for index in field.table.ids.tolist()]
    channels = np.searchsorted(common, homes)
    truth = np.searchsorted(common, remap(reference.data, match.reference))
    judged = match.judged(reference.data)
    total, brain, escaped = Reliability.of_nothing(), 0, 0
    for part, data in slabs(field, reference.grid):
        posteriors = fold(background_where_silent(data), channels)
        where = uncertain(posteriors)
        total += reliability(posteriors, truth[part], where & judged[part])
        brain += int((truth[part] > 0).sum())
        escaped += int(((truth[part] > 0) & ~where).sum())
    return total, 100 * escaped / max(1, brain)


def contrast_trial(sitter: Sitter, n: int, segmenter: Segmenter) -> list[Number]:
    """Dice per structure of `n` heads in contrasts of no scanner, whether the mean is too low and
    whether the App says so; and what the locator alone says of them."""
    numbers: list[Number] = []
    for number in range(n):
        painted = paint_contrast(sitter, number)
        place = "contrasts", "synthetic", f"contrast-{number + 1:02d}"
        outcome = segmented(painted.image, segmenter)
        match = comparison(sitter.labels, outcome.table.ids.tolist(), outcome.table)
        spacing_mm = painted.image.grid.voxel_size_mm.tolist()
        found = compare(outcome.labels, painted.reference.data, match, spacing_mm)
        scores = {name: score for name, (score, *_) in found.items()}
        numbers += [Number(*place, name, "dice", score) for name, score in scores.items()]
        failed = mean(scores.values()) < FAILED_DICE
        numbers += [
            Number(*place, "", "failed", float(failed)),
            Number(*place, "", "flagged", float(outcome.flagged)),
        ]
        brain = Volume(painted.reference.data > 0, painted.reference.grid)
        numbers += locator_numbers(*place, painted.image, brain, segmenter)
        LOG.info("%s of %d: Dice %.3f", place[-1], n, mean(scores.values()))
    return numbers


def volume_trial(
    sitter: Sitter, ml_of_months: Mapping[int, float], segmenter: Segmenter
) -> list[Number]:
    """Volume of the labelled brain against the truth, of heads of several ages in two contrasts.

    Fluid does not count: the map has none outside its ventricles.
    """
    numbers = []
    for months, brain_ml in ml_of_months.items():
        for contrast in ("T1w", "T2w"):
            painted = paint_age(sitter.scaled_to(brain_ml), contrast, months)
            outcome = segmented(painted.image, segmenter)
            true_ml, found_ml = brain_volumes_ml(painted, outcome, sitter)
            place = "volumes", f"{months} months", contrast, "brain"
            numbers += [
                Number(*place, "true_ml", true_ml),
                Number(*place, "predicted_ml", found_ml),
                Number(*place, "error_percent", 100 * (found_ml - true_ml) / true_ml),
                Number(*place, "flagged", float(outcome.flagged)),
            ]
            LOG.info("%d months, %s: %.0f ml for %.0f", months, contrast, found_ml, true_ml)
    return numbers


def brain_volumes_ml(painted: PaintedHead, outcome: Outcome, sitter: Sitter) -> tuple[float, float]:
    """True and found volume of all labels that the map knows."""
    match = comparison(sitter.labels, outcome.table.ids.tolist(), outcome.table)
    voxel_ml = painted.image.grid.voxel_volume_mm3 / 1000
    found, true = match.common(outcome.labels, painted.reference.data)
    return float((true > 0).sum()) * voxel_ml, float((found > 0).sum()) * voxel_ml


def scan_trial(
    subject: str, path: Path, mask: Path | None, segmenter: Segmenter, whole: bool
) -> list[Number]:
    """The locator on one scan, against a mask or label map of its brain where there is one;
    `whole`: also the brain's volume after the whole segmentation."""
    scan = read_scan(path).volume
    brain = None
    if mask is not None:
        read = read_labels(mask).volume
        brain = Volume(read.data > 0, read.grid)
    place = "locator", subject, path.name.removesuffix(".gz").removesuffix(".nii")
    numbers = locator_numbers(*place, scan, brain, segmenter)
    if whole:
        outcome = segmented(scan, segmenter)
        numbers += [
            Number(*place, "", "predicted_ml", outcome.brain_ml),
            Number(*place, "", "flagged", float(outcome.flagged)),
        ]
    if brain is not None:
        true_ml = float(brain.data.sum()) * brain.grid.voxel_volume_mm3 / 1000
        numbers.append(Number(*place, "", "true_ml", true_ml))
    return numbers


def locator_numbers(
    section: str, subject: str, image: str, scan: Volume, brain: Volume | None, segmenter: Segmenter
) -> list[Number]:
    """Whether the locator saw a brain, its Dice on its own grid and the error of its box; both only
    where `brain` (bool) is known, on any grid of the scan's world."""
    canonical = standardised(scan.canonical()[0])
    location = locate(canonical, canonical.grid, segmenter.locator)
    box = location.box
    values = {"found": float(box.found), "box_mm": float(box.extent_mm.max())}
    if brain is not None:
        there = resample(brain, location.mask.grid).data > 0.5
        values["dice"] = dice(location.mask.data > 0, there, [True])[True]
        truth = box_of(
            largest_component(resample(brain, canonical.grid, order=0).data), canonical.grid
        )
        if truth is not None:
            values["box_error_percent"] = box_error_percent(box, truth, canonical.grid)
    return [Number(section, subject, image, "", f"locator_{k}", v) for k, v in values.items()]


def box_error_percent(found: BrainBox, truth: BrainBox, grid: Grid) -> float:
    """The largest shift of one of six faces, in percent of the true box's side along its axis.

    Both boxes lie along the axes of `grid`.
    """
    centre = (found.centre_mm - truth.centre_mm) @ _axes(grid)
    half = (found.extent_mm - truth.extent_mm) / 2
    shifts = np.maximum(np.abs(centre + half), np.abs(centre - half))
    return float(100 * (shifts / truth.extent_mm).max())


def _axes(grid: Grid) -> np.ndarray:
    """(3, 3) unit vectors of the grid's axes, as columns."""
    return grid.affine[:3, :3] / grid.voxel_size_mm
