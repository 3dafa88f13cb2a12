"""How bright each class is: one Gaussian per class, shared or not between sides and tissues."""

from dataclasses import dataclass

import numpy as np

TISSUE_OF = {"background": 0, "csf": 1, "grey": 2, "white": 3, "other": 4}
"""Tissues; classes of csf, grey and white may share an intensity with their tissue."""


@dataclass(frozen=True)
class ContrastConfig:
    """Intensities on a scale of 0 to 1.

    `tissue_sharing`, `side_sharing`: probabilities that structures share their tissue's intensity
    and that both sides are alike; `tissue_jitter`: SD of a structure's mean about its tissue's;
    `noise_max`: largest SD inside a class; `dark_background`: probability that air is black.
    """

    tissue_sharing: float = 0.6
    tissue_jitter: float = 0.08
    side_sharing: float = 0.95
    noise_max: float = 0.07
    dark_background: float = 0.8


_T2_JITTER = 0.05


def draw_contrast(
    config: ContrastConfig,
    tissues: np.ndarray,
    twins: np.ndarray,
    rng: np.random.Generator,
    t2_like: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """(K,) float32 means and (K,) SDs for K classes; class 0 is background.

    `tissues` (K,) holds values of TISSUE_OF, `twins` (K,) the class of the other side. After
    Billot et al. 2023 (SynthSeg), where every class, or class of both sides, is drawn alone.
    `t2_like`: CSF is brightest and white matter brighter than grey, as in T2w of newborns.
    """
    n = len(tissues)
    means = rng.uniform(0, 1, n)
    spreads = rng.uniform(0.005, config.noise_max, n)
    if rng.uniform() < config.tissue_sharing:
        tissue_means = rng.uniform(0, 1, len(TISSUE_OF))
        shared = tissue_means[tissues] + config.tissue_jitter * rng.standard_normal(n)
        own = (tissues == TISSUE_OF["other"]) | (tissues == TISSUE_OF["background"])
        means = np.where(own, means, np.clip(shared, 0, 1))
        spreads = np.where(own, spreads, rng.uniform(0.005, config.noise_max))
    if t2_like:
        grey = rng.uniform(0.2, 0.45)
        fluid, white = rng.uniform(0.8, 1.0), grey + rng.uniform(0.1, 0.25)
        prior = {"csf": fluid, "grey": grey, "white": white}
        for tissue, mean in prior.items():
            alike = mean + _T2_JITTER * rng.standard_normal(n)
            means = np.where(tissues == TISSUE_OF[tissue], np.clip(alike, 0, 1), means)
        spreads = config.noise_max * rng.uniform(0.2, 1, n)
    if rng.uniform() < config.side_sharing:
        first = np.minimum(np.arange(n), twins)
        means, spreads = means[first], spreads[first]
    if rng.uniform() < config.dark_background:
        means[0], spreads[0] = 0.0, rng.choice([0.0, rng.uniform(0, 0.02)])
    return means.astype(np.float32), spreads.astype(np.float32)
