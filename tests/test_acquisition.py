"""Acquisition: zero strength is identity, blur follows SynthSeg's rule, a constant stays one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bids_synthseg.learning.validation import UNTOUCHED
from bids_synthseg.synthesis.acquisition import (
    AcquisitionConfig,
    AcquisitionDraw,
    acquire,
    blur,
    blur_sigma,
    draw_acquisition,
)

SHAPE = (18, 20, 16)
STILL = AcquisitionDraw(
    bias=np.zeros((2, 2, 2), dtype=np.float32),
    gamma=1.0,
    spacing=(1.0, 1.0, 1.0),
    thickness=(1.0, 1.0, 1.0),
    blur=0.0,
    noise=0.0,
)


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))


def test_zero_strength_is_identity(image, noise):
    assert torch.equal(acquire(image, STILL, noise), image)


@pytest.mark.parametrize("seed", range(5))
def test_untouched_configuration_draws_zero_strength(image, noise, seed):
    drawn = draw_acquisition(UNTOUCHED.acquisition, np.random.default_rng(seed))
    assert torch.equal(acquire(image, drawn, noise), image)


@pytest.mark.parametrize(
    "effect",
    [
        {"bias": np.full((2, 2, 2), 0.3, dtype=np.float32)},
        {"gamma": 1.4},
        {"spacing": (1.0, 3.0, 1.0)},
        {"blur": 1.0},
        {"noise": 0.1},
    ],
    ids=lambda effect: next(iter(effect)),
)
def test_each_effect_does_something(image, noise, effect):
    changed = acquire(image, replace(STILL, **effect), noise)
    assert changed.shape == image.shape
    assert (changed - image).abs().mean() > 0.01


@pytest.mark.parametrize(
    ("spacing", "thickness", "sigma"),
    [(1, 1, 0.5), (2, 2, 1.5), (4, 4, 3.0), (4, 2, 1.5), (3, 1, 0.5), (1, 5, 0.5)],
)
def test_blur_sigma_is_that_of_synthseg(spacing, thickness, sigma):
    assert blur_sigma(spacing, thickness) == sigma


def test_blur_spreads_a_point_by_its_sigma():
    point = torch.zeros(31, 31, 31)
    point[15, 15, 15] = 1
    blurred = blur(point, (2.0, 1.0, 0.0))
    place = torch.arange(31) - 15.0
    variances = [
        float((blurred.sum(dim=[a for a in range(3) if a != axis]) * place**2).sum())
        for axis in range(3)
    ]
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-5)
    # The kernel ends after 2.5 sigma, which takes a tenth of the variance.
    assert variances[0] == pytest.approx(4.0, rel=0.15)
    assert variances[1] == pytest.approx(1.0, rel=0.15)
    assert variances[2] == 0


@pytest.mark.parametrize("sigma", [0.5, 1.5, 3.0])
def test_blurred_constant_stays_constant_inside(sigma):
    blurred = blur(torch.full((30, 30, 30), 0.7), (sigma, sigma, sigma))
    torch.testing.assert_close(blurred[8:-8, 8:-8, 8:-8], torch.full((14, 14, 14), 0.7))


def test_thick_slices_keep_the_place(noise):
    ramp = torch.arange(20.0).view(1, 20, 1).expand(*SHAPE) / 20
    resampled = acquire(ramp, replace(STILL, spacing=(1.0, 2.5, 1.0)), noise)
    torch.testing.assert_close(resampled[:, 3:-3], ramp[:, 3:-3], atol=1e-5, rtol=0)


def test_noise_is_a_fraction_of_the_images_sd(noise):
    image = 10 + torch.rand(SHAPE, generator=torch.Generator().manual_seed(3))
    added = acquire(image, replace(STILL, noise=0.2), noise) - image
    assert float(added.std()) == pytest.approx(0.2 * float(image.std()), rel=0.05)


def test_gamma_and_bias_by_hand(noise):
    image = torch.tensor([0.0, 0.25, 1.0]).view(3, 1, 1).expand(3, 3, 3)
    changed = acquire(image, replace(STILL, gamma=2.0), noise)
    torch.testing.assert_close(changed[:, 0, 0], torch.tensor([0.0, 0.0625, 1.0]))
    bias = np.full((2, 2, 2), np.log(2), dtype=np.float32)
    doubled = acquire(image, replace(STILL, bias=bias), noise)
    torch.testing.assert_close(doubled, 2 * image)


def test_draws_stay_in_their_ranges():
    config = AcquisitionConfig()
    kinds = []
    for seed in range(300):
        drawn = draw_acquisition(config, np.random.default_rng(seed))
        spacing = np.array(drawn.spacing)
        kinds.append((spacing > 1).sum())
        assert (np.array(drawn.thickness) <= np.maximum(spacing, 1 + 1e-6)).all()
        assert spacing.max() <= (config.isotropic_max if kinds[-1] == 3 else config.spacing_max)
        assert 0 <= drawn.noise <= config.noise_max and drawn.gamma > 0
    shares = [np.mean(np.array(kinds) == n) for n in (0, 1, 3)]
    # Within three standard errors of the probabilities 0.4, 0.25 and 0.35.
    np.testing.assert_allclose(shares, [0.4, 0.25, 0.35], atol=0.085)


@pytest.mark.parametrize(
    "wrong", [{"sharp": 0.8, "one_axis": 0.4}, {"bias": -1.0}, {"spacing_max": 0.5}]
)
def test_impossible_ranges_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AcquisitionConfig(**wrong)
