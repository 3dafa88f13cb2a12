"""The scale of a scan's intensities does not depend on the unit they are given in."""

import numpy as np
import pytest
from handmade import grid, head

from bids_synthseg.anatomy.intensity import empty_value, standardised, without_data
from bids_synthseg.anatomy.volume import Volume

PLACE = grid()


def scan():
    return head(PLACE)[1].data


def stripped():
    labels, image = head(PLACE)
    return np.where(labels.data > 0, image.data, 0).astype(np.float32)


@pytest.mark.parametrize("image", [scan(), stripped()], ids=["with air", "stripped"])
@pytest.mark.parametrize(
    "factor, offset", [(1e-20, 0), (1e20, 0), (1e-20, 3e-19), (3, 1000), (0.5, -60), (1, 7)]
)
def test_factor_and_offset_change_nothing(image, factor, offset):
    changed = Volume(image.astype(np.float64) * factor + offset, PLACE)
    np.testing.assert_allclose(
        standardised(changed).data, standardised(Volume(image, PLACE)).data, atol=1e-5
    )


def test_air_is_0_and_bright_tissue_1():
    found = standardised(Volume(scan(), PLACE)).data
    assert abs(np.median(found[0])) < 0.03 and 0.95 < np.percentile(found, 99) < 1.05
    assert found.dtype == np.float32


def test_a_few_voxels_of_any_value_change_nothing():
    image = scan()
    image[16, 18, 15:17] = 1e7, -1e7
    found, expected = (standardised(Volume(one, PLACE)).data for one in (image, scan()))
    others = np.ones(image.shape, bool)
    others[16, 18, 15:17] = False
    np.testing.assert_allclose(found[others], expected[others], atol=0.02)


def test_what_was_cut_away_is_exactly_0_also_in_z_scores():
    image = stripped()
    assert empty_value(image) == 0 and empty_value(scan()) is None
    inside = image > 0
    scores = np.where(inside, (image - image[inside].mean()) / image[inside].std(), 0)
    found = standardised(Volume(scores, PLACE)).data
    assert (found[~inside] == 0).all()
    # The darkest tissue is air's neighbour, not darker than what was cut away.
    assert np.percentile(found[inside], 1) > -0.01


@pytest.mark.parametrize("image", [np.zeros(PLACE.shape), np.full(PLACE.shape, 7.0)])
def test_an_image_of_one_grey_becomes_zeros(image):
    assert not standardised(Volume(image, PLACE)).data.any()


def test_a_damaged_voxel_is_kept_in_bounds():
    image = scan()
    image[3, 3, 3], image[4, 4, 4] = 3e38, -3e38
    found = standardised(Volume(image, PLACE)).data
    assert (found[3, 3, 3], found[4, 4, 4]) == (4, -1)


def test_where_nothing_was_measured():
    labels, image = head(PLACE)
    inside = labels.data > 0
    half = inside & (np.arange(PLACE.shape[0]) < 16)[:, None, None]
    for measured in (inside, half):
        for factor, offset in ((1, 0), (1e-20, 0), (1, -300)):
            data = np.where(measured, image.data, 0) * factor + offset
            np.testing.assert_array_equal(without_data(Volume(data, PLACE)), ~measured)
    assert not without_data(image).any()  # air is noisy


@pytest.mark.parametrize(
    "place",
    [
        np.s_[14:18, 15:21, 12:18],
        np.s_[:, :, ::4],
        np.s_[16:18, 18:],
        tuple(np.random.default_rng(0).integers(0, 30, (3, 500))),
    ],
    ids=["ventricles", "lost slices", "a thin gap", "dark voxels"],
)
def test_what_is_empty_within_the_brain_is_no_end_of_it(place):
    labels, image = head(PLACE)
    inside = labels.data > 0
    data = np.where(inside, image.data, 0)
    data[place] = 0
    lost = without_data(Volume(data, PLACE)) & inside
    # The rim alone, where the surface is close to a gap.
    assert lost.sum() < 0.04 * inside.sum()
    assert not lost[labels.data != 24].any()
