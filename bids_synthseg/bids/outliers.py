"""Brain volume by age within one group: a curve through it, and who is far off.

The curve is a robust local regression (LOESS, Cleveland 1979, J Am Stat Assoc 74:829) of the
logarithm of volume, so that growth needs no formula and deviations are ratios. Far off is what lies
more than 3.5 robust standard deviations from it (Iglewicz and Hoaglin 1993). It compares the group
with itself: a group that is wrong altogether has no outliers.
"""

from dataclasses import dataclass

import numpy as np

SMALLEST_GROUP = 10
"""With fewer sessions there is no curve."""
LIMIT_SD = 3.5

_SPAN = 0.2  # share of the group that is near
_ROUNDS = 4  # of fitting, each with less weight for those that are off
_LEAST_SD = 0.02  # of the logarithm: no brain is off by less than 7 %
_LEAST_ML = 1.0  # so that an empty segmentation has a logarithm
_MAD_TO_SD = 1.4826  # of a normal distribution


@dataclass(frozen=True, eq=False)
class Trend:
    """`ages`, `volumes_ml` (K,): the curve; `ratio` (N,): of each session, its volume by that of
    the curve at its age; `outlier` (N,) bool."""

    ages: np.ndarray
    volumes_ml: np.ndarray
    ratio: np.ndarray
    outlier: np.ndarray


def fit_trend(ages: np.ndarray, volumes_ml: np.ndarray) -> Trend | None:
    """The trend of (N,) volumes with (N,) ages; None with fewer than SMALLEST_GROUP."""
    ages = np.asarray(ages, dtype=float)
    if len(ages) < SMALLEST_GROUP:
        return None
    logs = np.log(np.maximum(volumes_ml, _LEAST_ML))
    # Evenly over the years, and where the sessions are: growth is fast where infants are.
    at = np.linspace(ages.min(), ages.max(), 30)
    at = np.unique(np.concatenate([at, np.quantile(ages, np.linspace(0, 1, 60))]))
    weights = np.ones(len(ages))
    for _ in range(_ROUNDS):
        curve = _local_lines(at, ages, logs, weights)
        off = logs - np.interp(ages, at, curve)
        scale = max(float(np.median(np.abs(off))), _LEAST_SD / _MAD_TO_SD)
        weights = np.clip(1 - (off / (6 * scale)) ** 2, 0, None) ** 2
    return Trend(at, np.exp(curve), np.exp(off), np.abs(off) > LIMIT_SD * _MAD_TO_SD * scale)


def _local_lines(at: np.ndarray, x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(K,) values at `at` of lines fitted to the (N,) nearest points, the nearer the heavier."""
    distance = np.abs(at[:, None] - x)
    n_near = max(SMALLEST_GROUP, int(np.ceil(_SPAN * len(x)))) - 1
    reach = np.partition(distance, n_near, axis=1)[:, n_near, None]
    # A little farther, so that points that are all equally near keep some weight.
    reach = 1.1 * np.maximum(reach, 1e-6)
    near = weights * (1 - np.minimum(distance / reach, 1) ** 3) ** 3
    # Never zero: where all that are near are off, they still have a mean.
    near = np.maximum(near, 1e-9 * (distance <= reach))
    near = near / near.sum(axis=1, keepdims=True)
    mean_x, mean_y = near @ x, near @ y
    away = x - mean_x[:, None]
    spread = (near * away**2).sum(axis=1)
    slope = (near * away * (y - mean_y[:, None])).sum(axis=1) / (spread + 1e-4 * reach[:, 0] ** 2)
    return mean_y + slope * (at - mean_x)
