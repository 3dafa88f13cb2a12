"""How often each label map is drawn: evenly, by data set, by age, or by the shape of its brain.

"shape" is the sampler of Shang et al. 2026 (clinical fetal SynthSeg): maps are clustered by a few
features, and every cluster is drawn equally often, however few maps it has.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from bids_synthseg.errors import BadData, UsageProblem
from bids_synthseg.fields import SHARE, check_ranges
from bids_synthseg.learning.features import FEATURES
from bids_synthseg.learning.maps import TrainingMap

MODES = ("dataset", "uniform", "age", "shape")

COMPONENTS = 3
"""Principal components of the features that are clustered (Shang et al. 2026)."""

LEAST_VARIANCE = 0.05
"""Of a cluster, in standardised units. On 107 maps from fetus to adult other starts of the fit then
find nearly the same ones: adjusted Rand index 0.93 for 6 and 1.0 for 8 clusters, against 0.85 and
0.82 without."""

VOLUME = FEATURES.index("brain_volume_ml")

_SEED = 42
_STARTS = 10


@dataclass(frozen=True)
class SamplingConfig:
    """What the maps are drawn by.

    `by`: what is drawn equally often: every data set ("dataset"), every map ("uniform"), every
    interval of ages between `age_edges_weeks` ("age"; after conception, ascending, unknown ages are
    one more interval), or every one of at most `clusters` clusters of similar brains ("shape").
    `temper`: share of the samples drawn evenly from all maps instead, for "age" and "shape".
    `weights`: how much more often than that the maps of a data set are drawn; 1 where not given.
    `ages`: age in weeks of the maps whose data set does not state it, by "data set" or
    "data set/subject", the latter first. `age_shares`: with "age", how often each interval is
    drawn in proportion, from the youngest on; all alike where not given.
    """

    by: str = "dataset"
    clusters: int = 6
    temper: float = 0.2
    age_edges_weeks: tuple[float, ...] = (26.0, 32.0, 37.0, 46.0, 66.0, 92.0, 144.0)
    weights: dict[str, float] = field(default_factory=dict)
    ages: dict[str, float] = field(default_factory=dict)
    age_shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.by not in MODES:
            raise ValueError(f"by must be one of {', '.join(MODES)}, not {self.by!r}")
        if self.clusters < 1 or not 0 <= self.temper <= 1:
            raise ValueError("clusters must be at least 1 and temper a share, 0 to 1")
        if list(self.age_edges_weeks) != sorted(set(self.age_edges_weeks)):
            raise ValueError("age_edges_weeks must ascend")
        ranges = {"clusters": (1, 1000), "age_edges_weeks": (0, 10_000), "weights": (0, 1e6)}
        ranges |= {"ages": (0, 10_000), "age_shares": (0, 1e6)}
        check_ranges(self, {**ranges, "temper": SHARE})
        if self.age_shares and len(self.age_shares) != len(self.age_edges_weeks) + 1:
            raise ValueError(
                f"age_shares: {len(self.age_edges_weeks) + 1} numbers, one for each interval of "
                f"age_edges_weeks, not {len(self.age_shares)}"
            )


@dataclass(frozen=True)
class Sampling:
    """`chances` (N,) of the maps, their sum is 1; `groups` (N,) int: which data set, interval of
    ages or cluster each is in; `lines`: one for each group, to print."""

    chances: np.ndarray
    groups: np.ndarray
    lines: tuple[str, ...]


def map_chances(maps: Sequence[TrainingMap], config: SamplingConfig) -> Sampling:
    """How often each of N maps is drawn, whatever their order.

    Raises BadData for a weight of an unknown data set or weights that leave nothing to draw, and
    UsageProblem for sampling by shape without scikit-learn.
    """
    factors = _weights(maps, config.weights)
    shares = None
    if config.by == "shape":
        groups, names = _by_shape(maps, config.clusters)
    elif config.by == "age":
        groups, names, shares = _by_age(maps, config)
    else:
        known, groups = np.unique([one.dataset for one in maps], return_inverse=True)
        names = known.tolist()
    sizes = np.bincount(groups)
    tempered = {"dataset": 0.0, "uniform": 1.0}.get(config.by, config.temper)
    shares = np.full(len(sizes), 1 / len(sizes)) if shares is None else shares / shares.sum()
    balanced = (1 - tempered) * shares[groups] / sizes[groups] + tempered / len(maps)
    chances = factors * balanced
    chances /= chances.sum()
    lines = (
        _line(name, [maps[n] for n in np.flatnonzero(groups == group)], chances[groups == group])
        for group, name in enumerate(names)
    )
    return Sampling(chances, groups, tuple(lines))


def _weights(maps: Sequence[TrainingMap], weights: dict[str, float]) -> np.ndarray:
    """(N,) weight of each map's data set."""
    known = sorted({one.dataset for one in maps})
    unknown = sorted(set(weights) - set(known))
    if unknown:
        raise BadData(
            f"sampling.weights: no data set is named {unknown[0]!r}; known are {', '.join(known)}"
        )
    found = np.array([weights.get(one.dataset, 1.0) for one in maps])
    if found.sum() <= 0:
        raise BadData("sampling.weights: at least one must be above 0")
    return found


def with_ages(maps: Sequence[TrainingMap], ages: dict[str, float]) -> list[TrainingMap]:
    """The maps, with an age for those whose data set states none: see `SamplingConfig.ages`.

    Raises BadData for a name that no data set or subject has.
    """
    known = {name for one in maps for name in (one.dataset, f"{one.dataset}/{one.subject}")}
    if unknown := sorted(set(ages) - known):
        raise BadData(f"sampling.ages: no data set or subject is named {unknown[0]!r}")
    aged = []
    for training_map in maps:
        subject = f"{training_map.dataset}/{training_map.subject}"
        stated = ages.get(subject, ages.get(training_map.dataset))
        if np.isnan(training_map.age_weeks) and stated is not None:
            training_map = replace(training_map, age_weeks=stated)
        aged.append(training_map)
    return aged


def _by_age(
    maps: Sequence[TrainingMap], config: SamplingConfig
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """(N,) group of each map, youngest first, the names of the groups and their shares.

    Raises BadData for an interval with a share but without maps.
    """
    edges_weeks = config.age_edges_weeks
    borders = [f"{edge:g}" for edge in edges_weeks]
    names = [f"{low} to {high} weeks" for low, high in pairwise(borders)]
    if borders:
        names = [f"under {borders[0]} weeks", *names, f"from {borders[-1]} weeks"]
    else:
        names = ["any age"]
    ages = np.array([one.age_weeks for one in maps])
    interval = np.where(
        np.isnan(ages), len(names), np.searchsorted(edges_weeks, ages, side="right")
    )
    occupied, groups = np.unique(interval, return_inverse=True)
    for name, share, number in zip(names, config.age_shares, range(len(names)), strict=False):
        if share and number not in occupied:
            raise BadData(
                f"sampling.age_shares: no map is of the age {name}; give it no share, or state "
                "ages in participants.tsv or sampling.ages"
            )
    shares = np.ones(len(names) + 1)
    shares[: len(config.age_shares)] = config.age_shares or 1.0
    return groups, [[*names, "age unknown"][one] for one in occupied], shares[occupied]


def _by_shape(maps: Sequence[TrainingMap], clusters: int) -> tuple[np.ndarray, list[str]]:
    """(N,) cluster of each map, smallest brains first, and the names of the clusters.

    Features are compared over all data sets at once: they are physical, and to level the data sets
    first would put a fetus beside an adult. Logarithms, because brains differ by factors; what is
    unknown counts as average.
    """
    features = np.array([_comparable(one) for one in maps])
    # Sums, and the starts of the fit, depend on the order of the maps; their features do not.
    order = np.lexsort(features.T[::-1])
    logs = np.log(features[order])
    known = np.isfinite(logs)
    count = np.maximum(known.sum(axis=0), 1)
    centred = np.where(known, logs - np.where(known, logs, 0).sum(axis=0) / count, 0)
    deviation = np.sqrt(np.square(centred).sum(axis=0) / count)
    standard = centred / np.where(deviation > 1e-6, deviation, 1)
    _, _, axes = np.linalg.svd(standard, full_matrices=False)
    cluster = np.empty(len(maps), dtype=np.intp)
    cluster[order] = _mixture(standard @ axes[:COMPONENTS].T, clusters)

    present = np.unique(cluster)
    sizes_ml = [np.nanmean(features[cluster == one, VOLUME]) for one in present]
    rank = np.empty(present.max() + 1, dtype=np.intp)
    rank[present[np.argsort(sizes_ml)]] = np.arange(len(present))
    return rank[cluster], [f"cluster {1 + number}" for number in range(len(present))]


def _comparable(one: TrainingMap) -> np.ndarray:
    """(F,) features of a map, NaN where they mean something else than in other maps."""
    if one.source.has_csf:
        return one.features.astype(np.float64)
    # Without the fluid around the brain CSF stands for the ventricles alone.
    is_csf = np.array([name.startswith("csf") for name in FEATURES])
    return np.where(is_csf, np.nan, one.features.astype(np.float64))


def _mixture(points: np.ndarray, clusters: int) -> np.ndarray:
    """(N,) component of a Gaussian mixture that each point (N, C) belongs to."""
    clusters = min(clusters, len(np.unique(points.round(6), axis=0)))
    if clusters == 1:
        return np.zeros(len(points), dtype=np.intp)
    try:
        from sklearn.mixture import GaussianMixture
    except ModuleNotFoundError as problem:
        raise UsageProblem(
            "sampling.by = 'shape' needs scikit-learn; install it, or set sampling.by to 'dataset'"
        ) from problem
    mixture = GaussianMixture(
        clusters, reg_covar=LEAST_VARIANCE, n_init=_STARTS, max_iter=500, random_state=_SEED
    )
    return mixture.fit_predict(points)


def _line(name: str, members: Sequence[TrainingMap], chances: np.ndarray) -> str:
    """What a group holds: number of maps, share of the samples, mean volume, data sets."""
    words = [f"{len(members)} maps", f"{chances.sum():.1%} of samples"]
    volumes_ml = [one.features[VOLUME] for one in members if len(one.features)]
    if volumes_ml:
        words.append(f"brain {np.mean(volumes_ml):.0f} ml")
    datasets = Counter(one.dataset for one in members)
    words += [f"{dataset} {count}" for dataset, count in sorted(datasets.items())]
    return f"{name}: {', '.join(words)}"
