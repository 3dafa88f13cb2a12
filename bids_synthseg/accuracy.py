"""The accuracy report: everything that can be measured on a folder of validation data.

VALIDATION_DIR is laid out as the constants of this module say; what it lacks is left out, and said.
"""

import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from bids_synthseg import scorecard
from bids_synthseg.accuracy_report import report
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.bids.dataset import prepare_output, write_dataset_files
from bids_synthseg.bids.query import find_scan_groups
from bids_synthseg.bids.scans import ScanGroup
from bids_synthseg.errors import BadData, InputMissing
from bids_synthseg.evaluation import Score, comparison, evaluate, find_references, gains
from bids_synthseg.execution import in_turn, run_sessions
from bids_synthseg.learning.label_sets import read_source_labels
from bids_synthseg.nifti import read_labels
from bids_synthseg.painting import read_sitter
from bids_synthseg.pipeline import Options, Segmenter, SessionResult, run_session
from bids_synthseg.plausibility import agreement_numbers, empty_numbers, write_pictures
from bids_synthseg.scorecard import Number
from bids_synthseg.spaces import Part
from bids_synthseg.storage import write_text
from bids_synthseg.trials import (
    Calibration,
    calibration_numbers,
    calibrations,
    contrast_trial,
    scan_trial,
    volume_trial,
)
from bids_synthseg.tsv import read_rows

LOG = logging.getLogger(__name__)

SCANS = {
    "fetal": "validation/fetal",
    "newborns": "validation/newborns",
    "infants": "inputs/infants",
    "adults": "validation/adults",
}
"""Raw data sets of scans by age band; where there are references, they are a derivative."""
SECTIONS = (*SCANS, "contrasts", "volumes", "locator")
REFERENCE = "derivatives/reference"
LABEL_MAP = "validation/infant-4mo"
VOLUMES = "brain_volume_by_age.tsv"
LOCATED = (
    "inputs/fetal-stacks",
    "inputs/adult-head",
    "validation/fetal",
    "validation/newborns",
    "validation/adults",
)
"""Folders of scans for the locator; those of inputs are also segmented."""
PICTURES = "pictures"

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

    Derivatives of the scans are in OUT/derivatives, made anew, and pictures of those that have no
    reference in OUT/pictures. Raises InputMissing where
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
            f"{validation_dir}: nothing to measure; a validation folder has "
            f"{', '.join(dict.fromkeys((*SCANS.values(), *LOCATED)))}, {LABEL_MAP} and {VOLUMES}"
        )
    text = report(numbers, segmenter.weights_sha256, missing)
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
    """Run the App on a raw data set and judge its derivatives: with their reference, or, where
    there is none, by the agreement of contrasts and by pictures."""
    groups = find_scan_groups(folder)
    reference_dir = folder / REFERENCE
    references = dict(find_references(reference_dir)) if reference_dir.is_dir() else {}
    derivatives = out / "derivatives" / section
    found: list[Calibration] = []
    observe = calibrator(reference_dir, segmenter.table, found) if references else None
    done = segment_all(groups, folder, derivatives, segmenter, options, observe)
    numbers = [
        Number(section, group.label, "", "", "segmented", float(group in done)) for group in groups
    ]
    for group in done:
        numbers += empty_numbers(section, derivatives, group, references.get(group.label))
        if not references:
            numbers += agreement_numbers(section, derivatives, group)
            write_pictures(derivatives, group, out / PICTURES)
    if references:
        numbers += score_numbers(section, evaluate(derivatives, reference_dir, full=True))
        numbers += calibration_numbers(section, found)
    return numbers


Observer = Callable[[ScanGroup, Sequence[Part]], None]
"""Is shown the scans of a session with their posteriors."""


def calibrator(reference_dir: Path, table: LabelTable, found: list[Calibration]) -> Observer:
    """An observer that adds the calibration of every session with a reference to `found`."""
    labels = read_source_labels(reference_dir / "dseg.tsv", LabelTable.default())
    match = comparison(labels, table.ids.tolist(), table)
    references = dict(find_references(reference_dir))

    def observe(group: ScanGroup, parts: Sequence[Part]) -> None:
        if group.label in references:
            reference = read_labels(references[group.label]).volume
            found.extend(calibrations(group.label, parts, reference, match))

    return observe


def segment_all(
    groups: Sequence[ScanGroup],
    bids_dir: Path,
    out: Path,
    segmenter: Segmenter,
    options: Options,
    observe: Observer | None = None,
) -> list[ScanGroup]:
    """Level participant of the App; returns the sessions that did not fail."""
    output_dir = prepare_output(bids_dir, out)
    write_dataset_files(bids_dir, output_dir, segmenter.table)

    done = []

    def run_one(group: ScanGroup) -> SessionResult:
        observe_group = partial(observe, group) if observe else None
        result = run_session(group, bids_dir, output_dir, segmenter, options, observe_group)
        done.append(group)
        return result

    run_sessions(groups, in_turn(run_one, output_dir / "logs"), output_dir)
    return done


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
