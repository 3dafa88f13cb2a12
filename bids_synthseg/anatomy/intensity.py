"""The scale of a scan's intensities: what is empty, what is air, what is bright tissue.

Any increasing, linear change of a scan's intensities, and a few voxels of any value, leave the
standardised scan as it is.
"""

import numpy as np

from bids_synthseg.anatomy.volume import Volume

AIR_PERCENTILE, BRIGHT_PERCENTILE = 0.5, 99.0
"""Of the voxels that are not empty: a few that are damaged decide neither end of the scale."""

EMPTY_BORDER = 0.5
"""A value that more than this share of a scan's outermost voxels have exactly stands for "nothing
was measured here": what was cut away around a brain, or beyond the field of view."""

_SAMPLE = 400_000


def empty_value(data: np.ndarray) -> float | None:
    """The value of voxels (X, Y, Z) where nothing was measured, None where there is none."""
    faces = [np.moveaxis(data, axis, 0)[[0, -1]].ravel() for axis in range(3)]
    values, counts = np.unique(np.concatenate(faces), return_counts=True)
    if counts.max() <= EMPTY_BORDER * counts.sum():
        return None
    return float(values[counts.argmax()])


def standardised(scan: Volume) -> Volume:
    """The scan as float32 in which air and empty voxels are 0 and bright tissue is 1.

    Empty voxels are exactly 0, others may lie a little below. An image of one grey becomes zeros.
    """
    data = np.asarray(scan.data)
    empty = empty_value(data)
    measured = data.ravel()
    if empty is not None:
        measured = measured[measured != empty]
    measured = measured[:: max(1, len(measured) // _SAMPLE)].astype(np.float64)
    if not len(measured):
        return Volume(np.zeros(data.shape, np.float32), scan.grid)
    air, bright = np.percentile(measured, (AIR_PERCENTILE, BRIGHT_PERCENTILE))
    # A brain without surroundings has no air of its own: what was cut away stands for it, as long
    # as it is no brighter than all that is left.
    if empty is not None and empty < air:
        air = empty
    if not bright > air:
        return Volume(np.zeros(data.shape, np.float32), scan.grid)
    result = ((data - air) / (bright - air)).astype(np.float32)
    if empty is not None:
        result[data == empty] = 0
    return Volume(result, scan.grid)
