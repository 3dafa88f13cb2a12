import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from bids_synthseg.errors import BadData, UsageProblem
from bids_synthseg.learning.features import FEATURES
from bids_synthseg.learning.maps import TrainingMap
from bids_synthseg.learning.sampling import MODES, SamplingConfig, map_chances, with_ages

NAN = float("nan")
# Volume, surface, surface / volume; then CSF, grey, white matter: volume / brain, surface / volume.
FETUS = (70, 180, 0.27, 0.5, 0.3, 0.7, 0.6, 1.2, 0.37)
NEWBORN = (340, 510, 0.15, 0.25, 0.4, 0.6, 0.8, 0.8, 0.3)
ADULT = (1100, 2260, 0.21, 0.4, 0.55, 0.45, 0.7, 0.7, 0.4)
BRAINS = {"fetus": FETUS, "newborn": NEWBORN, "adult": ADULT}


def one_map(dataset, features=(), age_weeks=NAN, has_csf=True):
    return TrainingMap(
        name="sub-01",
        subject="01",
        dataset=dataset,
        source=SimpleNamespace(has_csf=has_csf),
        sets=np.ones((1, 1), dtype=bool),
        age_weeks=age_weeks,
        features=np.array(features, dtype=np.float32),
    )


def family(n_fetuses=6, n_newborns=10, n_adults=20):
    """Brains of three kinds, each a few per cent about its kind."""
    rng = np.random.default_rng(5)
    counts = {"fetus": n_fetuses, "newborn": n_newborns, "adult": n_adults}
    return [
        one_map(kind, BRAINS[kind] * np.exp(0.05 * rng.standard_normal(len(FEATURES))))
        for kind, count in counts.items()
        for _ in range(count)
    ]


def by_shape(**changes):
    return SamplingConfig(**{"by": "shape", "clusters": 3, "temper": 0.0, **changes})


def test_data_sets_share_evenly_and_divide_among_their_maps():
    maps = [one_map(name) for name in ("a", "a", "a", "b")]
    for weights, expected in (
        ({}, [1 / 6, 1 / 6, 1 / 6, 1 / 2]),
        ({"a": 3.0}, [0.25] * 4),
        ({"b": 0.0}, [1 / 3, 1 / 3, 1 / 3, 0]),
    ):
        # Data sets are balanced as they are told to be; there is nothing to temper.
        for temper in (0.0, 0.9):
            found = map_chances(maps, SamplingConfig(weights=weights, temper=temper))
            np.testing.assert_allclose(found.chances, expected)
    np.testing.assert_array_equal(found.groups, [0, 0, 0, 1])


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ({"c": 1.0}, "no data set is named 'c'; known are a, b"),
        ({"a": 0.0, "b": 0.0}, "at least one must be above 0"),
    ],
)
@pytest.mark.parametrize("by", MODES)
def test_weights_that_leave_nothing_to_draw(weights, complaint, by):
    maps = [one_map("a", FETUS), one_map("b", ADULT)]
    with pytest.raises(BadData, match=complaint):
        map_chances(maps, SamplingConfig(by=by, weights=weights))


def test_uniform():
    maps = [one_map(name) for name in ("a", "a", "a", "b")]
    found = map_chances(maps, SamplingConfig(by="uniform"))
    np.testing.assert_allclose(found.chances, 0.25)
    weighted = map_chances(maps, SamplingConfig(by="uniform", weights={"b": 2.0}))
    np.testing.assert_allclose(weighted.chances, [0.2, 0.2, 0.2, 0.4])


def test_ages_share_evenly():
    ages = (25.0, 40.0, NAN, 36.9, 37.0, 25.9, 26.0, NAN)
    maps = [one_map("a", age_weeks=age) for age in ages]
    config = SamplingConfig(by="age", temper=0.0, age_edges_weeks=(26.0, 37.0, 60.0))
    found = map_chances(maps, config)
    np.testing.assert_array_equal(found.groups, [0, 2, 3, 1, 2, 0, 1, 3])  # none from 60 weeks
    np.testing.assert_allclose(found.chances, 1 / 8)
    assert [line.split(":")[0] for line in found.lines] == [
        "under 26 weeks", "26 to 37 weeks", "37 to 60 weeks", "age unknown",
    ]  # fmt: skip
    found = map_chances(maps[:4], replace(config, temper=0.4, age_edges_weeks=(37.0,)))
    # Under 37 weeks: two maps, from 37: one, unknown: one.
    expected = 0.6 * np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6]) + 0.4 / 4
    np.testing.assert_allclose(found.chances, expected)
    unbroken = map_chances(maps[:2], replace(config, age_edges_weeks=()))
    assert unbroken.lines[0].startswith("any age: 2 maps, 100.0% of samples")


def test_brains_of_a_kind_make_a_cluster_and_clusters_share_evenly():
    found = map_chances(family(), by_shape())
    np.testing.assert_array_equal(found.groups, np.repeat([0, 1, 2], [6, 10, 20]))
    np.testing.assert_allclose(found.chances, np.repeat([1 / 18, 1 / 30, 1 / 60], [6, 10, 20]))
    first, _, last = found.lines
    assert first.startswith("cluster 1: 6 maps, 33.3% of samples, brain ")
    assert last.endswith("ml, adult 20")


def test_temper_leads_to_uniform():
    maps = family()
    balanced, half, even = (map_chances(maps, by_shape(temper=t)).chances for t in (0.0, 0.5, 1.0))
    np.testing.assert_allclose(even, 1 / 36)
    np.testing.assert_allclose(half, (balanced + even) / 2)


def test_data_set_weights_multiply_in_every_mode():
    maps = family()
    is_adult = np.array([one.dataset == "adult" for one in maps])
    for by in MODES:
        plain = map_chances(maps, by_shape(by=by)).chances
        weighted = map_chances(maps, by_shape(by=by, weights={"adult": 3.0})).chances
        ratio = weighted / plain
        np.testing.assert_allclose(ratio[is_adult], 3 * ratio[0])
        np.testing.assert_allclose(ratio[~is_adult], ratio[0])


@pytest.mark.parametrize("by", MODES)
def test_order_does_not_matter(by):
    maps = [replace(one, age_weeks=20.0 + n) for n, one in enumerate(family())]
    # Of many clusters the fit alone decides, and it starts at random.
    config = SamplingConfig(by=by, clusters=7)
    found = map_chances(maps, config)
    assert found.chances.sum() == pytest.approx(1)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(maps))
        moved = map_chances([maps[n] for n in order], config)
        np.testing.assert_array_equal(moved.groups, found.groups[order])
        np.testing.assert_allclose(moved.chances, found.chances[order])


def test_unknown_features_decide_nothing():
    maps = family()
    for n in (0, 7, 30):
        known = maps[n].features.copy()
        known[[3, 5, 6, 8]] = NAN
        maps[n] = replace(maps[n], features=known)
    groups = map_chances(maps, by_shape()).groups
    np.testing.assert_array_equal(groups, np.repeat([0, 1, 2], [6, 10, 20]))


def test_ventricles_alone_are_not_compared_with_all_fluid():
    maps = family()
    ventricles = maps[30].features.copy()
    ventricles[[3, 6]] = 1e-5, 40.0
    groups = {
        has_csf: map_chances(
            [*maps, one_map("adult", ventricles, has_csf=has_csf)], by_shape()
        ).groups
        for has_csf in (True, False)
    }
    np.testing.assert_array_equal(groups[False], np.repeat([0, 1, 2], [6, 10, 21]))
    assert groups[True].tolist() != groups[False].tolist()


def test_brains_are_compared_by_factors():
    # In ml the first two kinds are ten times closer to each other than to the third.
    spread = np.exp(0.1 * np.random.default_rng(0).standard_normal(24))
    volumes_ml = np.repeat([60, 180, 1200], 8) * spread
    maps = [one_map("a", (volume_ml, *ADULT[1:])) for volume_ml in volumes_ml]
    groups = map_chances(maps, by_shape()).groups
    np.testing.assert_array_equal(groups, np.repeat([0, 1, 2], 8))


@pytest.mark.parametrize("n_maps", [1, 2, 5])
def test_fewer_brains_than_clusters(n_maps):
    alike = [one_map("a", NEWBORN)] * n_maps
    found = map_chances(alike, by_shape())
    np.testing.assert_allclose(found.chances, 1 / n_maps)
    assert len(found.lines) == 1
    found = map_chances([*alike, one_map("b", ADULT)], by_shape())
    np.testing.assert_allclose(found.chances, [0.5 / n_maps] * n_maps + [0.5])


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.mixture", None)
    with pytest.raises(UsageProblem, match="needs scikit-learn; install it, or set"):
        map_chances(family(), by_shape())
    for by in ("dataset", "uniform", "age"):
        assert map_chances(family(), by_shape(by=by)).chances.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"by": "volume"}, "by must be one of dataset, uniform, age, shape, not 'volume'"),
        ({"clusters": 0}, "at least 1"),
        ({"temper": 1.1}, "a share"),
        ({"age_edges_weeks": (40.0, 30.0)}, "ascend"),
        ({"age_edges_weeks": (40.0, 40.0)}, "ascend"),
    ],
)
def test_bad_settings(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        SamplingConfig(**changes)


def test_ages_that_no_data_set_states_and_shares_of_intervals():
    maps = [one_map("a", age_weeks=30.0), one_map("a"), one_map("b"), one_map("c")]
    maps = with_ages(maps, {"b": 60.0, "a": 40.0, "a/01": 20.0})
    # What is stated stays; a subject goes before its data set.
    np.testing.assert_allclose([m.age_weeks for m in maps], [30, 20, 60, NAN])
    config = SamplingConfig(
        by="age", temper=0.0, age_edges_weeks=(37.0, 100.0), age_shares=(1.0, 3.0, 0.0)
    )
    found = map_chances(maps, config)
    # Two young ones share a fifth; the unknown age counts as one more interval of share 1.
    np.testing.assert_allclose(found.chances, [0.1, 0.1, 0.6, 0.2])


@pytest.mark.parametrize(
    ("ages", "shares", "complaint"),
    [
        ({"x": 1.0}, (), "no data set or subject is named 'x'"),
        ({}, (1.0, 1.0), "no map is of the age from 37 weeks"),
    ],
)
def test_a_band_without_maps_and_an_unknown_name_are_told(ages, shares, complaint):
    config = SamplingConfig(by="age", age_edges_weeks=(37.0,), age_shares=shares, ages=ages)
    with pytest.raises(BadData, match=complaint):
        map_chances(with_ages([one_map("a", age_weeks=30.0)], config.ages), config)


def test_shares_are_one_for_each_interval():
    with pytest.raises(ValueError, match="age_shares: 2 numbers"):
        SamplingConfig(age_edges_weeks=(37.0,), age_shares=(1.0,))
