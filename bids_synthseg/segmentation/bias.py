"""Bias field correction: N4 (Tustison et al. 2010), with SimpleITK.

The field of surface coils makes tissue near them several times brighter. A network that learns
from evidence, which tissue is bright in this image, goes wrong where one tissue is bright here and
dark there; so the field comes off before the network looks.
"""

import numpy as np
import SimpleITK as sitk

from bids_synthseg.anatomy.volume import Volume

_SAMPLES = 34  # along the longest side of the mask's box: a field varies over much of a head
_ITERATIONS = (50, 50, 50)
_MASK_SHARE = 0.7  # of the voxels averaged into one that must lie in the mask

LEAST_VOXELS = 200
"""Averaged voxels of tissue; with fewer there is no field to tell from the tissues."""

RANGE_PERCENTILES = (1, 99)
"""A field's range within the brain is the ratio of its values at these percentiles."""


def bias_field(image: Volume, mask: np.ndarray) -> np.ndarray | None:
    """(X, Y, Z) float32 logarithm of the smooth field that N4 finds inside the mask, mean 0 there.

    mask: (X, Y, Z) bool, brain, best without fluid: in T2w its brightness at the brain's rim is
    taken for field otherwise. The field is found on averages over a thirtieth of the mask's
    length, as it varies over much more. Outside the mask it is a continuation, kept within the
    values it has inside. None where there is too little to go by: few voxels above 0 in the mask,
    or all of one grey.
    """
    data = np.asarray(image.data, np.float32)
    # N4 takes the logarithm.
    inside = mask & (data > 0)
    if not inside.any():
        return None
    within = data[inside]
    if not within.max() > within.min():
        return None
    whole, seen = (_sitk_image(one, image) for one in (data, inside.astype(np.float32)))
    sides_mm = image.grid.voxel_size_mm
    occupied = [np.flatnonzero(inside.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    lengths_mm = [(n[-1] - n[0] + 1) * mm for n, mm in zip(occupied, sides_mm, strict=True)]
    sample_mm = max(lengths_mm) / _SAMPLES
    shrink = np.clip(np.round(sample_mm / sides_mm), 1, data.shape).astype(int).tolist()
    small = sitk.BinShrink(whole, shrink)
    small_seen = sitk.BinShrink(seen, shrink) > _MASK_SHARE
    if sitk.GetArrayViewFromImage(small_seen).sum() < LEAST_VOXELS:
        return None
    filter_ = sitk.N4BiasFieldCorrectionImageFilter()
    filter_.SetMaximumNumberOfIterations(_ITERATIONS)
    filter_.Execute(small, small_seen)
    field = sitk.GetArrayFromImage(filter_.GetLogBiasFieldAsImage(whole)).transpose(2, 1, 0)
    within = field[inside]
    if not np.isfinite(within).all():
        return None
    return (np.clip(field, within.min(), within.max()) - within.mean()).astype(np.float32)


def without_field(image: Volume, field: np.ndarray | None) -> Volume:
    """The image divided by a field (X, Y, Z) given as its logarithm; itself for None."""
    if field is None:
        return image
    data = np.asarray(image.data, np.float32) / np.exp(field)
    return Volume(data.astype(np.float32), image.grid)


def correct_bias(image: Volume, mask: np.ndarray) -> np.ndarray:
    """(X, Y, Z) float32 image without the field that `bias_field` finds inside the mask."""
    return np.asarray(without_field(image, bias_field(image, mask)).data, np.float32)


def field_range(field: np.ndarray, mask: np.ndarray) -> float:
    """How many times brighter the same tissue is where a field (its logarithm) is high."""
    low, high = np.percentile(field[mask], RANGE_PERCENTILES)
    return float(np.exp(high - low))


def _sitk_image(data: np.ndarray, like: Volume) -> sitk.Image:
    """An image (X, Y, Z) along its own axes: where it lies in the world does not matter here."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0)))
    image.SetSpacing(like.grid.voxel_size_mm.tolist())
    return image
