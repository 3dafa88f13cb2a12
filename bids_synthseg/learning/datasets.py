"""Label maps to train on: read from BIDS, brought to canonical orientation, cropped, boxed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from bids_synthseg import nifti
from bids_synthseg.anatomy.labels import LabelTable
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


@dataclass(frozen=True)
class TrainingMap:
    """A label map with what its classes mean: `sets` (K + head classes, C) bool."""

    name: str
    dataset: str
    source: SourceMap
    sets: np.ndarray


def find_label_maps(folder: Path) -> list[Path]:
    """All `sub-*/[ses-*/]anat/*_dseg.nii[.gz]` of a data set, sorted."""
    found = [
        path
        for pattern in ("sub-*/anat/*_dseg.nii*", "sub-*/ses-*/anat/*_dseg.nii*")
        for path in folder.glob(pattern)
    ]
    if not found:
        raise InputMissing(f"{folder}: no sub-*/anat/*_dseg.nii.gz to train on")
    return sorted(found)


def load_dataset(folder: Path, table: LabelTable) -> list[TrainingMap]:
    """All maps of one BIDS folder of label maps, with the T1w and T2w scans beside them."""
    labels = read_source_labels(folder / "dseg.tsv", table)
    return [load_map(path, folder.name, labels, table) for path in find_label_maps(folder)]


def load_map(
    path: Path, dataset: str, labels: tuple[SourceLabel, ...], table: LabelTable
) -> TrainingMap:
    """One map. Raises BadData for unknown ids, an empty map or a scan on another grid."""
    image = nifti.read_labels(path)
    volume, reorientation = image.volume.canonical()
    index = np.array([label.index for label in labels])
    classes = np.searchsorted(index, volume.data).clip(max=len(index) - 1)
    unknown = np.unique(volume.data[index[classes] != volume.data])
    if unknown.size:
        raise BadData(f"{path}: ids {unknown[:8].tolist()} are not in the data set's dseg.tsv")
    scans = [
        reorientation.apply(nifti.read_scan(scan).volume.data)
        for suffix in ("T1w", "T2w")
        for scan in path.parent.glob(path.name.rsplit("_", 1)[0] + f"_{suffix}.nii*")
    ]
    if any(scan.shape != classes.shape for scan in scans):
        raise BadData(f"{path}: the scan beside it has another grid; resample it to the map's")
    background = table.channel_of(0)
    voxels = np.bincount(classes.ravel(), minlength=len(labels))
    sets = target_sets(labels, voxels, table)
    surrounding = sets[:, background] & (np.arange(len(labels)) > 0)
    surrounding &= ~sets[:, 1:].any(axis=1)
    brain = ~sets[:, background][classes] & ~surrounding[classes]
    if not brain.any():
        raise BadData(f"{path}: no voxel of the brain is labelled")
    brain = _largest(brain)
    box = ndimage.find_objects(brain.astype(np.uint8))[0]
    voxel_mm = volume.grid.voxel_size_mm
    extent = np.array([s.stop - s.start for s in box])
    size_mm = float(np.prod(extent * voxel_mm) ** (1 / 3))
    crop = tuple(
        slice(max(0, int(s.start - SURROUNDINGS * n)), int(s.stop + SURROUNDINGS * n) + 1)
        for s, n in zip(box, extent, strict=True)
    )
    outside_mm = ndimage.distance_transform_edt(~brain[crop], sampling=voxel_mm)
    outside = np.minimum(outside_mm / (size_mm * head.OUTSIDE_UNIT), 255)
    corner = np.array([s.start for s in crop])
    middle = np.array([(s.start + s.stop - 1) / 2 for s in box]) - corner
    csf_channel = table.channel_of(24) if 24 in table.ids else background
    has_csf = bool(voxels[sets[:, csf_channel] & ~sets[:, background]].sum() > voxels[1:].sum() / 50)
    painted = np.zeros((head.N_CLASSES, len(table)), dtype=bool)
    painted[:, background] = True
    painted[head.CSF] = np.arange(len(table)) == csf_channel
    source = SourceMap(
        classes=torch.from_numpy(classes[crop].astype(np.uint8)),
        outside=torch.from_numpy(outside.astype(np.uint8)),
        images=torch.from_numpy(np.stack([_unit(scan[crop]) for scan in scans]))
        if scans
        else torch.zeros((0, 1, 1, 1), dtype=torch.float16),
        tissues=tissue_classes(labels, table),
        twins=twin_classes(labels),
        surrounding=surrounding,
        has_csf=has_csf,
        voxel_mm=tuple(float(v) for v in voxel_mm),
        centre=tuple(float(m) for m in middle),
        extent_mm=tuple(float(e) for e in extent * voxel_mm),
    )
    name = path.name.rsplit("_", 1)[0]
    return TrainingMap(name, dataset, source, np.concatenate([sets, painted]))


def _largest(mask: np.ndarray) -> np.ndarray:
    components, _ = ndimage.label(mask)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return components == sizes.argmax()


def _unit(scan: np.ndarray) -> np.ndarray:
    """Scan in 0..1 by its 99.8th percentile, half precision."""
    top = np.percentile(scan[scan > 0], 99.8)
    return np.clip(scan / top, 0, 1).astype(np.float16)
