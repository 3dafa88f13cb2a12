"""Measures without a reference, on arrays that are counted by hand."""

from dataclasses import replace

import numpy as np
import pytest

from bids_synthseg.anatomy.agreement import (
    Tally,
    asymmetry,
    channel_dice,
    edge_fraction,
    empty_slices,
    field_of_view,
    missing_structures,
    structure_median,
)
from bids_synthseg.anatomy.labels import LabelTable

TABLE = LabelTable.default()
NAN = float("nan")


def test_the_evidence_of_five_voxels():
    posteriors = np.array([
        [1.0, 0.3, 0.0, 0.2, 0.5],
        [0.0, 0.7, 1.0, 0.2, 0.5],
        [0.0, 0.0, 0.0, 0.6, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0],
    ])  # fmt: skip
    labels = np.array([0, 1, 1, 2, 0])
    soft = posteriors.sum(axis=1)
    whole, parts = Tally(4), Tally(4)
    whole.add(posteriors, labels)
    for part in (slice(0, 2), slice(2, 5)):
        parts.add(posteriors[:, part], labels[part])
    for tally in (whole, parts):
        found = tally.evidence(soft)
        # Label 1: 2 * (0.7 + 1) / (2 + 2.4); label 2: 2 * 0.6 / (1 + 0.6); label 3 is not there.
        np.testing.assert_allclose(found.predicted_dice[1:], [3.4 / 4.4, 1.2 / 1.6, NAN])
        unsure = -(0.3 * np.log(0.3) + 0.7 * np.log(0.7)) / np.log(4)
        np.testing.assert_allclose(found.entropy[1], unsure / 2, rtol=1e-6)
        mixed = -(0.4 * np.log(0.2) + 0.6 * np.log(0.6)) / np.log(4)
        np.testing.assert_allclose(found.entropy[2], mixed, rtol=1e-6)
        assert np.isnan(found.entropy[3])
        assert np.isnan(found.agreement_dice).all()


def test_the_agreement_of_two_contrasts_is_added_up():
    first, second = np.array([0, 1, 1, 2, 2, 2]), np.array([0, 1, 2, 2, 2, 0])
    tally = Tally(4)
    tally.compare(first[:4], second[:4])
    tally.compare(first[4:], second[4:])
    expected = [2 * 1 / 3, 2 * 1 / 3, 2 * 2 / 6, NAN]
    np.testing.assert_allclose(tally.evidence(np.zeros(4)).agreement_dice, expected)
    np.testing.assert_allclose(channel_dice(first, second, 4), expected)


def test_the_median_is_that_of_structures_which_are_there():
    assert structure_median(np.array([0.0, 0.5, NAN, 1.0, 0.9])) == 0.9
    assert np.isnan(structure_median(np.array([0.9, NAN])))


def test_asymmetry_and_missing_structures():
    volumes = np.ones(len(TABLE))
    assert asymmetry(volumes, TABLE) == 0
    assert missing_structures(volumes, TABLE) == 0
    left = np.array([row.side == "left" for row in TABLE.rows])
    assert asymmetry(np.where(left, 3.0, 1.0), TABLE) == pytest.approx(0.5)
    assert asymmetry(np.where(left, 0.0, 1.0), TABLE) == 1
    assert np.isnan(asymmetry(np.zeros(len(TABLE)), TABLE))
    for index, expected in ((10, 1), (24, 0), (4, 0), (0, 0), (172, 1)):
        gone = volumes.copy()
        gone[TABLE.channel_of(index)] = 0
        assert missing_structures(gone, TABLE) == expected, index
    midline = LabelTable(tuple(row for row in TABLE.rows if row.side == "midline"))
    assert np.isnan(asymmetry(np.ones(len(midline)), midline))


SHAPE = (16, 12, 14)


def box(low, high):
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def textured(shape=SHAPE):
    return np.random.default_rng(0).normal(100, 10, shape)


@pytest.mark.parametrize(
    ("low", "high", "cut"),
    [
        ((4, 3, 3), (12, 9, 11), False),
        ((0, 3, 3), (8, 9, 11), True),  # its face across x lies on the border
        ((8, 3, 3), (16, 9, 11), True),
        ((1, 3, 3), (9, 9, 11), True),  # a network does not label all up to the border
    ],
)
def test_the_share_of_a_box_on_the_border(low, high, cut):
    """8 x 6 x 8 voxels of 3 x 4 x 5 mm: two faces each of 48 * 20, 64 * 15 and 48 * 12 mm2."""
    found = edge_fraction(box(low, high), textured(), (3, 4, 5))
    assert found == pytest.approx(cut * 960 / (2 * (960 + 960 + 576)))


def test_empty_slices_are_no_field_of_view():
    image = textured()
    mask = box((2, 3, 3), (12, 9, 11))
    image[:4] = 0  # cuts the box
    assert field_of_view(image) == (slice(4, 16), slice(0, 12), slice(0, 14))
    # What is left is 8 x 6 x 8: the cut has 48 of 2 * (48 + 64 + 48) faces.
    assert edge_fraction(mask, image, (3, 3, 3)) == pytest.approx(48 / 320)
    image[:4] = image.min()  # another constant, and a trace of interpolation
    image[:4, 5, 5] += 1e-5
    assert edge_fraction(mask, image, (3, 3, 3)) == pytest.approx(48 / 320)
    assert edge_fraction(mask, np.zeros(mask.shape), (3, 3, 3)) < 48 / 320
    assert np.isnan(edge_fraction(np.zeros_like(mask), image, (3, 3, 3)))


def test_a_cut_shows_in_voxels_of_any_size():
    """A ball of 30 mm, cut 10 mm from its middle: a disc of 28.3 mm against what is left of it."""
    disc, rest = np.pi * (900 - 100), 2 * np.pi * 30 * 40
    for step_mm in (1.0, 2.0, 4.0):
        shape = [int(100 / step_mm)] * 3
        place = step_mm * (np.stack(np.indices(shape), -1) + 0.5) - (10.0, 50.0, 50.0)
        mask = np.linalg.norm(place, axis=-1) < 30
        found = edge_fraction(mask, textured(shape), [step_mm] * 3)
        # The faces of voxels make up one and a half times the surface of a ball.
        assert found == pytest.approx(disc / (1.5 * rest + disc), abs=0.03)


def test_a_brain_cut_out_of_its_scan_is_not_cut_off():
    place = np.stack(np.indices((60, 60, 60)), -1) - 29.5
    mask = np.linalg.norm(place, axis=-1) < 24.3
    image = np.where(mask, textured(mask.shape), 0)
    assert field_of_view(image)[0] == slice(6, 54)
    assert edge_fraction(mask, image, (1, 1, 1)) < 0.01
    half = np.where(place[..., 0] < 0, image, 0)
    assert edge_fraction(mask, half, (1, 1, 1)) > 0.2


def test_sides_come_from_the_table_not_from_positions():
    turned = LabelTable((TABLE.rows[0], *(replace(row) for row in TABLE.rows[:0:-1])))
    volumes = np.arange(len(TABLE), dtype=float)
    assert asymmetry(volumes, TABLE) == pytest.approx(
        asymmetry(np.concatenate([volumes[:1], volumes[:0:-1]]), turned)
    )


def test_hot_voxels_move_neither_field_of_view_nor_verdict():
    image = np.random.default_rng(0).uniform(10, 20, (30, 32, 34))
    image[:5] = image[:, :, 28:] = 0
    expected = (slice(5, 30), slice(0, 32), slice(0, 28))
    mask = np.zeros(image.shape, bool)
    mask[5:20, 5:25, 5:25] = True
    cut = edge_fraction(mask, image, (1, 1, 1))
    assert cut > 0.1
    for place in ((1, 1, 1), (2, 20, 30), (15, 15, 15)):
        for value in (3e7, -3e7):
            damaged = image.copy()
            damaged[place] = value
            assert field_of_view(damaged) == expected
            assert edge_fraction(mask, damaged, (1, 1, 1)) == cut
    for factor, offset in ((1e-20, 0), (1e20, 0), (1, -500)):
        assert field_of_view(image * factor + offset) == expected


def test_slices_that_were_lost_within_the_brain_are_counted():
    image = np.random.default_rng(0).uniform(10, 20, (20, 22, 24))
    mask = np.zeros(image.shape, bool)
    mask[5:15, 5:15, 5:15] = True
    image[:, :, ::4] = 0
    assert empty_slices(mask, image) == 2  # 8 and 12
    image[:3] = image[17:] = 0
    image[:, :, 8] = 7
    image[3, 3, 8] = 1e6
    assert empty_slices(mask, image) == 2
    assert empty_slices(np.zeros(image.shape, bool), image) == 0
    # What lies beyond the last slice that holds something is no loss within.
    image[:, :, 13:] = 0
    assert empty_slices(mask, image) == 1
    assert empty_slices(mask, np.full(image.shape, 3.0)) == 0
