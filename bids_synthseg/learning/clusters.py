"""Clusters of intensity inside each tissue of a scan, as thresholds between neighbours.

FetalSynthSeg (Zalevskyi et al. 2024) stores a map of clusters for every number of them. In one
dimension ordered clusters are intervals, so a few thresholds say the same.
"""

import warnings

import numpy as np

from bids_synthseg.synthesis.contrast import TISSUE_OF
from bids_synthseg.synthesis.parts import MOST

SAMPLE = 5000
"""Voxels of a tissue that are looked at, at most."""

_ITERATIONS = 30
_STEPS = 256
"""Fineness of a threshold between two means."""


def intensity_thresholds(scan: np.ndarray, tissues: np.ndarray, seed: int = 42) -> np.ndarray:
    """(5, MOST, MOST - 1) float32: between the clusters of each tissue, for 1 to MOST of them.

    `scan` (X, Y, Z), `tissues` (X, Y, Z) with values of TISSUE_OF; background is clustered where
    the scan is above 0. Row K - 1 holds K - 1 ascending thresholds, then +inf; a tissue that is
    absent, or has fewer greys than clusters, has +inf from there on.
    """
    rng = np.random.default_rng(seed)
    result = np.full((len(TISSUE_OF), MOST, MOST - 1), np.inf, dtype=np.float32)
    for tissue in TISSUE_OF.values():
        values = scan[(tissues == tissue) & ((scan > 0) | (tissue > 0))]
        if values.size > SAMPLE:
            values = values[rng.choice(values.size, SAMPLE, replace=False)]
        values = np.sort(values.astype(np.float64))
        for count in range(2, min(MOST, len(np.unique(values))) + 1):
            result[tissue, count - 1, : count - 1] = _thresholds(values, count, seed)
    return result


def _thresholds(values: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(count - 1,) where neighbouring components of a mixture are equally probable, ascending."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(
        count, init_params="k-means++", random_state=seed, max_iter=_ITERATIONS, tol=1e-3
    )
    with warnings.catch_warnings():
        # A mixture that is nearly settled cuts a tissue as well as one that is.
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(values[:, None])
    order = np.argsort(mixture.means_[:, 0])
    means = mixture.means_[order, 0]
    # Between two means, count how long the lower component is the more probable one.
    ways = np.linspace(means[:-1], means[1:], _STEPS)
    variance, weight = mixture.covariances_[order, 0, 0], mixture.weights_[order]
    lower, upper = (
        np.log(weight[some])
        - np.log(variance[some]) / 2
        - (ways - means[some]) ** 2 / (2 * variance[some])
        for some in (slice(None, -1), slice(1, None))
    )
    share = (lower > upper).mean(axis=0)
    return means[:-1] + share * np.diff(means)
