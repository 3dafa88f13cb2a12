"""The curve of brain volume by age: its ages, its units, its edges."""

import numpy as np
import pytest

from bids_synthseg.bids.ages import Age
from bids_synthseg.bids.growth import BrainGrowth, weeks_pma


@pytest.mark.parametrize(
    ("age", "weeks"),
    [
        (Age(), None),
        (Age(weeks_pma=30.0), 30.0),
        (Age(months=0.0), 40.0),
        (Age(months=12.0), 40 + 365.25 / 7),
        (Age(months=3.0, weeks_pma=45.0), 45.0),  # born early: since conception is the better one
    ],
)
def test_weeks_since_the_last_period(age, weeks):
    assert weeks_pma(age) == (None if weeks is None else pytest.approx(weeks))


def curve():
    """From 20 weeks, 100 ml to 40 weeks, 400 ml, within 10 % and 20 %."""
    return BrainGrowth(np.array([20.0, 40.0]), np.array([100.0, 400.0]), np.log([1.1, 1.2]))


def test_between_the_points_the_logarithm_is_a_line():
    assert curve().expected_ml(20) == pytest.approx(100)
    assert curve().expected_ml(40) == pytest.approx(400)
    assert curve().expected_ml(30) == pytest.approx(200)
    assert curve().expected_ml(20, z=1) == pytest.approx(110)
    assert curve().expected_ml(40, z=-2) == pytest.approx(400 / 1.44)
    assert curve().z(20, 110) == pytest.approx(1)
    assert curve().z(40, 400 / 1.44) == pytest.approx(-2)


def test_there_is_no_answer_beyond_the_curve():
    for weeks in (19.9, 40.1, 1000):
        assert not curve().covers(weeks)
        assert curve().expected_ml(weeks) is None
        assert curve().z(weeks, 100) is None
    assert curve().z(30, 0) is None


@pytest.mark.parametrize(
    "columns",
    [
        ([20, 20], [1, 2], [1, 1]),
        ([20, 30], [1, 0], [1, 1]),
        ([20, 30], [1, 2], [1, -1]),
        ([20, 30], [1], [1, 1]),
    ],
)
def test_what_is_no_curve(columns):
    with pytest.raises(ValueError, match="curve"):
        BrainGrowth(*(np.array(column, float) for column in columns))


def test_the_shipped_curve_is_that_of_growing_brains():
    shipped = BrainGrowth.default()
    assert shipped.covers(22) and shipped.covers(40 + 104)
    assert not shipped.covers(20) and not shipped.covers(40 + 52 * 4)
    assert (np.diff(shipped.volumes_ml) > 0).all()
    # About 430 ml at term, which doubles or more within a year.
    assert 350 < shipped.expected_ml(40) < 500
    assert 900 < shipped.expected_ml(92) < 1150
    assert (shipped.sd_log > 0.05).all() and (shipped.sd_log < 0.2).all()
