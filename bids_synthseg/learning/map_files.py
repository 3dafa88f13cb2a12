"""One label map file ready for training: canonical orientation, cropped, boxed, scans beside it."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage

from bids_synthseg import nifti
from bids_synthseg.anatomy.extent import without_far_fluid
from bids_synthseg.anatomy.islands import largest_component
from bids_synthseg.anatomy.labels import CSF_ID, LabelTable
from bids_synthseg.anatomy.volume import Grid, Volume
from bids_synthseg.errors import BadData
from bids_synthseg.learning.features import shape_features
from bids_synthseg.learning.label_sets import (
    SourceLabel,
    class_labels,
    shape_roles,
    target_sets,
    tissue_classes,
    twin_classes,
)
from bids_synthseg.learning.maps import TrainingMap
from bids_synthseg.synthesis import head
from bids_synthseg.synthesis.contrast import TISSUE_OF
from bids_synthseg.synthesis.parts import MOST
from bids_synthseg.synthesis.recipe import SourceMap

log = logging.getLogger(__name__)

SURROUNDINGS = 0.35
"""Margin kept around the brain, as a fraction of its box."""

CSF_FRACTION = 1 / 50
"""A map has CSF of its own if it takes this fraction of the labelled voxels."""

CONTRASTS = ("T1w", "T2w")


def load_map(
    path: Path,
    dataset: str,
    labels: tuple[SourceLabel, ...],
    table: LabelTable,
    scan_folders: Sequence[Path] = (),
) -> TrainingMap:
    """One map, with the scans beside it; those that are not there are looked for in `scan_folders`.

    Raises BadData for values that are no label ids, a map without brain, or a scan beside it that
    lies on another grid; ValueError as `twin_classes`.
    """
    stored = nifti.read_labels(path).volume
    # As rows, a byte each, before anything is turned or copied.
    rows = Volume(_classes(path, stored.data, labels), stored.grid)
    volume, _ = rows.canonical()
    classes = volume.data
    voxels = np.bincount(classes.ravel(), minlength=len(labels))
    sets = target_sets(labels, voxels, table)
    surrounding = sets[:, 0] & ~sets[:, 1:].any(axis=1)
    surrounding[0] = False
    is_brain = ~sets[:, 0] & ~surrounding
    if not voxels[is_brain].any():
        raise BadData(f"{path}: no voxel carries a label of the brain; replace or remove the map")
    csf_channel = table.channel_of(CSF_ID)
    csf = sets[:, csf_channel] & ~sets[:, 0]
    painted = np.zeros((head.N_CLASSES, len(table)), dtype=bool)
    painted[:, 0] = True
    painted[head.CSF] = np.arange(len(table)) == csf_channel

    brain, box = _largest(without_far_fluid(is_brain[classes], csf[classes]))
    extent = np.array([s.stop - s.start for s in box])
    crop = tuple(
        slice(max(0, int(s.start - SURROUNDINGS * n)), int(s.stop + SURROUNDINGS * n) + 1)
        for s, n in zip(box, extent, strict=True)
    )
    sides_mm = volume.grid.voxel_size_mm
    voxel_mm = float(sides_mm[0]), float(sides_mm[1]), float(sides_mm[2])
    size_mm = float(np.prod(extent * sides_mm) ** (1 / 3))
    outside = distance_mm(brain[crop], sides_mm) / (size_mm * head.OUTSIDE_UNIT)
    middle = [(s.start + s.stop - 1) / 2 - c.start for s, c in zip(box, crop, strict=True)]
    contrasts, scans = _scans(path, volume.grid, crop, scan_folders)
    tissues = tissue_classes(labels, table)
    source = SourceMap(
        classes=torch.from_numpy(np.ascontiguousarray(classes[crop])),
        outside=torch.from_numpy(outside.clip(max=255).astype(np.uint8)),
        images=torch.from_numpy(scans),
        contrasts=contrasts,
        tissues=tissues,
        twins=twin_classes(labels, table),
        surrounding=surrounding,
        labels=class_labels(labels),
        roles=shape_roles(labels, table),
        thresholds=np.zeros((0, len(TISSUE_OF), MOST, MOST - 1), dtype=np.float32),
        has_csf=bool(voxels[csf].sum() > CSF_FRACTION * voxels[1:].sum()),
        voxel_mm=voxel_mm,
        centre=tuple(float(m) for m in middle),
        extent_mm=tuple(float(e) for e in extent * sides_mm),
    )
    return TrainingMap(
        name=_stem(path),
        subject=path.name.split("_")[0],
        dataset=dataset,
        source=source,
        sets=np.concatenate([sets, painted]),
        features=shape_features(classes[box], tissues, surrounding, voxel_mm),
    )


def _classes(path: Path, data: np.ndarray, labels: tuple[SourceLabel, ...]) -> np.ndarray:
    """(X, Y, Z) uint8: the row of `labels` for every id."""
    if len(labels) > 256:
        raise BadData(f"{path}: {len(labels)} labels in its dseg.tsv; merge them into at most 256")
    # Labels of no voxel have negative numbers (label_sets).
    row_at = {label.index: row for row, label in enumerate(labels) if label.index >= 0}
    highest = max(row_at)
    row_of = np.full(highest + 1, -1, dtype=np.int16)
    row_of[list(row_at)] = list(row_at.values())
    within = data.min() >= 0 and data.max() <= highest
    rows = row_of[data] if within else None
    if rows is None or rows.min() < 0:
        unknown = np.setdiff1d(data, list(row_at))
        raise BadData(
            f"{path}: ids {', '.join(map(str, unknown[:8]))} are not in the dseg.tsv of its data "
            "set; add them there with their meaning"
        )
    return rows.astype(np.uint8)


def _largest(mask: np.ndarray) -> tuple[np.ndarray, tuple[slice, ...]]:
    """The largest component of a mask, and its box: stray voxels must not stretch that."""
    box = ndimage.find_objects(mask.view(np.uint8))[0]
    kept = np.zeros_like(mask)
    kept[box] = largest_component(mask[box])
    return kept, ndimage.find_objects(kept.view(np.uint8))[0]


def distance_mm(mask: np.ndarray, voxel_mm: np.ndarray) -> np.ndarray:
    """(X, Y, Z) float32 distance of every voxel centre to the nearest one of the mask."""
    # Exact as scipy's transform, in a quarter of its time. SimpleITK's axes are z, y, x.
    image = sitk.GetImageFromArray(mask.view(np.uint8))
    image.SetSpacing(voxel_mm[::-1].tolist())
    signed = sitk.SignedMaurerDistanceMap(
        image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True
    )
    return np.maximum(sitk.GetArrayViewFromImage(signed), 0)


def _scans(
    path: Path, grid: Grid, crop: tuple[slice, ...], folders: Sequence[Path]
) -> tuple[tuple[str, ...], np.ndarray]:
    """Which scans there are ("T1w", "T2w"), and (N, X, Y, Z) float16: the scans, cropped and scaled
    to 0..1. Raw scans need not lie on the map's grid; then they are no use."""
    contrasts, scans = [], []
    for suffix in CONTRASTS:
        for scan_path in _scan_paths(path, suffix, folders):
            scan, _ = nifti.read_scan(scan_path).volume.canonical()
            if scan.grid.same_as(grid):
                contrasts.append(suffix)
                scans.append(_unit(scan_path, scan.data[crop]))
                break
            if scan_path.parent == path.parent:
                raise BadData(
                    f"{scan_path}: lies on another grid than {path.name}; resample the scan to "
                    "the label map, or take it away"
                )
            log.warning("%s: lies on another grid than %s; not used", scan_path, path)
    stacked = np.stack(scans) if scans else np.zeros((0, 1, 1, 1), dtype=np.float16)
    return tuple(contrasts), stacked


def _scan_paths(path: Path, suffix: str, folders: Sequence[Path]) -> list[Path]:
    """The scan beside a map, else those in `folders` of the same subject, session and so on."""
    # What a derivative says of itself is no part of a raw scan's name.
    words = [w for w in _stem(path).split("_") if w.split("-")[0] not in _DERIVED]
    names = [(path.parent, _stem(path)), *((folder, "_".join(words)) for folder in folders)]
    found = [folder / f"{stem}_{suffix}{end}" for folder, stem in names for end in _ENDINGS]
    found = [one for one in found if one.exists() or one.is_symlink()]
    return found[:1] if found and found[0].parent == path.parent else found


_DERIVED = ("space", "res", "den", "label", "desc", "seg", "atlas")
_ENDINGS = (".nii", ".nii.gz")


def _stem(path: Path) -> str:
    return path.name.rsplit("_", 1)[0]


def _unit(path: Path, scan: np.ndarray) -> np.ndarray:
    """Scan in 0..1 by the 99.8th percentile of its positive voxels, half precision."""
    positive = scan[scan > 0]
    if not positive.size:
        raise BadData(f"{path}: black where the label map has its brain; replace or remove it")
    return np.clip(scan / np.percentile(positive, 99.8), 0, 1).astype(np.float16)
