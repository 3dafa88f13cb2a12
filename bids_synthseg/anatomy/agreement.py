"""What a segmentation tells about itself: how sure it is, whether two views of it agree, how much
of the brain lies outside the image. No reference is needed.

A measure that has no answer is NaN.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bids_synthseg.anatomy.intensity import air_and_bright
from bids_synthseg.anatomy.labels import FLUID, LabelTable
from bids_synthseg.anatomy.posteriors import entropy

_MARGIN = 0.08
"""So near to a border, as a share of a brain's longest side, a network rounds off what is cut."""
_BLANK = 1e-3
"""A slice whose intensities differ by less than this share of the image's range holds nothing."""
_SPECKS, _SPECK_SHARE = 3, 1e-4
"""Nor do so few voxels, or so small a share of a slice, make it hold something."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Of every channel (C,): `predicted_dice`, the Dice that the posteriors let expect; `entropy`,
    mean over the label's voxels, 0 to 1; `agreement_dice`, of what two contrasts say alone.

    NaN for a label that was not added, and throughout `agreement_dice` for one contrast.
    """

    predicted_dice: np.ndarray
    entropy: np.ndarray
    agreement_dice: np.ndarray


class Tally:
    """Adds up the evidence on `n_labels` channels, part of a volume by part."""

    def __init__(self, n_labels: int) -> None:
        self._n_labels = n_labels
        self._size, self._own, self._entropy, self._shared, self._sizes = np.zeros((5, n_labels))

    def add(self, posteriors: np.ndarray, labels: np.ndarray) -> None:
        """Posteriors (C, N) and the channels (N,) that were taken."""
        own = np.take_along_axis(posteriors, labels[None], axis=0)[0]
        self._size += self._sum(labels)
        self._own += self._sum(labels, own)
        self._entropy += self._sum(labels, entropy(posteriors))

    def compare(self, first: np.ndarray, second: np.ndarray) -> None:
        """The channels (N,) that each of two contrasts takes by itself."""
        self._shared += self._sum(first[first == second])
        self._sizes += self._sum(first) + self._sum(second)

    def _sum(self, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(labels, weights, self._n_labels)

    def evidence(self, soft_voxels: np.ndarray) -> Evidence:
        """`soft_voxels` (C,): sum of each channel's probability over the whole volume.

        The predicted Dice is 2 * (sum of a label's probability over its voxels) / (its voxels + sum
        of its probability everywhere): that of two maps of which one is drawn from the posteriors,
        with the expectation taken in numerator and denominator.
        """
        present = self._size > 0
        return Evidence(
            _ratio(2 * self._own, (self._size + soft_voxels) * present),
            _ratio(self._entropy, self._size),
            _ratio(2 * self._shared, self._sizes),
        )


def channel_dice(first: np.ndarray, second: np.ndarray, n_labels: int) -> np.ndarray:
    """(C,) Dice of two maps of channels of one shape; NaN where neither holds the label."""
    shared, *sizes = (
        np.bincount(labels.ravel(), minlength=n_labels)
        for labels in (first[first == second], first, second)
    )
    return _ratio(2 * shared, sizes[0] + sizes[1])


def structure_median(values: np.ndarray) -> float:
    """Median of (C,) over structures, background left out; NaN values do not count."""
    known = values[1:][np.isfinite(values[1:])]
    return float(np.median(known)) if len(known) else float("nan")


def asymmetry(volumes: np.ndarray, table: LabelTable) -> float:
    """Difference of all left and right volumes (C,) as a share of their sum; NaN without any."""
    left, right = (
        float(sum(v for v, row in zip(volumes, table.rows, strict=True) if row.side == side))
        for side in ("left", "right")
    )
    return abs(left - right) / (left + right) if left + right else float("nan")


def missing_structures(volumes: np.ndarray, table: LabelTable) -> int:
    """How many labels of the table have no volume (C,); fluid may truly be absent and is not
    counted."""
    rows = list(zip(volumes, table.rows, strict=True))[1:]
    return sum(volume == 0 and row.mapping != FLUID for volume, row in rows)


def edge_fraction(mask: np.ndarray, image: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """The largest cut through a brain by one side of the field of view, as a share of the brain's
    surface; NaN for an empty mask.

    What is cut is the cross-section that the mask (X, Y, Z) has at the border, as slices farther
    inside let expect: near the border a network rounds off what it cannot see, and a brain that
    just touches it, as one does that was cut out of its scan, has no cross-section there. The
    surface is the area of all faces between the mask and what is outside of it. Slices at the
    border of the image (X, Y, Z) that hold one value alone (padding, a mask of the scanner) do not
    belong to its field of view.
    """
    inside = mask[field_of_view(image)]
    if not inside.any():
        return float("nan")
    sections, surface_mm2 = [], 0.0
    for axis, step_mm in enumerate(spacing_mm):
        slices = np.moveaxis(inside, axis, 0)
        sections.append(np.count_nonzero(slices, axis=(1, 2)) * np.prod(spacing_mm) / step_mm)
        steps = np.count_nonzero(slices[1:] != slices[:-1]) * np.prod(spacing_mm) / step_mm
        surface_mm2 += float(sections[-1][0] + sections[-1][-1] + steps)
    sides_mm = [mm * np.count_nonzero(own) for mm, own in zip(spacing_mm, sections, strict=True)]
    depth_mm = _MARGIN * max(sides_mm)
    cut_mm2 = max(
        _at_border(from_border, math.ceil(depth_mm / step_mm))
        for own, step_mm in zip(sections, spacing_mm, strict=True)
        for from_border in (own, own[::-1])
    )
    return cut_mm2 / surface_mm2


def _at_border(sections: np.ndarray, depth: int) -> float:
    """The cross-section at the border, on a parabola through those (N,) at one, two and three times
    the depth (exact for an ellipsoid); not larger than the first of them."""
    if len(sections) <= 3 * depth:
        return float(sections[0])
    first, second, third = (float(sections[times * depth]) for times in (1, 2, 3))
    return min(max(0.0, 3 * first - 3 * second + third), first)


def field_of_view(image: np.ndarray) -> tuple[slice, ...]:
    """The box of an image (X, Y, Z) without empty slices at its border; all of a constant one."""
    box = []
    for filled in map(np.flatnonzero, filled_slices(image)):
        box.append(slice(int(filled[0]), int(filled[-1]) + 1) if len(filled) else slice(None))
    return tuple(box)


def filled_slices(image: np.ndarray) -> list[np.ndarray]:
    """(X,), (Y,) and (Z,) bool: slices of an image (X, Y, Z) that hold more than one value, damaged
    voxels left out."""
    ends = air_and_bright(image)
    if ends is None:
        return [np.zeros(n, bool) for n in image.shape]
    least = _BLANK * (ends[1] - ends[0])
    found = []
    for axis in range(3):
        slices = np.moveaxis(image, axis, 0)
        # The value of a slice that holds one alone: every fourth row and column tells it.
        value = np.median(slices[:, ::4, ::4], axis=(1, 2), keepdims=True)
        away = np.count_nonzero(np.abs(slices - value) > least, axis=(1, 2))
        found.append(away > max(_SPECKS, _SPECK_SHARE * slices[0].size))
    return found


def empty_slices(mask: np.ndarray, image: np.ndarray) -> int:
    """How many slices of an image (X, Y, Z) hold nothing, though slices on both sides do, between
    the first and the last slice of a mask; along the axis where they are most."""
    lost = [0]
    for axis, filled in enumerate(filled_slices(image)):
        others = tuple(other for other in range(3) if other != axis)
        places = np.flatnonzero(mask.any(axis=others) & filled)
        if len(places):
            lost.append(int(np.count_nonzero(~filled[places[0] : places[-1]])))
    return max(lost)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient of (C,) arrays; NaN where the denominator is 0."""
    known = denominator > 0
    return np.where(known, numerator / np.where(known, denominator, 1), np.nan)
