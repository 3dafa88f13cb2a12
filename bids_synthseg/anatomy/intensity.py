"""The scale of a scan's intensities: what is empty, what is air, what is bright tissue.

Any increasing, linear change of a scan's intensities, and a few voxels of any value, leave the
standardised scan as it is.
"""

import numpy as np

from bids_synthseg.anatomy.islands import fill_holes
from bids_synthseg.anatomy.volume import Volume

AIR_PERCENTILE, BRIGHT_PERCENTILE = 0.5, 99.0
"""Of the voxels that are not empty: a few that are damaged decide neither end of the scale."""

EMPTY_BORDER = 0.5
"""A value that more than this share of a scan's outermost voxels have exactly stands for "nothing
was measured here": what was cut away around a brain, or beyond the field of view."""

LOWEST, HIGHEST = -1.0, 4.0
"""Standardised intensities are kept within these: no tissue is so far from air and bright tissue,
and a damaged voxel may have any value."""

THIN_MM = 2.0
"""An empty gap that is thinner (or one or two voxels wide) lies within the brain: a sulcus that was
cut out, a slice that was lost."""

_SAMPLE = 400_000


def empty_value(data: np.ndarray) -> float | None:
    """The value of voxels (X, Y, Z) where nothing was measured, None where there is none."""
    faces = [np.moveaxis(data, axis, 0)[[0, -1]].ravel() for axis in range(3)]
    values, counts = np.unique(np.concatenate(faces), return_counts=True)
    if counts.max() <= EMPTY_BORDER * counts.sum():
        return None
    return float(values[counts.argmax()])


def air_and_bright(data: np.ndarray) -> tuple[float, float] | None:
    """Both ends of the scale of a scan (X, Y, Z), None where all that was measured is one grey."""
    empty = empty_value(data)
    measured = data.ravel()
    if empty is not None:
        measured = measured[measured != empty]
    measured = measured[:: max(1, len(measured) // _SAMPLE)].astype(np.float64)
    if not len(measured):
        return None
    air, bright = np.percentile(measured, (AIR_PERCENTILE, BRIGHT_PERCENTILE))
    # A brain without surroundings has no air of its own: what was cut away stands for it, as long
    # as it is no brighter than all that is left.
    if empty is not None and empty < air:
        air = empty
    return (float(air), float(bright)) if bright > air else None


def without_data(scan: Volume) -> np.ndarray:
    """(X, Y, Z) bool: voxels of a scan where nothing was measured, outside of what was.

    They are empty (`empty_value`) and hang together with what is beyond the field of view by paths
    that are not thin. Ventricles that are empty, dark voxels and lost slices are not among them.
    """
    from scipy import ndimage  # here: training works without it

    data = np.asarray(scan.data)
    empty = empty_value(data)
    if empty is None:
        return np.zeros(data.shape, bool)
    reach = np.maximum(1, np.round(THIN_MM / 2 / scan.grid.voxel_size_mm)).astype(int)
    # Beyond the field of view there is nothing either.
    void = np.pad(data == empty, [(n, n) for n in reach], constant_values=True)
    wide = ndimage.minimum_filter(void, tuple(2 * reach + 1))
    outside = ~fill_holes(~wide)
    grown = ndimage.maximum_filter(outside, tuple(2 * reach + 1))
    return grown[tuple(slice(n, -n) for n in reach)]


def standardised(scan: Volume) -> Volume:
    """The scan as float32 in which air and empty voxels are 0 and bright tissue is 1.

    Empty voxels are exactly 0, others may lie a little below. An image of one grey becomes zeros.
    """
    data = np.asarray(scan.data)
    ends = air_and_bright(data)
    if ends is None:
        return Volume(np.zeros(data.shape, np.float32), scan.grid)
    air, bright = ends
    with np.errstate(over="ignore"):  # a damaged voxel may be beyond all bounds
        result = ((data - air) / (bright - air)).clip(LOWEST, HIGHEST).astype(np.float32)
    empty = empty_value(data)
    if empty is not None:
        result[data == empty] = 0
    return Volume(result, scan.grid)
