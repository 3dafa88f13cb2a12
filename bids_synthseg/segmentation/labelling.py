"""From a posterior field to clean label maps on a scan's own grid."""

from dataclasses import dataclass

import numpy as np

from bids_synthseg.anatomy.agreement import Evidence, Tally
from bids_synthseg.anatomy.islands import fill_holes, largest_component, remove_islands
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.metrics import table_volumes_mm3
from bids_synthseg.anatomy.posteriors import best_channel, fold
from bids_synthseg.anatomy.volume import Grid
from bids_synthseg.segmentation.field import (
    MergedField,
    PosteriorField,
    background_where_silent,
    chunks,
    is_silent,
    surest,
)

CERTAIN_BACKGROUND = 0.99
"""Where every contrast holds background for more probable than this, none can disagree."""


@dataclass(frozen=True, eq=False)
class LabelledVolume:
    """Label maps (X, Y, Z) of one brain on one grid.

    `aseg` holds ids of `aseg_table`, `native` those of the model, and folds to `aseg` exactly;
    `mask` is the filled union of all labels; `hard_mm3`, `soft_mm3` (C,) are volumes of
    `aseg_table` by voxel count and by summed probability; `posteriors` (C, X, Y, Z) of the native
    labels is kept only on request. `confidence` (float32) is the probability of the label taken
    and `evidence` what the posteriors tell about each label of `aseg_table`, both before cleaning;
    `disagreement` (bool) is true where the contrasts alone choose different labels of it, None for
    one contrast; `islands_mm3` (C,) is what cleaning took from each label.
    """

    aseg: np.ndarray
    native: np.ndarray
    mask: np.ndarray
    aseg_table: LabelTable
    hard_mm3: np.ndarray
    soft_mm3: np.ndarray
    confidence: np.ndarray
    evidence: Evidence
    islands_mm3: np.ndarray
    disagreement: np.ndarray | None = None
    posteriors: np.ndarray | None = None


def label_volume(
    source: PosteriorField, grid: Grid, keep_posteriors: bool = False
) -> LabelledVolume:
    """Fold to aseg, take the most probable label, clean islands; see `LabelledVolume`.

    The two fields of a MergedField are contrasts, and compared. Where no field says anything there
    is background.
    """
    aseg_table, channels = source.table.fold("aseg")
    contrasts = source.fields if isinstance(source, MergedField) else (source,)
    chosen = np.zeros(grid.shape, dtype=np.int16)
    within = np.zeros(grid.shape, dtype=np.int16)
    confidence = np.ones(grid.shape, dtype=np.float32)
    disagreement = np.zeros(grid.shape, dtype=bool) if len(contrasts) == 2 else None
    support = source.support(grid)
    soft = np.zeros(len(aseg_table))
    soft[0] = support.size - np.count_nonzero(support)
    tally = Tally(len(aseg_table))
    kept = None
    if keep_posteriors:
        kept = np.zeros((len(channels), *grid.shape), np.float32)
        kept[0] = ~support
    for indices in chunks(support):
        place, points_mm = tuple(indices.T), grid.to_world(indices)
        each = [field.at(points_mm) for field in contrasts]
        data = background_where_silent(surest(each))
        folded = fold(data, channels)
        labels, confidence[place] = best_channel(folded)
        chosen[place] = labels
        within[place] = _member(data, channels, labels)
        soft += folded.sum(axis=1, dtype=np.float64)
        if kept is not None:
            kept[:, place[0], place[1], place[2]] = data
        brain = labels > 0
        tally.add(folded[:, brain], labels[brain])
        if disagreement is not None:
            # Most of a scan is background beyond doubt.
            doubtful = np.minimum(each[0][0], each[1][0]) < CERTAIN_BACKGROUND
            doubtful &= ~is_silent(each[0]) & ~is_silent(each[1])
            alone = [best_channel(fold(data[:, doubtful], channels))[0] for data in each]
            tally.compare(*alone)
            disagreement[tuple(indices[doubtful].T)] = alone[0] != alone[1]

    def posterior_at(ijk: np.ndarray) -> np.ndarray:
        return fold(source.at(grid.to_world(ijk)), channels).T

    aseg, _ = remove_islands(
        aseg_table.ids[chosen], grid.voxel_volume_mm3, posterior_at, aseg_table
    )
    # A brain is one piece: what hangs together with it by no face is a mistake elsewhere.
    if aseg.any():
        stray = (aseg > 0) & ~largest_component(aseg > 0)
        aseg[stray] = 0
    changed = np.argwhere(aseg != aseg_table.ids[chosen])
    taken = np.bincount(chosen[tuple(changed.T)], minlength=len(aseg_table))
    if len(changed):
        place = tuple(changed.T)
        order = np.argsort(aseg_table.ids)
        settled = order[np.searchsorted(aseg_table.ids, aseg[place], sorter=order)]
        within[place] = _member(source.at(grid.to_world(changed)), channels, settled)
    return LabelledVolume(
        aseg=aseg.astype(np.int32),
        native=source.table.ids[within],
        mask=fill_holes(aseg > 0),
        aseg_table=aseg_table,
        hard_mm3=table_volumes_mm3(aseg, aseg_table, grid.voxel_volume_mm3),
        soft_mm3=soft * grid.voxel_volume_mm3,
        confidence=confidence,
        evidence=tally.evidence(soft),
        islands_mm3=taken * grid.voxel_volume_mm3,
        disagreement=disagreement,
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
