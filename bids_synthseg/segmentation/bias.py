"""Bias field correction: N4 (Tustison et al. 2010), with SimpleITK."""

import numpy as np
import SimpleITK as sitk

from bids_synthseg.anatomy.volume import Volume

_WORKING_MM = 3.5
_LEAST_VOXELS = 8
_ITERATIONS = (50, 50, 50)


def correct_bias(image: Volume, mask: np.ndarray) -> np.ndarray:
    """(X, Y, Z) float32 image divided by the smooth field that N4 finds inside the mask.

    mask: (X, Y, Z) bool, the brain. The field is found on voxels of about 3.5 mm, as it varies
    over centimetres. Outside the mask it is a continuation, kept within the values it has inside;
    its geometric mean inside is 1, so that the image keeps its scale. An image with no positive
    voxel in the mask is returned as it is.
    """
    data = np.asarray(image.data, np.float32)
    # N4 takes the logarithm.
    inside = mask & (data > 0)
    if not inside.any():
        return data
    whole, seen = (_sitk_image(one, image) for one in (data, inside.astype(np.uint8)))
    shrink = [
        int(max(1, min(round(_WORKING_MM / side_mm), size // _LEAST_VOXELS)))
        for side_mm, size in zip(image.grid.voxel_size_mm, data.shape, strict=True)
    ]
    small, small_seen = sitk.Shrink(whole, shrink), sitk.Shrink(seen, shrink)
    # A handful of voxels at full resolution may all fall between the samples.
    if not sitk.GetArrayViewFromImage(small_seen).any():
        return data
    filter_ = sitk.N4BiasFieldCorrectionImageFilter()
    filter_.SetMaximumNumberOfIterations(_ITERATIONS)
    filter_.Execute(small, small_seen)
    log_field = sitk.GetArrayFromImage(filter_.GetLogBiasFieldAsImage(whole)).transpose(2, 1, 0)
    within = log_field[inside]
    log_field = np.clip(log_field, within.min(), within.max()) - within.mean()
    return (data / np.exp(log_field)).astype(np.float32)


def _sitk_image(data: np.ndarray, like: Volume) -> sitk.Image:
    """An image (X, Y, Z) along its own axes: where it lies in the world does not matter here."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0)))
    image.SetSpacing(like.grid.voxel_size_mm.tolist())
    return image
