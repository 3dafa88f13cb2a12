"""The accuracy report: everything that can be measured on a folder of validation data.

VALIDATION_DIR is laid out as the constants of this module say; what it lacks is left out, and said.
"""

import logging
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bids_synthseg import __version__, scorecard
from bids_synthseg.bids.dataset import prepare_output, write_dataset_files
from bids_synthseg.bids.query import find_scan_groups
from bids_synthseg.bids.scans import ScanGroup
from bids_synthseg.errors import BadData, InputMissing
from bids_synthseg.evaluation import Score, evaluate, gains
from bids_synthseg.execution import in_turn, run_sessions
from bids_synthseg.painting import read_sitter
from bids_synthseg.pipeline import Options, Segmenter, SessionResult, run_session
from bids_synthseg.scorecard import ALL, Number
from bids_synthseg.storage import write_text
from bids_synthseg.trials import calibration_trial, contrast_trial, scan_trial, volume_trial
from bids_synthseg.tsv import read_rows

LOG = logging.getLogger(__name__)

SECTIONS = ("newborns", "fetal", "contrasts", "volumes", "locator")
SCANS = {name: f"validation/{name}" for name in ("newborns", "fetal")}
"""Raw data sets of scans whose references are a derivative of this name:"""
REFERENCE = "derivatives/reference"
LABEL_MAP = "validation/infant-4mo"
VOLUMES = "brain_volume_by_age.tsv"
LOCATED = ("inputs/fetal-stacks", "inputs/adult-head", *SCANS.values())
"""Folders of scans for the locator; those of inputs are also segmented."""

N_CONTRASTS = 20
MONTHS = (0, 3, 6, 9, 12, 18, 24)
WINDOW_MONTHS = 1.5
DAYS_PER_MONTH = 365.25 / 12


def run_accuracy(
    validation_dir: Path,
    out: Path,
    segmenter: Segmenter,
    options: Options,
    only: Sequence[str] = SECTIONS,
) -> str:
    """Measure, write OUT/accuracy.tsv and OUT/accuracy.md and return the latter's text.

    Derivatives of the scans are in OUT/derivatives, made anew. Raises InputMissing where
    VALIDATION_DIR has nothing for the sections in `only`.
    """
    options = replace(options, save_per_image=True, overwrite=True)
    numbers: list[Number] = []
    missing = []
    for section in (name for name in SECTIONS if name in only):
        absent = [path for path in needed(section) if not (validation_dir / path).exists()]
        if len(absent) == len(needed(section)) or (absent and section == "volumes"):
            LOG.warning("%s: left out, %s has no %s", section, validation_dir, ", ".join(absent))
            missing.append(section)
            continue
        numbers += measure(section, validation_dir, out, segmenter, options)
        # What is known so far outlives an interruption.
        write_text(out / "accuracy.tsv", scorecard.numbers_text(numbers))
    if not numbers:
        raise InputMissing(
            f"{validation_dir}: nothing to measure; a validation folder has {', '.join(LOCATED)}, "
            f"{LABEL_MAP} and {VOLUMES}"
        )
    text = report(numbers, segmenter, missing)
    write_text(out / "accuracy.md", text)
    return text


def needed(section: str) -> tuple[str, ...]:
    """What a section reads, below VALIDATION_DIR."""
    if section in SCANS:
        return (SCANS[section],)
    return {"contrasts": (LABEL_MAP,), "volumes": (LABEL_MAP, VOLUMES), "locator": LOCATED}[section]


def measure(
    section: str, validation_dir: Path, out: Path, segmenter: Segmenter, options: Options
) -> list[Number]:
    """The numbers of one section, one of SECTIONS."""
    if section in SCANS:
        return measure_scans(section, validation_dir / SCANS[section], out, segmenter, options)
    if section == "contrasts":
        return contrast_trial(read_sitter(validation_dir / LABEL_MAP), N_CONTRASTS, segmenter)
    if section == "volumes":
        medians = median_volumes_ml(validation_dir / VOLUMES)
        return volume_trial(read_sitter(validation_dir / LABEL_MAP), medians, segmenter)
    numbers: list[Number] = []
    for folder in LOCATED:
        whole = folder.startswith("inputs/")
        for path in find_scans(validation_dir / folder):
            mask = find_mask(path, validation_dir / folder)
            LOG.info("%s: locator", path.name)
            numbers += scan_trial(Path(folder).name, path, mask, segmenter, whole)
    return numbers


def measure_scans(
    section: str, folder: Path, out: Path, segmenter: Segmenter, options: Options
) -> list[Number]:
    """Run the App on a raw data set, compare its derivatives with the reference, and calibrate."""
    groups = find_scan_groups(folder)
    segment_all(groups, folder, out / "derivatives" / section, segmenter, options)
    scores = evaluate(out / "derivatives" / section, folder / REFERENCE, full=True)
    calibration = calibration_trial(section, groups, folder / REFERENCE, segmenter)
    return score_numbers(section, scores) + calibration


def segment_all(
    groups: Sequence[ScanGroup], bids_dir: Path, out: Path, segmenter: Segmenter, options: Options
) -> None:
    """Level participant of the App; a session that fails is in its logs."""
    output_dir = prepare_output(bids_dir, out)
    write_dataset_files(bids_dir, output_dir, segmenter.table)

    def run_one(group: ScanGroup) -> SessionResult:
        return run_session(group, bids_dir, output_dir, segmenter, options)

    run_sessions(groups, in_turn(run_one, output_dir / "logs"), output_dir)


def score_numbers(section: str, scores: Sequence[Score]) -> list[Number]:
    """Every score, and what merging brought each session."""
    numbers = [
        Number(section, score.session, score.column, score.structure, measure, value)
        for score in scores
        for measure, value in (
            ("dice", score.dice),
            ("hd95_mm", score.hd95_mm),
            ("volume_error_percent", score.volume_error_percent),
        )
    ]
    for gain in gains(scores):
        place = section, gain.session, "merged", ""
        numbers.append(Number(*place, "dice_over_better", gain.over_better))
        numbers.append(Number(*place, "dice_over_worse", gain.over_worse))
    return numbers


def find_scans(folder: Path) -> list[Path]:
    """All `sub-*/[ses-*/]anat/*_T1w|T2w.nii.gz`; the folder need not be a BIDS data set."""
    return sorted(
        path
        for place in ("sub-*/anat", "sub-*/ses-*/anat")
        for contrast in ("T1w", "T2w")
        for path in folder.glob(f"{place}/*_{contrast}.nii.gz")
    )


def find_mask(scan: Path, folder: Path) -> Path | None:
    """The brain mask of a scan, or else its label map, in any derivative of the folder."""
    stem = scan.name.removesuffix(".nii.gz")
    subject = stem.rsplit("_", 1)[0]
    for name in (f"{stem}_desc-brain_mask", f"{subject}_desc-brain_mask", f"{subject}_dseg"):
        pattern = f"derivatives/*/{scan.parent.relative_to(folder)}/{name}.nii.gz"
        for path in sorted(folder.glob(pattern)):
            return path
    return None


def median_volumes_ml(path: Path) -> dict[int, float]:
    """Age in months (MONTHS) -> median brain volume of a table's rows within WINDOW_MONTHS of it;
    ages without rows are left out.

    Raises BadData where `path` is no table with columns age_days and brain_mask_ml.
    """
    try:
        rows = [
            (float(row["age_days"]) / DAYS_PER_MONTH, float(row["brain_mask_ml"]))
            for row in read_rows(path, "age_days", "brain_mask_ml")
        ]
    except ValueError as problem:
        raise BadData(f"{path}: holds an age or volume that is no number ({problem})") from problem
    found = {age: [ml for at, ml in rows if abs(at - age) <= WINDOW_MONTHS] for age in MONTHS}
    return {age: statistics.median(volumes) for age, volumes in found.items() if volumes}


def report(numbers: Sequence[Number], segmenter: Segmenter, missing: Sequence[str] = ()) -> str:
    """The report as markdown, of the sections that there are numbers of."""
    there = scorecard.distinct(numbers, "section")
    blocks = [
        "# Accuracy",
        f"Printed by `bids_synthseg_tools accuracy` of bids_synthseg {__version__}, weights "
        f"{segmenter.weights_sha256[:12]}. Left and right are averaged; a mean over structures "
        "follows the mean over sessions.",
    ]
    for section in (name for name in SCANS if name in there):
        own = [one for one in numbers if one.section == section and one.subject != ALL]
        scored = scorecard.distinct([one for one in own if one.measure == "dice"], "subject")
        n_sessions = len(scorecard.distinct(own, "subject"))
        blocks += [
            f"## {section.capitalize()}: {len(scored)} of {n_sessions} session(s) segmented",
            scorecard.structure_table(numbers, section),
            "Dice per session, and of the merged result less the better and the worse contrast:",
            scorecard.session_table(numbers, section),
        ]
    calibration = scorecard.calibration_table(numbers)
    if calibration:
        blocks += ["## Calibration", _CALIBRATION, calibration]
    if "contrasts" in there:
        blocks += [
            "## 4-month map in synthetic contrasts",
            _CONTRASTS,
            scorecard.contrast_table(numbers),
            scorecard.contrast_structures(numbers),
        ]
    if "volumes" in there:
        blocks += ["## Brain volume by age", _VOLUMES, scorecard.volume_table(numbers)]
    if "locator" in there:
        blocks += ["## Locator", _LOCATOR, scorecard.locator_table(numbers)]
    if missing:
        blocks.append(f"Left out, as there were no data: {', '.join(missing)}.")
    return "\n\n".join(blocks) + "\n"


_CALIBRATION = """\
Expected calibration error (Guo et al. 2017, 15 bins) at the voxels that are not certain background
(probability below 0.999), over all voxels of all sessions; missed: what of the reference is
certain background."""
_CONTRASTS = """\
A head painted around the real label map, 1 mm, in random contrasts that are the same every time,
through the whole segmentation. Failed: mean Dice below 0.5; unsaid: without a warning."""
_VOLUMES = """\
The 4-month map at the median volume of real brains of each age, painted as T1w or T2w look then;
error of the segmented volume, without fluid outside the ventricles."""
_LOCATOR = """\
The locator alone: Dice on its own grid, box error as the largest shift of a face in percent of the
true side. Where there are volumes, the whole segmentation has run."""
