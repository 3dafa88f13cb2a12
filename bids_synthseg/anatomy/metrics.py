"""How well two label maps agree, per label and in millimetres.

A measure that has no answer (label absent in both maps) is NaN, never 0 or 1.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy import ndimage

from bids_synthseg.anatomy.labels import LabelTable


def remap(labels: np.ndarray, mapping: Mapping[int, int]) -> np.ndarray:
    """Label map (...) with ids replaced at once, as int32; ids the mapping leaves out stay."""
    present = np.unique(labels)
    renamed = [mapping.get(index, index) for index in present.tolist()]
    return np.array(renamed, dtype=np.int32)[np.searchsorted(present, labels)]


def dice(prediction: np.ndarray, reference: np.ndarray, ids: Iterable[int]) -> dict[int, float]:
    """Dice overlap of two label maps of one shape, id -> 0..1.

    NaN where neither map holds the label, 0 where only one does. Raises ValueError for unequal
    shapes.
    """
    _same_shape(prediction, reference)
    sizes, others = _counts(prediction), _counts(reference)
    shared = _counts(prediction[prediction == reference])
    scores = {}
    for index in ids:
        total = sizes.get(index, 0) + others.get(index, 0)
        scores[index] = 2 * shared.get(index, 0) / total if total else float("nan")
    return scores


def volumes_mm3(
    labels: np.ndarray, ids: Iterable[int], voxel_volume_mm3: float
) -> dict[int, float]:
    """Volume of every label, id -> mm3; 0 where it is absent."""
    sizes = _counts(labels)
    return {index: sizes.get(index, 0) * voxel_volume_mm3 for index in ids}


def table_volumes_mm3(labels: np.ndarray, table: LabelTable, voxel_volume_mm3: float) -> np.ndarray:
    """(C,) volumes of the labels of a table; `labels` holds no negative id and none above it."""
    sizes = np.bincount(labels.ravel(), minlength=int(table.ids.max()) + 1)
    return sizes[table.ids] * voxel_volume_mm3


def hd95_mm(prediction: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """95th percentile Hausdorff distance of two masks (X, Y, Z), in mm.

    The surface is every voxel of a mask with a face neighbour outside it (outside the array
    counts); distances run between voxel centres. The larger of the two directed 95th percentiles
    is taken, as in Taha and Hanbury 2015 (doi:10.1186/s12880-015-0068-x). NaN where both masks
    are empty, infinity where one is. Raises ValueError for unequal shapes.
    """
    _same_shape(prediction, reference)
    prediction, reference = prediction.astype(bool), reference.astype(bool)
    if not prediction.any() or not reference.any():
        return float("inf") if prediction.any() or reference.any() else float("nan")
    # Both surfaces lie in the box of the union, so distances to them need no more than that box.
    box = ndimage.find_objects((prediction | reference).astype(np.uint8))[0]
    ours, theirs = _surface(prediction[box]), _surface(reference[box])
    return max(_directed_95(ours, theirs, spacing_mm), _directed_95(theirs, ours, spacing_mm))


def _directed_95(source: np.ndarray, target: np.ndarray, spacing_mm: Sequence[float]) -> float:
    distance_mm = ndimage.distance_transform_edt(~target, sampling=spacing_mm)
    return float(np.percentile(distance_mm[source], 95))


def _surface(mask: np.ndarray) -> np.ndarray:
    return mask & ~ndimage.binary_erosion(mask)


def _counts(labels: np.ndarray) -> dict[int, int]:
    ids, sizes = np.unique(labels, return_counts=True)
    return dict(zip(ids.tolist(), sizes.tolist(), strict=True))


def _same_shape(prediction: np.ndarray, reference: np.ndarray) -> None:
    if prediction.shape != reference.shape:
        raise ValueError(f"cannot compare shapes {prediction.shape} and {reference.shape}")
