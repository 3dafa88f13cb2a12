"""How bright each class is: one Gaussian per class, at random or as it was seen in real scans.

Classes may share a Gaussian: both sides, the structures of a tissue, the parts of a structure.
Each kind of sharing is a coin of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from bids_synthseg.errors import UsageProblem
from bids_synthseg.fields import SHARE, check_ranges
from bids_synthseg.synthesis.priors import SPREAD_FLOOR, Priors, read_priors

TISSUE_OF = {"background": 0, "csf": 1, "grey": 2, "white": 3, "other": 4}
"""Tissues; classes of csf, grey and white may share an intensity with their tissue."""

DIM_MEAN, DIM_SPREAD = 0.06, 0.02
"""Largest mean and SD of air that is nearly black (Billot et al. 2023: 15 and 5 of 250)."""


@dataclass(frozen=True)
class ContrastConfig:
    """Intensities on a scale of 0 to 1; what is called a probability is tossed once per sample.

    At random: `mean_min`, `mean_max`: range of a class's mean; `spread_min`, `spread_max`: of its
    SD. From priors: `prior`: probability of it; `prior_contrasts`: which are wanted, one is taken
    at random; `prior_table`: a table in data/priors by name, or a file (see synthesis.priors);
    `prior_spread_max`: largest SD taken from it (more, as of the fluid of newborns, comes from
    mixed voxels and slow changes, not from one voxel to the next); `prior_ages`: instead of one
    table several, with the age of their subjects in weeks after conception: a map takes what lies
    between its neighbours at its own age, which is varied by the factor exp(`prior_age_sd`), or at
    any age where its own is unknown.

    Sharing: `tissue_sharing`: probability that structures share their tissue's intensity (with
    priors: that they deviate together), but for `tissue_jitter`, SD of a structure's mean about its
    tissue's; `side_sharing`: that both sides are alike; `fuse`: that all classes whose labels stand
    together in one of `fuse_sets` are the first of them.

    Air: `dark_background`: probability that it is black; `dim_background`: nearly black.
    """

    mean_min: float = 0.0
    mean_max: float = 1.0
    spread_min: float = 0.005
    spread_max: float = 0.07
    prior: float = 0.0
    prior_contrasts: tuple[str, ...] = ("T1w", "T2w")
    prior_table: str = "newborn"
    prior_ages: dict[str, float] = field(default_factory=dict)
    prior_age_sd: float = 0.12
    prior_spread_max: float = 0.1
    tissue_sharing: float = 0.6
    tissue_jitter: float = 0.08
    side_sharing: float = 0.95
    fuse: float = 0.0
    fuse_sets: tuple[str, ...] = ("2 21 41 61", "16 170", "7 46")
    dark_background: float = 0.8
    dim_background: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.mean_min <= self.mean_max <= 1:
            raise ValueError("mean_min and mean_max must lie in 0..1, in this order")
        if self.prior_spread_max < SPREAD_FLOOR:
            raise ValueError(f"prior_spread_max must be at least {SPREAD_FLOOR}")
        if not 0 <= self.spread_min <= self.spread_max or self.tissue_jitter < 0:
            raise ValueError(
                "spread_min, spread_max (in this order) and tissue_jitter must not be below 0"
            )
        for name in ("prior", "tissue_sharing", "side_sharing", "fuse"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, not {getattr(self, name)}")
        dark, dim = self.dark_background, self.dim_background
        if min(dark, dim) < 0 or dark + dim > 1 + 1e-9:
            raise ValueError(
                "dark_background and dim_background are probabilities; their sum must not exceed 1"
            )
        probabilities = ("prior", "tissue_sharing", "side_sharing", "fuse")
        means = ("mean_min", "mean_max", "dark_background", "dim_background")
        spreads = ("spread_min", "spread_max", "prior_spread_max", "tissue_jitter")
        check_ranges(self, dict.fromkeys((*probabilities, *means), SHARE))
        check_ranges(self, dict.fromkeys(spreads, (0, 10)))
        check_ranges(self, {"prior_ages": (1, 10_000), "prior_age_sd": (0, 2)})
        if not all(word.isdecimal() for one in self.fuse_sets for word in one.split()):
            raise ValueError("fuse_sets holds label ids separated by blanks, such as '2 21 41 61'")


@dataclass(frozen=True)
class ContrastDraw:
    """`means` and `spreads` (SDs), both (K,) float32; `contrast` "T1w" or "T2w" where priors of it
    were used, else ""."""

    means: np.ndarray
    spreads: np.ndarray
    contrast: str


def draw_contrast(
    config: ContrastConfig,
    tissues: np.ndarray,
    twins: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    age_weeks: float = math.nan,
) -> ContrastDraw:
    """The Gaussians of K classes; class 0 is background.

    All (K,): `tissues` holds values of TISSUE_OF, `twins` the class of the other side, `labels` the
    label id that stands for the class (at most 0: no priors, drawn at random); `age_weeks` is that
    of the map, NaN where unknown. After Billot et al.
    2023 (SynthSeg), where every class is drawn alone, and Shang et al. 2022 (Infant-SynthSeg) for
    priors and fusing. Raises InputMissing, BadData and UsageProblem for a table of priors that is
    absent, malformed or without the contrasts asked for.
    """
    together = rng.uniform() < config.tissue_sharing
    means, spreads = _at_random(config, tissues, together, rng)
    contrast = ""
    if rng.uniform() < config.prior:
        contrast, priors = _choose(config, labels, age_weeks, rng)
        seen_means, seen_spreads = _as_seen(priors, tissues, together, rng)
        seen_spreads = np.clip(seen_spreads, SPREAD_FLOOR, config.prior_spread_max)
        known = np.isfinite(seen_means)
        means = np.where(known, seen_means, means)
        spreads = np.where(known, seen_spreads, spreads)
    if rng.uniform() < config.fuse:
        first = _first_of_set(config.fuse_sets, labels)
        means, spreads = means[first], spreads[first]
    if rng.uniform() < config.side_sharing:
        first = np.minimum(np.arange(len(tissues)), twins)
        means, spreads = means[first], spreads[first]
    air = rng.uniform()
    if air < config.dark_background:
        means[0], spreads[0] = 0.0, rng.choice([0.0, rng.uniform(0, DIM_SPREAD)])
    elif air < config.dark_background + config.dim_background:
        means[0], spreads[0] = rng.uniform(0, DIM_MEAN), rng.uniform(0, DIM_SPREAD)
    return ContrastDraw(means.astype(np.float32), spreads.astype(np.float32), contrast)


def _at_random(
    config: ContrastConfig, tissues: np.ndarray, together: bool, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    n = len(tissues)
    means = rng.uniform(config.mean_min, config.mean_max, n)
    spreads = rng.uniform(config.spread_min, config.spread_max, n)
    if together:
        tissue_means = rng.uniform(config.mean_min, config.mean_max, len(TISSUE_OF))
        shared = tissue_means[tissues] + config.tissue_jitter * rng.standard_normal(n)
        own = (tissues == TISSUE_OF["other"]) | (tissues == TISSUE_OF["background"])
        means = np.where(own, means, np.clip(shared, 0, 1))
        spreads = np.where(own, spreads, rng.uniform(config.spread_min, config.spread_max))
    return means, spreads


_read_once = lru_cache(maxsize=8)(read_priors)


def _choose(
    config: ContrastConfig, labels: np.ndarray, age_weeks: float, rng: np.random.Generator
) -> tuple[str, np.ndarray]:
    """A contrast, and what is known of the labels (K,) in it, (K, 4) as `Priors.of`."""
    named = config.prior_ages or {config.prior_table: math.nan}
    tables = {name: _read_once(name) for name in named}
    there = {contrast for table in tables.values() for contrast in table}
    choices = [name for name in config.prior_contrasts if name in there]
    if not choices:
        raise UsageProblem(
            f"prior_table {', '.join(tables)!r} has {', '.join(sorted(there))} but none of "
            f"prior_contrasts {', '.join(config.prior_contrasts)}; change one of the two"
        )
    contrast = choices[rng.integers(len(choices))]
    usable = [(named[name], table[contrast]) for name, table in tables.items() if contrast in table]
    usable.sort(key=lambda entry: entry[0])
    if len(usable) == 1:
        return contrast, usable[0][1].of(labels)
    logs = np.log([age for age, _ in usable])
    log_age = math.log(age_weeks) if age_weeks > 0 else rng.uniform(logs[0], logs[-1])
    log_age += config.prior_age_sd * rng.standard_normal()
    return contrast, _between([priors for _, priors in usable], logs, log_age, labels)


def _between(
    priors: Sequence[Priors], logs: np.ndarray, log_age: float, labels: np.ndarray
) -> np.ndarray:
    """(K, 4) priors at an age, linear in its logarithm; those of the nearest table beyond."""
    above = int(np.clip(np.searchsorted(logs, log_age), 1, len(logs) - 1))
    share = np.clip((log_age - logs[above - 1]) / (logs[above] - logs[above - 1]), 0, 1)
    younger, older = priors[above - 1].of(labels), priors[above].of(labels)
    mixed = (1 - share) * younger + share * older
    # What one table lacks the other tells alone.
    return np.where(np.isnan(mixed), np.where(np.isnan(younger), older, younger), mixed)


def _as_seen(
    priors: np.ndarray, tissues: np.ndarray, together: bool, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Means and SDs drawn from priors (K, 4), NaN where a class has none.

    `together`: the structures of a tissue lie above or below what is usual together, as they do in
    a real scan; independent draws would take a tissue apart more than subjects ever do.
    """
    centre_mean, centre_sd, spread_mean, spread_sd = priors.T
    deviation = rng.standard_normal((2, len(priors)))
    if together:
        deviation = rng.standard_normal((2, len(TISSUE_OF)))[:, tissues]
    seen_means = np.clip(centre_mean + centre_sd * deviation[0], 0, 1)
    return seen_means, spread_mean + spread_sd * deviation[1]


def _first_of_set(sets: tuple[str, ...], labels: np.ndarray) -> np.ndarray:
    """(K,) the first class whose label stands in the same set; itself for a class in none."""
    first = np.arange(len(labels))
    for one in sets:
        (members,) = np.nonzero(np.isin(labels, [int(word) for word in one.split()]))
        first[members] = members[:1]
    return first
