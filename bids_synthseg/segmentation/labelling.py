"""From a posterior field to clean label maps on a scan's own grid."""

from dataclasses import dataclass

import numpy as np

from bids_synthseg.anatomy.islands import fill_holes, largest_component, remove_islands
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.posteriors import fold
from bids_synthseg.anatomy.volume import Grid
from bids_synthseg.segmentation.field import PosteriorField, slabs


@dataclass(frozen=True, eq=False)
class LabelledVolume:
    """Label maps (X, Y, Z) of one brain on one grid.

    `aseg` holds ids of `aseg_table`, `native` those of the model, and folds to `aseg` exactly;
    `mask` is the filled union of all labels; `hard_mm3`, `soft_mm3` (C,) are volumes of
    `aseg_table` by voxel count and by summed probability; `posteriors` (C, X, Y, Z) of the native
    labels is kept only on request; `n_islands` counts the voxels that cleaning changed.
    """

    aseg: np.ndarray
    native: np.ndarray
    mask: np.ndarray
    aseg_table: LabelTable
    hard_mm3: np.ndarray
    soft_mm3: np.ndarray
    n_islands: int
    posteriors: np.ndarray | None = None


def label_volume(
    source: PosteriorField, grid: Grid, keep_posteriors: bool = False
) -> LabelledVolume:
    """Fold to aseg, take the most probable label, clean islands; see `LabelledVolume`."""
    aseg_table, channels = source.table.fold("aseg")
    chosen = np.zeros(grid.shape, dtype=np.int16)
    within = np.zeros(grid.shape, dtype=np.int16)
    soft = np.zeros(len(aseg_table))
    kept = np.zeros((len(channels), *grid.shape), np.float32) if keep_posteriors else None
    for part, data in slabs(source, grid):
        folded = fold(data, channels)
        chosen[part] = folded.argmax(axis=0)
        within[part] = _member(data, channels, chosen[part])
        soft += folded.reshape(len(folded), -1).sum(axis=1, dtype=np.float64)
        if kept is not None:
            kept[:, part] = data

    def posterior_at(ijk: np.ndarray) -> np.ndarray:
        return fold(source.at(grid.to_world(ijk)), channels).T

    aseg, n_islands = remove_islands(
        aseg_table.ids[chosen], grid.voxel_volume_mm3, posterior_at, aseg_table
    )
    # A brain is one piece: what hangs together with it by no face is a mistake elsewhere.
    if aseg.any():
        stray = (aseg > 0) & ~largest_component(aseg > 0)
        aseg[stray] = 0
        n_islands += int(stray.sum())
    changed = np.argwhere(aseg != aseg_table.ids[chosen])
    if len(changed):
        place = tuple(changed.T)
        order = np.argsort(aseg_table.ids)
        settled = order[np.searchsorted(aseg_table.ids, aseg[place], sorter=order)]
        within[place] = _member(source.at(grid.to_world(changed)), channels, settled)
    counts = np.bincount(aseg.ravel(), minlength=int(aseg_table.ids.max()) + 1)[aseg_table.ids]
    return LabelledVolume(
        aseg=aseg.astype(np.int32),
        native=source.table.ids[within],
        mask=fill_holes(aseg > 0),
        aseg_table=aseg_table,
        hard_mm3=counts * grid.voxel_volume_mm3,
        soft_mm3=soft * grid.voxel_volume_mm3,
        n_islands=n_islands,
        posteriors=kept,
    )


def _member(data: np.ndarray, channels: np.ndarray, folded: np.ndarray) -> np.ndarray:
    """The most probable channel (...) of `data` (C, ...) among those that fold to `folded`."""
    best = np.zeros(folded.shape, dtype=np.int16)
    highest = np.full(folded.shape, -1.0, dtype=np.float32)
    for channel, target in enumerate(channels):
        better = (folded == target) & (data[channel] > highest)
        best[better] = channel
        highest[better] = data[channel][better]
    return best
