"""The curve through a group's brain volumes, and who is far from it."""

import numpy as np
import pytest

from bids_synthseg.bids.outliers import SMALLEST_GROUP, fit_trend


def growth(ages):
    return 380 + 750 * (1 - np.exp(-ages / 9))


def scattered(n, seed=3):
    rng = np.random.default_rng(seed)
    ages = rng.uniform(0, 30, n)
    return ages, growth(ages) * rng.lognormal(0, 0.08, n)


def test_a_small_group_has_no_curve():
    ages = np.arange(SMALLEST_GROUP - 1.0)
    assert fit_trend(ages, growth(ages)) is None
    assert fit_trend(np.arange(float(SMALLEST_GROUP)), np.full(SMALLEST_GROUP, 400)) is not None


def test_a_line_of_logarithms_is_followed_exactly():
    ages = np.linspace(0, 10, 40)
    trend = fit_trend(ages, 400 * np.exp(0.1 * ages))
    np.testing.assert_allclose(trend.volumes_ml, 400 * np.exp(0.1 * trend.ages), rtol=1e-3)
    np.testing.assert_allclose(trend.ratio, 1, rtol=1e-3)
    assert not trend.outlier.any()


def test_the_curve_of_growth_is_found_in_spite_of_outliers():
    ages, volumes = scattered(300)
    wrong = [5, 50, 120, 250]
    volumes[wrong] *= [0.4, 1.8, 0.0, 0.5]
    trend = fit_trend(ages, volumes)
    inside = (trend.ages > 1) & (trend.ages < 29)
    np.testing.assert_allclose(trend.volumes_ml[inside], growth(trend.ages[inside]), rtol=0.05)
    assert set(wrong) <= set(np.flatnonzero(trend.outlier))
    assert trend.outlier.sum() <= len(wrong) + 2
    assert trend.ratio[50] == pytest.approx(volumes[50] / growth(ages[50]), rel=0.06)


def test_all_of_one_age():
    volumes = np.array([400.0] * 6 + [410] * 5 + [390] * 5 + [200])
    trend = fit_trend(np.full(len(volumes), 3.0), volumes)
    assert list(np.flatnonzero(trend.outlier)) == [16]
    assert trend.ratio[16] == pytest.approx(0.5, rel=0.02)


def test_small_differences_in_a_uniform_group_are_none():
    volumes = np.array([400.0] * 20 + [420])
    assert not fit_trend(np.arange(21.0), volumes).outlier.any()
