"""Measures of a segmentation's quality from what is at hand when it is made.

Per structure they are (C,) arrays on the aseg table, NaN where there is no answer; per session they
are numbers under the names of `bids.quality.MEASURES`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from bids_synthseg.anatomy.agreement import (
    asymmetry,
    channel_dice,
    edge_fraction,
    empty_slices,
    missing_structures,
    structure_median,
)
from bids_synthseg.anatomy.labels import FLUID
from bids_synthseg.anatomy.volume import Volume
from bids_synthseg.segmentation.field import GridField
from bids_synthseg.segmentation.labelling import LabelledVolume

UNSURE_DICE = 0.5
"""A structure that the posteriors expect less of is not to be used."""

_WORST_IS_LOWEST = ("predicted_dice", "mirror_dice", "agreement_dice")


def aseg_agreement(first: GridField, second: GridField) -> np.ndarray:
    """(C,) Dice of the labels of two fields on one grid."""
    aseg_table, channels = first.table.fold("aseg")
    ours, theirs = (channels[f.channels] for f in (first, second))
    return channel_dice(ours, theirs, len(aseg_table))


def lowest(values: Sequence[np.ndarray | None], n_labels: int) -> np.ndarray:
    """(C,) lowest of what several scans say of each structure; NaN where none does."""
    found = np.full(n_labels, np.nan)
    for one in values:
        if one is not None:
            found = np.fmin(found, one)
    return found


def space_measures(
    labelled: LabelledVolume, images: Sequence[Volume], mirror_dice: np.ndarray
) -> dict[str, float]:
    """The numbers of one brain on one grid: `images` lie on it, `mirror_dice` (C,) as `lowest`
    gives it."""
    table, evidence = labelled.aseg_table, labelled.evidence
    spacing_mm = images[0].grid.voxel_size_mm
    voxel_ml = images[0].grid.voxel_volume_mm3 / 1000
    # The largest part of the brain is not the mean of its structures: each voxel counts alike.
    solid = [row.mapping != FLUID for row in table.rows]
    weight = np.where(np.isfinite(evidence.entropy), labelled.hard_mm3, 0)[1:]
    uncertain = np.nansum(weight * evidence.entropy[1:])
    return {
        "predicted_dice": structure_median(evidence.predicted_dice),
        "mirror_dice": structure_median(mirror_dice),
        "agreement_dice": structure_median(evidence.agreement_dice),
        "entropy": float(uncertain / weight.sum()) if weight.sum() else float("nan"),
        "edge_fraction": max(
            edge_fraction(labelled.mask, image.data, spacing_mm) for image in images
        ),
        "empty_slices": float(max(empty_slices(labelled.mask, image.data) for image in images)),
        "asymmetry": asymmetry(labelled.hard_mm3, table),
        "unsure_structures": float((evidence.predicted_dice[1:] < UNSURE_DICE).sum()),
        "missing_structures": float(missing_structures(labelled.hard_mm3, table)),
        "islands_ml": float(labelled.islands_mm3[solid].sum()) / 1000,
        "brain_ml": float(labelled.mask.sum()) * voxel_ml,
    }


def worst(spaces: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of several grids that show a session's brain the worst number of each measure; NaN where
    there is none. Of the brain's volume it is the first grid's."""
    found = {}
    for name in spaces[0]:
        values = [space[name] for space in spaces if np.isfinite(space[name])]
        choose = min if name in _WORST_IS_LOWEST else max
        found[name] = choose(values) if values else float("nan")
    return found | {"brain_ml": spaces[0]["brain_ml"]}
