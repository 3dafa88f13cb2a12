"""Label maps to train on: read from BIDS, brought to canonical orientation, cropped, boxed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from bids_synthseg import nifti
from bids_synthseg.anatomy.islands import largest_component
from bids_synthseg.anatomy.labels import Label, LabelTable
from bids_synthseg.anatomy.volume import Volume
from bids_synthseg.errors import BadData, InputMissing
from bids_synthseg.learning.label_sets import (
    SourceLabel,
    read_source_labels,
    target_sets,
    tissue_classes,
    twin_classes,
)
from bids_synthseg.synthesis import head
from bids_synthseg.synthesis.recipe import SourceMap

SURROUNDINGS = 0.35
"""Margin kept around the brain, as a fraction of its box."""

CSF_ID = 24
"""Model label of the fluid around the brain, which `head` paints where a map has none."""

CSF_FRACTION = 1 / 50
"""A map has CSF of its own if it takes this fraction of the labelled voxels."""

BRAIN_TABLE = LabelTable(
    (
        Label(0, "Background", "BG", "#000000", 0, "background", "midline", 0, 0),
        Label(1, "Brain", "BRAIN", "#cd3e4e", 1, "brain", "midline", 1, 1),
    )
)
"""What a locator tells apart."""


@dataclass(frozen=True)
class TrainingMap:
    """A label map with what its classes mean: `sets` (K + head classes, C) bool."""

    name: str
    dataset: str
    source: SourceMap
    sets: np.ndarray


def load_maps(folders: Sequence[Path], target: str) -> tuple[list[TrainingMap], LabelTable]:
    """The maps of all data sets, and the table they are expressed in.

    `target`: "labels", or "brain" for brain against everything else. Errors as `load_map` and
    `read_source_labels`, and InputMissing for a data set without maps.
    """
    table = LabelTable.default()
    maps = [one for folder in folders for one in load_dataset(folder, table)]
    if target == "brain":
        # Brain is what cannot be background; "background or CSF" stays either.
        maps = [
            replace(one, sets=np.stack([one.sets[:, 0], one.sets[:, 1:].any(axis=1)], axis=1))
            for one in maps
        ]
        table = BRAIN_TABLE
    return maps, table


def find_label_maps(folder: Path) -> list[Path]:
    """All `sub-*/[ses-*/]anat/*_dseg.nii[.gz]` of a data set, sorted."""
    found = [
        path
        for pattern in ("sub-*/anat/sub-*_dseg.nii", "sub-*/ses-*/anat/sub-*_dseg.nii")
        for ending in ("", ".gz")
        for path in folder.glob(pattern + ending)
    ]
    if not found:
        raise InputMissing(
            f"{folder}: no sub-*/[ses-*/]anat/*_dseg.nii.gz to train on; give a BIDS folder of "
            "label maps"
        )
    return sorted(found)


def load_dataset(folder: Path, table: LabelTable) -> list[TrainingMap]:
    """All maps of one BIDS folder of label maps, with the T1w and T2w scans beside them."""
    paths = find_label_maps(folder)
    labels = read_source_labels(folder / "dseg.tsv", table)
    try:
        twin_classes(labels, table)
    except ValueError as problem:
        raise BadData(f"{folder / 'dseg.tsv'}: {problem}") from problem
    return [load_map(path, folder.resolve().name, labels, table) for path in paths]


def load_map(
    path: Path, dataset: str, labels: tuple[SourceLabel, ...], table: LabelTable
) -> TrainingMap:
    """One map. Raises BadData for values that are no label ids, a map without brain, or a scan
    beside it that lies on another grid."""
    volume, _ = nifti.read_labels(path).volume.canonical()
    classes = _classes(path, volume.data, labels)
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

    brain, box = _largest(is_brain[classes])
    extent = np.array([s.stop - s.start for s in box])
    crop = tuple(
        slice(max(0, int(s.start - SURROUNDINGS * n)), int(s.stop + SURROUNDINGS * n) + 1)
        for s, n in zip(box, extent, strict=True)
    )
    voxel_mm = volume.grid.voxel_size_mm
    size_mm = float(np.prod(extent * voxel_mm) ** (1 / 3))
    outside = distance_mm(brain[crop], voxel_mm) / (size_mm * head.OUTSIDE_UNIT)
    middle = [(s.start + s.stop - 1) / 2 - c.start for s, c in zip(box, crop, strict=True)]
    contrasts, scans = _scans(path, volume, crop)
    source = SourceMap(
        classes=torch.from_numpy(np.ascontiguousarray(classes[crop])),
        outside=torch.from_numpy(outside.clip(max=255).astype(np.uint8)),
        images=torch.from_numpy(scans),
        contrasts=contrasts,
        tissues=tissue_classes(labels, table),
        twins=twin_classes(labels, table),
        surrounding=surrounding,
        has_csf=bool(voxels[csf].sum() > CSF_FRACTION * voxels[1:].sum()),
        voxel_mm=tuple(float(v) for v in voxel_mm),
        centre=tuple(float(m) for m in middle),
        extent_mm=tuple(float(e) for e in extent * voxel_mm),
    )
    return TrainingMap(_stem(path), dataset, source, np.concatenate([sets, painted]))


def _classes(path: Path, data: np.ndarray, labels: tuple[SourceLabel, ...]) -> np.ndarray:
    """(X, Y, Z) uint8: the row of `labels` for every id."""
    if len(labels) > 256:
        raise BadData(f"{path}: {len(labels)} labels in its dseg.tsv; merge them into at most 256")
    index = np.array([label.index for label in labels])
    low, high = int(data.min()), int(data.max())
    row_of = np.full(max(high, int(index[-1])) + 1, -1, dtype=np.int16)
    row_of[index] = np.arange(len(index))
    unknown = np.unique(data[row_of[data.clip(min=0)] < 0]) if low >= 0 else np.unique(data)
    unknown = unknown[~np.isin(unknown, index)]
    if unknown.size:
        raise BadData(
            f"{path}: ids {', '.join(map(str, unknown[:8]))} are not in the dseg.tsv of its data "
            "set; add them there with their meaning"
        )
    return row_of.astype(np.uint8)[data]


def _largest(mask: np.ndarray) -> tuple[np.ndarray, tuple[slice, ...]]:
    """The largest component of a mask, and its box: stray voxels must not stretch that."""
    box = ndimage.find_objects(mask.view(np.uint8))[0]
    kept = np.zeros_like(mask)
    kept[box] = largest_component(mask[box])
    return kept, ndimage.find_objects(kept.view(np.uint8))[0]


def distance_mm(mask: np.ndarray, voxel_mm: np.ndarray) -> np.ndarray:
    """(X, Y, Z) float32 distance of every voxel centre to the nearest one of the mask."""
    # scipy's own distances hold several float64 volumes and take longer than finding the voxels.
    nearest = ndimage.distance_transform_edt(
        ~mask, sampling=voxel_mm, return_distances=False, return_indices=True
    )
    squared = np.zeros(mask.shape, dtype=np.float32)
    places = np.ogrid[tuple(map(slice, mask.shape))]
    for found, here, step in zip(nearest, places, voxel_mm, strict=True):
        squared += np.square((found - here).astype(np.float32) * np.float32(step))
    return np.sqrt(squared)


def _scans(
    path: Path, volume: Volume, crop: tuple[slice, ...]
) -> tuple[tuple[str, ...], np.ndarray]:
    """Which scans lie beside a map ("T1w", "T2w"), and (N, X, Y, Z) float16: the scans, cropped
    and scaled to 0..1."""
    contrasts, scans = [], []
    for suffix in ("T1w", "T2w"):
        for ending in (".nii", ".nii.gz"):
            scan_path = path.with_name(f"{_stem(path)}_{suffix}{ending}")
            if not scan_path.exists():
                continue
            scan, _ = nifti.read_scan(scan_path).volume.canonical()
            if not scan.grid.same_as(volume.grid):
                raise BadData(
                    f"{scan_path}: lies on another grid than {path.name}; resample the scan to "
                    "the label map, or take it away"
                )
            contrasts.append(suffix)
            scans.append(_unit(scan_path, scan.data[crop]))
    stacked = np.stack(scans) if scans else np.zeros((0, 1, 1, 1), dtype=np.float16)
    return tuple(contrasts), stacked


def _stem(path: Path) -> str:
    return path.name.rsplit("_", 1)[0]


def _unit(path: Path, scan: np.ndarray) -> np.ndarray:
    """Scan in 0..1 by the 99.8th percentile of its positive voxels, half precision."""
    positive = scan[scan > 0]
    if not positive.size:
        raise BadData(f"{path}: black where the label map has its brain; replace or remove it")
    return np.clip(scan / np.percentile(positive, 99.8), 0, 1).astype(np.float16)
