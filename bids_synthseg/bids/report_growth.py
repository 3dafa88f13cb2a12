"""The brain of a session beside the growth of brains: the curve of a report as parts of an SVG."""

from dataclasses import dataclass

import numpy as np

from bids_synthseg.bids.group_page import Axis
from bids_synthseg.bids.growth import BrainGrowth

WIDTH, HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 12, 46
_BAND_SD = 2.0
_POINTS = 100
_SHOWN_WEEKS = 60.0


@dataclass(frozen=True)
class GrowthPicture:
    """middle, band: the points of an SVG polyline and polygon, the band within 2 standard
    deviations; x, y: the pixel of the session; z: standard deviations from the middle; axes in
    weeks since the last menstrual period and ml."""

    middle: str
    band: str
    across: Axis
    up: Axis
    x: float
    y: float
    expected_ml: float
    z: float


def draw_growth(age_weeks: float | None, brain_ml: float | None) -> GrowthPicture | None:
    """None where age or volume is not known, or the curve does not reach to the age."""
    growth = BrainGrowth.default()
    if age_weeks is None or brain_ml is None or brain_ml <= 0 or not growth.covers(age_weeks):
        return None
    # The whole curve would leave a newborn in a corner.
    last = min(growth.ages_weeks[-1], max(_SHOWN_WEEKS, 1.5 * age_weeks))
    ages = np.linspace(growth.ages_weeks[0], last, _POINTS)
    low, middle, high = (
        np.array([growth.expected_ml(age, z) for age in ages], dtype=float)
        for z in (-_BAND_SD, 0.0, _BAND_SD)
    )
    across = Axis.around(ages, _LEFT, WIDTH - _RIGHT)
    up = Axis.around(np.append(high, brain_ml), HEIGHT - _BOTTOM, _TOP, zero=True)
    z, expected = growth.z(age_weeks, brain_ml), growth.expected_ml(age_weeks)
    if z is None or expected is None:
        return None
    return GrowthPicture(
        middle=_points(ages, middle, across, up),
        band=_points(np.append(ages, ages[::-1]), np.append(low, high[::-1]), across, up),
        across=across,
        up=up,
        x=across.at(age_weeks),
        y=up.at(brain_ml),
        expected_ml=expected,
        z=z,
    )


def _points(ages: np.ndarray, volumes: np.ndarray, across: Axis, up: Axis) -> str:
    pairs = zip(ages.tolist(), volumes.tolist(), strict=True)
    return " ".join(f"{across.at(age)},{up.at(volume)}" for age, volume in pairs)
