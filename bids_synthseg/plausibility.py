"""Measures and pictures of derivatives for which no reference label is needed.

Two contrasts of one brain should get the same labels, and nothing should be labelled where there is
no image. The rest is for the eye.
"""

import logging
from pathlib import Path

import numpy as np

from bids_synthseg.anatomy.label_maps import carry_labels
from bids_synthseg.anatomy.labels import CSF_ID, LabelTable
from bids_synthseg.anatomy.metrics import dice
from bids_synthseg.anatomy.volume import Grid, Volume
from bids_synthseg.bids.derivatives import SessionPaths
from bids_synthseg.bids.scans import CONTRASTS, ScanGroup
from bids_synthseg.evaluation import mean, predictions
from bids_synthseg.figure import write_mosaic
from bids_synthseg.nifti import Image, read_labels, read_scan
from bids_synthseg.scorecard import BETWEEN, Number

LOG = logging.getLogger(__name__)


def structure_agreement(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Structure -> Dice of two label maps (X, Y, Z) of the default table, left and right averaged;
    NaN where neither has it."""
    rows = LabelTable.default().rows[1:]
    overlap = dice(first, second, [row.index for row in rows])
    return {
        structure: mean(overlap[row.index] for row in rows if row.structure == structure)
        for structure in LabelTable.default().structures[1:]
    }


def contrast_labels(output_dir: Path, group: ScanGroup) -> dict[str, Image]:
    """Contrast -> label map of its scan alone, as --save-per-image writes it; contrasts without one
    are left out."""
    anat = SessionPaths(output_dir, group.subject, group.session).anat
    found = predictions(anat)
    return {name: read_labels(found[name][0]) for name in CONTRASTS if name in found}


def agreement_numbers(section: str, output_dir: Path, group: ScanGroup) -> list[Number]:
    """Agreement of T1w alone with T2w alone on the grid of the T1w, as the headers place them; none
    for a session that has not both."""
    labels = contrast_labels(output_dir, group)
    if len(labels) < len(CONTRASTS):
        return []
    t1w, t2w = (labels[name].volume for name in CONTRASTS)
    agreement = structure_agreement(t1w.data, on_grid(t2w, t1w.grid))
    return [
        Number(section, group.label, BETWEEN, structure, "dice", value)
        for structure, value in agreement.items()
    ]


def on_grid(labels: Volume, grid: Grid) -> np.ndarray:
    """A label map as seen on a grid (X, Y, Z), untouched where it lies there already."""
    return labels.data if labels.grid.same_as(grid) else carry_labels(labels, grid).data


def empty_numbers(
    section: str, output_dir: Path, group: ScanGroup, reference: Path | None = None
) -> list[Number]:
    """What every scan alone got of CSF, and of any label, where it is exactly 0 and outside the
    brain of the label map `reference`, in ml."""
    numbers = []
    brain = read_labels(reference).volume if reference else None
    labels = contrast_labels(output_dir, group)
    for scan in group.scans:
        if scan.suffix not in labels:
            continue
        image = read_scan(scan.path).volume
        empty = image.data == 0
        if brain is not None:
            empty &= on_grid(brain, image.grid) == 0
        voxel_ml = image.grid.voxel_volume_mm3 / 1000
        found = empty_ml(labels[scan.suffix].volume.data, empty, voxel_ml)
        numbers += [
            Number(section, group.label, scan.suffix, "", measure, value)
            for measure, value in found.items()
        ]
    return numbers


def empty_ml(labels: np.ndarray, empty: np.ndarray, voxel_ml: float) -> dict[str, float]:
    """Volume of CSF and of all labels (X, Y, Z) in the voxels `empty` (X, Y, Z) bool."""
    there = labels[empty]
    return {
        "csf_where_empty_ml": float((there == CSF_ID).sum()) * voxel_ml,
        "labels_where_empty_ml": float((there != 0).sum()) * voxel_ml,
    }


def write_pictures(output_dir: Path, group: ScanGroup, folder: Path) -> list[Path]:
    """A mosaic of every scan and its labels alone; returns the files."""
    labels = contrast_labels(output_dir, group)
    pictures = []
    for scan in group.scans:
        if scan.suffix not in labels:
            continue
        if not labels[scan.suffix].volume.data.any():
            LOG.warning("%s: no label, so no picture", scan.path.name)
            continue
        picture = folder / f"{group.label}_{scan.suffix}.png"
        pictures.append(write_mosaic(scan.path, labels[scan.suffix].path, picture, picture.stem))
    return pictures
