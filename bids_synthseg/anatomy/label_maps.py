"""Label maps: told from scans, and seen on another grid."""

import numpy as np

from bids_synthseg.anatomy.volume import Grid, Volume, resample

# A label map repeats few whole numbers over large regions; a scan has noise.
_LABELS_AT_MOST = 64
_FLAT_SHARE = 0.6


def carry_labels(labels: Volume, grid: Grid) -> Volume:
    """A label map (X, Y, Z) of whole numbers as seen on another grid, int32.

    Every label is resampled linearly for itself, and in each voxel the one with the largest share
    is taken, background being one of them; of equal shares the lower id. Outlines stay smooth where
    nearest neighbours would make steps. Outside the field of view is background.
    """
    from scipy import ndimage  # here: training works without it

    chosen = np.zeros(grid.shape, np.int32)
    largest, background = np.zeros(grid.shape, np.float32), np.ones(grid.shape, np.float32)
    step = np.linalg.inv(labels.grid.affine) @ grid.affine
    # Beyond linear interpolation, a coarser grid averages over as much as one of its voxels.
    margin = 2 + int(np.ceil(np.abs(step[:3, :3]).sum(axis=1).max()))
    for index, box in enumerate(ndimage.find_objects(labels.data), start=1):
        if box is None:
            continue
        part = _around(labels, box, margin)
        place = _seen(part.grid, grid)
        if min(s.stop - s.start for s in place) < 1:
            continue
        mask = Volume((part.data == index).astype(np.float32), part.grid)
        share = resample(mask, _cut(grid, place)).data
        better = share > largest[place]
        chosen[place][better] = index
        largest[place][better] = share[better]
        background[place] -= share
    chosen[background > largest] = 0
    return Volume(chosen, grid)


def _around(volume: Volume, box: tuple[slice, ...], margin: int) -> Volume:
    """The part of a volume in a box, and up to `margin` voxels around it."""
    sides = zip(box, volume.grid.shape, strict=True)
    wide = tuple(slice(max(0, s.start - margin), min(n, s.stop + margin)) for s, n in sides)
    return Volume(volume.data[wide], _cut(volume.grid, wide))


def _cut(grid: Grid, box: tuple[slice, ...]) -> Grid:
    affine = grid.affine.copy()
    affine[:3, 3] = grid.to_world([s.start for s in box])
    x, y, z = (s.stop - s.start for s in box)
    return Grid((x, y, z), affine)


def _seen(source: Grid, grid: Grid) -> tuple[slice, ...]:
    """The voxels of `grid` that may lie in the field of view of `source`; empty for none."""
    corners = np.stack(np.meshgrid(*((-0.5, n - 0.5) for n in source.shape)), axis=-1)
    places = grid.to_voxel(source.to_world(corners.reshape(-1, 3)))
    first = np.maximum(0, np.floor(places.min(axis=0))).astype(int)
    last = np.minimum(np.array(grid.shape) - 1, np.ceil(places.max(axis=0))).astype(int)
    return tuple(slice(int(a), int(b) + 1) for a, b in zip(first, last, strict=True))


def is_label_map(data: np.ndarray) -> bool:
    """Few distinct whole numbers, and neighbours in the foreground mostly equal.

    Eight-bit scans with few grey values pass as scans because of their noise.
    """
    # A thin sample settles almost every scan without sorting millions of values.
    for values in (data.ravel()[:: max(1, data.size // 50_000)], data):
        distinct, counts = np.unique(values, return_counts=True)
        if len(distinct) > _LABELS_AT_MOST or not np.array_equal(distinct, distinct.round()):
            return False
    foreground = data != distinct[counts.argmax()]
    pairs = equal = 0
    for axis in range(3):
        here, there = _neighbours(data, axis)
        both = np.logical_and(*_neighbours(foreground, axis))
        pairs += int(both.sum())
        equal += int((both & (here == there)).sum())
    return equal >= _FLAT_SHARE * max(1, pairs)


def _neighbours(data: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Views of all voxels but the last and all but the first along an axis."""
    moved = np.moveaxis(data, axis, 0)
    return moved[:-1], moved[1:]
