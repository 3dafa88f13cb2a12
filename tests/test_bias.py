"""Bias field correction: a field put on a flat brain comes off, what is not bias stays."""

import numpy as np
import pytest
from handmade import grid

from bids_synthseg.anatomy.volume import Volume
from bids_synthseg.segmentation.bias import correct_bias

PLACE = grid((40, 44, 36), (3.0, 3.0, 3.2))


def brain():
    """(X, Y, Z) mask, image of two tissues with noise, and a smooth field from about 0.7 to 1.4."""
    x, y, z = (np.linspace(-1, 1, n).reshape(s) for n, s in zip(PLACE.shape, _AXES, strict=True))
    radius = np.sqrt((x / 0.8) ** 2 + (y / 0.8) ** 2 + (z / 0.8) ** 2)
    image = np.where(radius < 0.6, 140.0, 90.0) + np.random.default_rng(0).normal(0, 2, PLACE.shape)
    field = np.exp(0.35 * x + 0.1 * y + np.zeros(PLACE.shape))
    return radius < 1, image.astype(np.float32), field.astype(np.float32)


_AXES = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))


def spread(image, clean, mask):
    """How unevenly the image follows the clean one: 0 where they are proportional."""
    ratio = np.log(image[mask] / clean[mask])
    return ratio.std()


def test_field_comes_off_and_the_scale_stays():
    mask, clean, field = brain()
    image = Volume(clean * field, PLACE)
    fixed = correct_bias(image, mask)
    assert fixed.shape == PLACE.shape and fixed.dtype == np.float32
    assert spread(fixed, clean, mask) < 0.4 * spread(image.data, clean, mask)
    assert np.log(fixed[mask] / image.data[mask]).mean() == pytest.approx(0, abs=1e-5)
    # Outside, the field goes on within its values inside: nothing explodes.
    ratio = fixed / image.data
    assert ratio.min() >= ratio[mask].min() * (1 - 1e-5)
    assert ratio.max() <= ratio[mask].max() * (1 + 1e-5)
    np.testing.assert_array_equal(fixed, correct_bias(image, mask))


def test_an_even_image_stays_nearly_as_it_is():
    mask, clean, _ = brain()
    assert spread(correct_bias(Volume(clean, PLACE), mask), clean, mask) < 0.03


def test_nothing_to_go_by():
    mask, clean, _ = brain()
    for image, where in ((clean, np.zeros_like(mask)), (-clean, mask)):
        np.testing.assert_array_equal(correct_bias(Volume(image, PLACE), where), image)


def test_voxels_below_zero_do_no_harm():
    mask, clean, field = brain()
    image = clean * field
    image[20:22, 20:22, 18] = -5
    assert np.isfinite(correct_bias(Volume(image, PLACE), mask)).all()
