"""How large a brain is at an age, from 22 weeks after the last menstrual period to two years.

The curve is fitted by `weights/recipe/brain_growth.py`; its volume is that of the brain mask.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from math import log

import numpy as np

from bids_synthseg.bids.ages import DAYS_PER_MONTH, Age

BIRTH_WEEKS = 40.0
"""Weeks since the last menstrual period at birth, where only the age since birth is known."""


def weeks_pma(age: Age) -> float | None:
    """Weeks since the last menstrual period; from the months since birth where those are known
    alone, None where nothing is."""
    if age.weeks_pma is not None:
        return age.weeks_pma
    return None if age.months is None else BIRTH_WEEKS + age.months * DAYS_PER_MONTH / 7


@dataclass(frozen=True, eq=False)
class BrainGrowth:
    """A curve (K,): `ages_weeks` since the last menstrual period, rising; `volumes_ml` to expect;
    `sd_log`, standard deviation of the logarithm of volume. Raises ValueError for anything else."""

    ages_weeks: np.ndarray
    volumes_ml: np.ndarray
    sd_log: np.ndarray

    def __post_init__(self) -> None:
        if not self.ages_weeks.shape == self.volumes_ml.shape == self.sd_log.shape:
            raise ValueError("ages, volumes and spread of a curve must be equally many")
        if (np.diff(self.ages_weeks) <= 0).any():
            raise ValueError("the ages of a curve must rise")
        if min(self.volumes_ml.min(), self.sd_log.min()) <= 0:
            raise ValueError("volumes and spread of a curve must be positive")

    @staticmethod
    @lru_cache(maxsize=1)
    def default() -> "BrainGrowth":
        """The shipped curve."""
        text = (files("bids_synthseg") / "data" / "brain_growth.tsv").read_text(encoding="utf-8")
        columns = np.loadtxt(text.splitlines(), skiprows=1, delimiter="\t", unpack=True)
        return BrainGrowth(*columns)

    def covers(self, age_weeks_pma: float) -> bool:
        """Whether the curve reaches to this age."""
        return bool(self.ages_weeks[0] <= age_weeks_pma <= self.ages_weeks[-1])

    def expected_ml(self, age_weeks_pma: float, z: float = 0.0) -> float | None:
        """The volume that lies `z` standard deviations above the middle; None beyond the curve."""
        if not self.covers(age_weeks_pma):
            return None
        middle = np.interp(age_weeks_pma, self.ages_weeks, np.log(self.volumes_ml))
        sd = np.interp(age_weeks_pma, self.ages_weeks, self.sd_log)
        return float(np.exp(middle + z * sd))

    def z(self, age_weeks_pma: float, brain_ml: float) -> float | None:
        """How many standard deviations a volume lies above the middle; None beyond the curve, and
        for no volume at all."""
        expected = self.expected_ml(age_weeks_pma)
        if expected is None or brain_ml <= 0:
            return None
        sd = float(np.interp(age_weeks_pma, self.ages_weeks, self.sd_log))
        return log(brain_ml / expected) / sd


def age_measures(age: Age, brain_ml: float) -> dict[str, float | None]:
    """`age_weeks_pma` and `volume_z` of `bids.quality.MEASURES` for a session of an age."""
    weeks = weeks_pma(age)
    z = None if weeks is None else BrainGrowth.default().z(weeks, brain_ml)
    return {"age_weeks_pma": weeks, "volume_z": z}
