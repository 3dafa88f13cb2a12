"""A picture to judge a segmentation by: three planes, four slices each, the image alone and, beside
it, with the labels over it."""

from pathlib import Path

import numpy as np

from bids_synthseg.anatomy.intensity import air_and_bright
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.bids.report_figures import PLANES, slice_positions
from bids_synthseg.errors import BadData
from bids_synthseg.nifti import read_labels, read_scan
from bids_synthseg.storage import atomic_file

_SLICES = 4
_OPACITY = 0.45
# Of the brightest grey: what is darker than this is air, and cut off.
_DARK = 0.1
_MARGIN = 3


def write_mosaic(image_path: Path, labels_path: Path, picture: Path, title: str = "") -> Path:
    """Write the mosaic as PNG; returns its path.

    Both files are brought to canonical orientation; the left of a panel is the left of the subject,
    and the picture says so. Raises BadData where the grids differ.
    """
    from matplotlib.figure import Figure  # slow to load

    scan, segmentation = read_scan(image_path), read_labels(labels_path)
    if not scan.volume.grid.same_as(segmentation.volume.grid):
        raise BadData(f"{labels_path}: lies on another grid than {image_path}; give its own image")
    volume, reorientation = scan.volume.canonical()
    labels = reorientation.apply(segmentation.volume.data)
    if not labels.any():
        raise BadData(f"{labels_path}: holds no label but background; nothing to show")
    grey = _grey(volume.data)
    box = _box((labels != 0) | (grey > _DARK))
    grey, labels = grey[box], labels[box]
    figure = Figure(figsize=(21, 9.6), facecolor="black", layout="constrained")
    axes = figure.subplots(3, 2 * _SLICES)
    size_mm = volume.grid.voxel_size_mm
    for row, (_, axis, ends) in zip(axes, PLANES, strict=True):
        across, up = (other for other in range(3) if other != axis)
        positions = slice_positions(labels != 0, axis, _SLICES)
        for pair, position in zip(row.reshape(-1, 2), positions, strict=True):
            here, there = (np.take(data, position, axis) for data in (grey, labels))
            for panel, shown in zip(pair, (np.zeros_like(there), there), strict=True):
                # (X, Y, 3) with x across becomes rows of y, drawn from below.
                panel.imshow(
                    _overlay(here, shown).swapaxes(0, 1),
                    origin="lower",
                    aspect=size_mm[up] / size_mm[across],
                    interpolation="nearest",
                )
                panel.set_axis_off()
        places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.02), (0.5, 0.98))
        for letter, (x, y) in zip(ends, places, strict=True):
            row[0].text(
                x, y, letter, color="yellow", fontsize=13, ha="center", va="center",
                transform=row[0].transAxes,
            )  # fmt: skip
    note = "left of the picture = left of the subject (L)"
    figure.suptitle(f"{title or labels_path.name}\n{note}", color="white", fontsize=11)
    with atomic_file(picture) as stream:
        figure.savefig(stream, format="png", dpi=110, facecolor="black")
    return picture


def _box(seen: np.ndarray) -> tuple[slice, ...]:
    """The part of an array (X, Y, Z) bool that is worth showing, with a narrow margin."""
    from scipy import ndimage

    (box,) = ndimage.find_objects(seen.astype(np.uint8))
    return tuple(slice(max(0, side.start - _MARGIN), side.stop + _MARGIN) for side in box)


def _grey(data: np.ndarray) -> np.ndarray:
    """Image in 0..1 from air to bright tissue."""
    low, high = air_and_bright(data) or (float(data.min()), np.inf)
    return np.clip((data - low) / (high - low), 0, 1)


def _overlay(grey: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(..., 3) colours 0..1: the image (...), tinted where there is a label."""
    known = {row.index: row.color for row in LabelTable.default().rows}
    present, position = np.unique(labels, return_inverse=True)
    palette = np.array([_rgb(known.get(index) or _made_up(index)) for index in present.tolist()])
    strength = np.where(labels != 0, _OPACITY, 0.0)[..., None]
    tint = palette[position.reshape(labels.shape)]
    return (1 - strength) * grey[..., None] + strength * tint


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))


def _made_up(index: int) -> str:
    """A colour of its own for an id that the label table lacks: steps around the colour wheel."""
    angle = 2 * np.pi * ((index * 0.618034) % 1.0)
    channels = 0.5 + 0.5 * np.cos(angle + np.array([0, 2, 4]) * np.pi / 3)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in channels)
