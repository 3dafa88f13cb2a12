"""Contrast: what is shared is equal, what is not differs, ranges hold, priors are met."""

import numpy as np
import pytest

from bids_synthseg.errors import InputMissing, UsageProblem
from bids_synthseg.synthesis.contrast import (
    TISSUE_OF,
    ContrastConfig,
    ContrastDraw,
    draw_contrast,
)
from bids_synthseg.synthesis.priors import SPREAD_FLOOR, read_priors

NAMES = ("background", "white", "white", "grey", "grey", "csf", "other", "other", "white", "white")
TISSUES = np.array([TISSUE_OF[name] for name in NAMES])
TWINS = np.array([0, 2, 1, 4, 3, 5, 6, 7, 9, 8])
# White matter, cortex, fluid, two classes without priors, second components of white matter.
LABELS = np.array([0, 2, 41, 3, 42, 24, -1, 0, 21, 61])

HEADER = "contrast\tlabel\tname\tcentre_mean\tcentre_sd\tspread_mean\tspread_sd\tsubjects\n"


def drawn(seed: int = 0, **config) -> ContrastDraw:
    rng = np.random.default_rng(seed)
    return draw_contrast(ContrastConfig(**config), TISSUES, TWINS, LABELS, rng)


@pytest.fixture
def table(tmp_path):
    """Priors of three labels: white matter, cortex and fluid, far apart and narrow."""
    path = tmp_path / "own.tsv"
    rows = [(2, 0.3, 0.02, 0.05, 0.01), (3, 0.6, 0.02, 0.05, 0.01), (24, 0.9, 0.02, 0.05, 0.01)]
    lines = [
        "T2w\t"
        + "\t".join(["x" if n == 1 else str(v) for n, v in enumerate([r[0], "", *r[1:]])])
        + "\t4\n"
        for r in rows
    ]
    path.write_text(HEADER + "".join(lines), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("seed", range(5))
def test_sides_are_alike_or_not(seed):
    one = drawn(seed, side_sharing=1, tissue_sharing=0)
    assert (one.means == one.means[TWINS]).all() and (one.spreads == one.spreads[TWINS]).all()
    means = drawn(seed, side_sharing=0, tissue_sharing=0).means
    assert means[1] != means[2] and means[3] != means[4]


@pytest.mark.parametrize("seed", range(5))
def test_tissue_is_shared_without_jitter_by_all_but_other(seed):
    one = drawn(seed, tissue_sharing=1, tissue_jitter=0, side_sharing=0)
    assert len({*one.means[[1, 2, 8, 9]].tolist()}) == 1 and one.means[3] == one.means[4]
    assert len({*one.means[[1, 3, 5, 6, 7]].tolist()}) == 5
    assert len({*one.spreads[1:6].tolist()}) == 1 and one.spreads[6] != one.spreads[7]


def test_values_stay_in_range_and_are_float32():
    for seed in range(50):
        one = drawn(seed, tissue_jitter=0.5)
        assert one.means.dtype == one.spreads.dtype == np.float32
        assert one.means.min() >= 0 and one.means.max() <= 1
        assert one.spreads.min() >= 0 and one.spreads.max() <= ContrastConfig().spread_max
        assert one.contrast == ""


def test_ranges_are_those_asked_for():
    asked = {"mean_min": 0.1, "mean_max": 0.9, "spread_min": 0.02, "spread_max": 0.1}
    many = [
        drawn(s, tissue_sharing=s % 2, tissue_jitter=0, dark_background=0, **asked)
        for s in range(200)
    ]
    means, spreads = (np.stack([getattr(one, n) for one in many]) for n in ("means", "spreads"))
    assert 0.1 <= means.min() < 0.12 and 0.88 < means.max() <= 0.9
    assert 0.02 <= spreads.min() < 0.022 and 0.098 < spreads.max() <= 0.1


def test_background_is_black_or_dim_as_often_as_asked():
    dark = np.mean([drawn(seed).means[0] == 0 for seed in range(400)])
    assert dark == pytest.approx(0.8, abs=0.06)  # three standard errors
    assert all(drawn(seed, dark_background=1).means[0] == 0 for seed in range(5))
    assert all(drawn(seed, dark_background=0).means[0] > 0 for seed in range(5))
    dim = np.array([drawn(s, dark_background=0, dim_background=1).means[0] for s in range(50)])
    assert (dim > 0).all() and 0.05 < dim.max() <= 0.06


def test_fused_classes_take_the_first_of_their_set():
    one = drawn(fuse=1, tissue_sharing=0, side_sharing=0)
    white = [1, 2, 8, 9]
    assert len({*one.means[white].tolist()}) == 1 and len({*one.spreads[white].tolist()}) == 1
    plain = drawn(fuse=0, tissue_sharing=0, side_sharing=0)
    assert one.means[1] == plain.means[1] and len({*plain.means[white].tolist()}) == 4
    others = np.setdiff1d(np.arange(1, len(LABELS)), white)
    assert (one.means[others] == plain.means[others]).all()
    own = drawn(fuse=1, fuse_sets=("3 42", "99"), tissue_sharing=0, side_sharing=0)
    assert own.means[3] == own.means[4] and own.means[1] != own.means[2]


def test_the_spread_of_scans_has_a_limit(table):
    capped = drawn(1, prior=1, prior_table=table, prior_spread_max=0.01)
    assert capped.spreads[1:6] == pytest.approx(0.01)  # the table says 0.05


def test_the_coins_of_sharing_are_independent():
    many = [drawn(s, fuse=0.5, side_sharing=0.5, tissue_sharing=0) for s in range(400)]
    fused = np.array([one.means[1] == one.means[8] for one in many])
    alike = np.array([one.means[3] == one.means[4] for one in many])
    for coins in (fused & alike, fused & ~alike, ~fused & alike, ~fused & ~alike):
        assert coins.mean() == pytest.approx(0.25, abs=0.065)


def test_priors_are_met_by_classes_that_have_one(table):
    asked = {"prior": 1, "prior_table": table, "tissue_sharing": 0, "side_sharing": 0}
    many = [drawn(seed, **asked) for seed in range(300)]
    means, spreads = (np.stack([getattr(one, n) for one in many]) for n in ("means", "spreads"))
    assert {one.contrast for one in many} == {"T2w"}
    wanted = {1: 0.3, 2: 0.3, 3: 0.6, 4: 0.6, 5: 0.9, 8: 0.3, 9: 0.3}
    for number, mean in wanted.items():
        assert means[:, number].mean() == pytest.approx(mean, abs=0.005)
        assert means[:, number].std() == pytest.approx(0.02, abs=0.004)
        assert spreads[:, number].mean() == pytest.approx(0.05, abs=0.003)
    assert spreads.min(axis=0)[list(wanted)].min() >= np.float32(SPREAD_FLOOR)
    assert means[:, 6].std() > 0.25 and means[:, 7].std() > 0.25  # as without priors
    assert np.mean(means[:, 0] == 0) == pytest.approx(0.8, abs=0.07)
    assert np.abs(np.corrcoef(means[:, 1], means[:, 2])[0, 1]) < 0.2


def test_with_priors_a_tissue_deviates_together(table):
    asked = {"prior": 1, "prior_table": table, "tissue_sharing": 1, "side_sharing": 0}
    means = np.stack([drawn(seed, **asked).means for seed in range(100)])
    assert (means[:, 1] == means[:, 8]).all()
    assert np.abs(np.corrcoef(means[:, 1], means[:, 3])[0, 1]) < 0.35


def test_priors_are_used_as_often_as_asked_of_contrasts_asked_for():
    contrasts = [drawn(seed, prior=0.5).contrast for seed in range(300)]
    assert np.mean([name == "" for name in contrasts]) == pytest.approx(0.5, abs=0.09)
    assert contrasts.count("T1w") == pytest.approx(75, abs=24)
    assert {drawn(s, prior=1, prior_contrasts=("T2w",)).contrast for s in range(20)} == {"T2w"}


@pytest.mark.parametrize(
    ("contrast", "order"), [("T1w", ("csf", "white", "grey")), ("T2w", ("grey", "white", "csf"))]
)
def test_a_newborn_has_the_order_of_tissues_of_a_newborn(contrast, order):
    """Unmyelinated white matter (classes 1, 2) is dark on T1w and bright on T2w."""
    classes = {"csf": [5], "white": [1, 2], "grey": [3, 4]}
    for seed in range(50):
        means = drawn(seed, prior=1, prior_contrasts=(contrast,)).means
        low, middle, high = (means[classes[name]].mean() for name in order)
        assert low < middle < high


def test_a_table_without_the_contrast_asked_for_is_refused(table):
    with pytest.raises(UsageProblem, match=r"has T2w but none of prior_contrasts T1w"):
        drawn(prior=1, prior_table=table, prior_contrasts=("T1w",))
    with pytest.raises(InputMissing, match="adult, fetal, months-12, months-3, newborn"):
        drawn(prior=1, prior_table="absent")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mean_min", 1.1),
        ("spread_min", 0.2),
        ("tissue_jitter", -1),
        ("prior", 1.5),
        ("fuse", -0.1),
        ("dim_background", 0.3),
        ("fuse_sets", ("2 left",)),
    ],
)
def test_a_setting_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match=field.split("_")[0]):
        ContrastConfig(**{field: value})


def test_same_seed_same_contrast_whatever_was_drawn_before():
    first, _, again = (drawn(seed, prior=0.5, fuse=0.5) for seed in (3, 4, 3))
    assert (first.means == again.means).all() and (first.spreads == again.spreads).all()
    assert read_priors("newborn").keys() == {"T1w", "T2w"}


def test_priors_follow_the_age():
    """White matter darker than cortex in newborns' T1w, brighter in adults', alike in between."""
    ages = {"newborn": 40.0, "months-3": 53.0, "months-12": 92.0, "adult": 1300.0}
    config = ContrastConfig(
        prior=1.0, prior_contrasts=("T1w",), prior_ages=ages, prior_age_sd=0.0, side_sharing=0
    )

    def difference(age_weeks: float) -> float:
        means = [
            draw_contrast(
                config, TISSUES, TWINS, LABELS, np.random.default_rng(seed), age_weeks
            ).means
            for seed in range(60)
        ]
        return float(np.mean([m[1] - m[3] for m in means]))

    by_age = [difference(age) for age in (30.0, 40.0, 65.0, 92.0, 1300.0, 3000.0)]
    assert by_age[0] == pytest.approx(by_age[1], abs=0.03) and by_age[1] < -0.1
    assert abs(by_age[2]) < 0.08 < by_age[3] < by_age[4] - 0.1
    assert by_age[4] == pytest.approx(by_age[5], abs=0.03)


def test_an_unknown_age_may_be_any():
    ages = {"newborn": 40.0, "adult": 1300.0}
    config = ContrastConfig(prior=1.0, prior_contrasts=("T1w",), prior_ages=ages)
    means = [
        draw_contrast(config, TISSUES, TWINS, LABELS, np.random.default_rng(seed)).means
        for seed in range(80)
    ]
    signs = {bool(m[1] > m[3]) for m in means}
    assert signs == {True, False}


def test_a_contrast_that_only_some_tables_have():
    ages = {"fetal": 30.0, "newborn": 40.0}
    config = ContrastConfig(prior=1.0, prior_contrasts=("T1w",), prior_ages=ages)
    found = draw_contrast(config, TISSUES, TWINS, LABELS, np.random.default_rng(0), 28.0)
    assert found.contrast == "T1w"
