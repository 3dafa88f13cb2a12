"""Contrast: what is shared is equal, what is not differs, ranges hold."""

import numpy as np
import pytest

from bids_synthseg.synthesis.contrast import TISSUE_OF, ContrastConfig, draw_contrast

NAMES = ("background", "white", "white", "grey", "grey", "csf", "other", "other")
TISSUES = np.array([TISSUE_OF[name] for name in NAMES])
TWINS = np.array([0, 2, 1, 4, 3, 5, 6, 7])


def drawn(seed: int = 0, **config: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return draw_contrast(ContrastConfig(**config), TISSUES, TWINS, rng)


@pytest.mark.parametrize("seed", range(5))
def test_sides_are_alike_or_not(seed):
    means, spreads = drawn(seed, side_sharing=1, tissue_sharing=0)
    assert (means == means[TWINS]).all() and (spreads == spreads[TWINS]).all()
    means, _ = drawn(seed, side_sharing=0, tissue_sharing=0)
    assert means[1] != means[2] and means[3] != means[4]


@pytest.mark.parametrize("seed", range(5))
def test_tissue_is_shared_without_jitter_by_all_but_other(seed):
    means, spreads = drawn(seed, tissue_sharing=1, tissue_jitter=0, side_sharing=0)
    assert means[1] == means[2] and means[3] == means[4]
    assert len({*means[[1, 3, 5, 6, 7]].tolist()}) == 5
    assert len({*spreads[1:6].tolist()}) == 1 and spreads[6] != spreads[7]


def test_values_stay_in_range_and_are_float32():
    for seed in range(50):
        means, spreads = drawn(seed, tissue_jitter=0.5)
        assert means.dtype == spreads.dtype == np.float32
        assert means.min() >= 0 and means.max() <= 1
        assert spreads.min() >= 0 and spreads.max() <= ContrastConfig().noise_max


def test_background_is_black_as_often_as_asked():
    dark = np.mean([drawn(seed)[0][0] == 0 for seed in range(400)])
    assert dark == pytest.approx(0.8, abs=0.06)  # three standard errors
    assert all(drawn(seed, dark_background=1)[0][0] == 0 for seed in range(5))
    assert all(drawn(seed, dark_background=0)[0][0] > 0 for seed in range(5))


def test_a_t2_like_contrast_has_the_order_of_tissues_of_a_newborn():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        means, _ = draw_contrast(ContrastConfig(noise_max=0.05), TISSUES, TWINS, rng, t2_like=True)
        fluid, white, grey = (
            means[TISSUE_OF[t] == TISSUES].mean() for t in ("csf", "white", "grey")
        )
        assert fluid > white > grey - 0.1  # jitter of single structures, two of each at most
        assert fluid > 0.6
