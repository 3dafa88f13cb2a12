"""Expected calibration error, worked out by hand."""

import math

import numpy as np
import pytest

from bids_synthseg.anatomy.calibration import Reliability, reliability, uncertain


def two(*background):
    """(2, N) posteriors of background and one label."""
    first = np.array(background, dtype=np.float64)
    return np.stack([first, 1 - first])


def all_of(posteriors, truth, n_bins=15):
    truth = np.array(truth)
    return reliability(posteriors, truth, np.ones(truth.shape, dtype=bool), n_bins)


def test_by_hand():
    # Confidences .9 (right), .9 (wrong), .6 (right), of label 1, 1, 0; in ten bins two are in use.
    found = all_of(two(0.1, 0.1, 0.6), [1, 0, 0], n_bins=10)
    assert found.voxels.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 2, 0]
    assert found.ece == pytest.approx((2 * abs(0.5 - 0.9) + abs(1 - 0.6)) / 3)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.mean_confidence == pytest.approx(0.8)
    low, high, n, confidence, accuracy = found.bins[8]
    assert (low, high, n) == (pytest.approx(0.8), pytest.approx(0.9), 2)
    assert (confidence, accuracy) == (pytest.approx(0.9), 0.5)
    assert math.isnan(found.bins[0][3])


@pytest.mark.parametrize(
    ("confidence", "number"), [(0.5, 7), (1 / 15, 0), (1 / 15 + 1e-6, 1), (1.0, 14), (1 + 1e-6, 14)]
)
def test_bins_are_open_below_and_closed_above(confidence, number):
    found = all_of(np.array([[confidence], [0.0]]), [0])
    assert np.flatnonzero(found.voxels).tolist() == [number]


def test_errors_of_one_bin_cancel_those_of_two_do_not():
    # In one bin: half of the answers at .5 are right.
    assert all_of(two(0.5, 0.5), [0, 1]).ece == 0
    # Too sure by .1 and too unsure by .4.
    assert all_of(two(1.0, *[0.9] * 9, 0.6), [1, *[0] * 10]).ece == pytest.approx(
        (1.0 + 9 * 0.1 + 0.4) / 11
    )


def test_posteriors_that_mean_what_they_say():
    rng = np.random.default_rng(0)
    posteriors = rng.dirichlet([0.5, 0.5, 0.5], 200_000).T
    drawn = rng.uniform(size=200_000)
    truth = (drawn > np.cumsum(posteriors, axis=0)[:2]).sum(axis=0)
    everywhere = np.ones(truth.shape, dtype=bool)
    assert reliability(posteriors, truth, everywhere).ece < 0.005
    # The region is chosen by the posteriors: they still mean what they say there.
    assert reliability(posteriors, truth, uncertain(posteriors)).ece < 0.005
    sharper = posteriors**2 / (posteriors**2).sum(axis=0)
    found = reliability(sharper, truth, everywhere)
    assert found.ece > 0.05 and found.mean_confidence > found.accuracy


def test_parts_add_up_to_the_whole():
    rng = np.random.default_rng(1)
    posteriors = rng.dirichlet([1, 1, 1], (4, 5, 6)).transpose(3, 0, 1, 2)
    truth = rng.integers(3, size=(4, 5, 6))
    where = rng.uniform(size=truth.shape) < 0.7
    whole = reliability(posteriors, truth, where)
    parts = Reliability.of_nothing()
    for part in (slice(0, 1), slice(1, 4)):
        parts += reliability(posteriors[:, part], truth[part], where[part])
    assert whole.voxels.sum() == where.sum()
    for name in ("voxels", "confidence", "correct"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name))


def test_only_the_chosen_voxels_count():
    posteriors = two(0.9995, 0.998, 0.2)
    where = uncertain(posteriors)
    assert where.tolist() == [False, True, True]
    assert reliability(posteriors, np.array([1, 0, 1]), where).accuracy == 1
    nothing = reliability(posteriors, np.array([1, 0, 1]), np.zeros(3, dtype=bool))
    assert all(map(math.isnan, (nothing.ece, nothing.accuracy, nothing.mean_confidence)))


def test_shapes_must_fit():
    with pytest.raises(ValueError, match="do not fit"):
        reliability(two(0.1, 0.2), np.zeros(3, dtype=int), np.ones(3, dtype=bool))
