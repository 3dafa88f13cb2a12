"""Acquisition: zero strength is identity, blur follows SynthSeg's rule, a constant stays one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

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
    noise_relative=True,
    rician=False,
)
NOTHING = AcquisitionConfig(bias=0, gamma=0, noise_max=0, sharp=1, one_axis=0, blur=0)


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(2))


def test_zero_strength_is_identity(image, noise):
    assert torch.equal(acquire(image, STILL, noise), image)


@pytest.mark.parametrize("seed", range(5))
def test_configuration_of_nothing_draws_zero_strength(image, noise, seed):
    drawn = draw_acquisition(NOTHING, np.random.default_rng(seed))
    assert torch.equal(acquire(image, drawn, noise), image)


@pytest.mark.parametrize(
    "effect",
    [
        {"bias": np.full((2, 2, 2), 0.3, dtype=np.float32)},
        {"gamma": 1.4},
        {"spacing": (1.0, 3.0, 1.0)},
        {"blur": 1.0},
        {"noise": 0.1},
        {"noise": 0.1, "rician": True},
    ],
    ids=lambda effect: list(effect)[-1],
)
def test_each_effect_does_something(image, noise, effect):
    changed = acquire(image, replace(STILL, **effect), noise)
    assert changed.shape == image.shape
    assert (changed - image).abs().mean() > 0.01


@pytest.mark.parametrize(
    ("spacing", "thickness", "sigma"),
    [
        (1, 1, 0.5),
        (2, 2, 1.5),
        (4, 4, 3.0),
        (8, 8, 6.0),
        (4, 2, 1.5),
        (3, 1, 0.5),
        (1, 5, 0.5),
    ],
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


def test_blur_sees_black_beyond_the_border():
    blurred = blur(torch.ones(9, 3, 3), (1.5, 0.0, 0.0))[:, 1, 1]
    taps = np.exp(-0.5 * (np.arange(-4, 5) / 1.5) ** 2)
    assert blurred[0].item() == pytest.approx(taps[4:].sum() / taps.sum(), abs=1e-6)
    assert blurred[4].item() == pytest.approx(1, abs=1e-6)


def test_slice_is_the_blurred_line_where_it_lies(noise):
    """Two voxels of a line become one: the mean of both, after the blur."""
    image = torch.rand((4, 6, 8), generator=torch.Generator().manual_seed(4))
    drawn = replace(STILL, spacing=(1.0, 1.0, 2.0), thickness=(1.0, 1.0, 2.0), blur=0.4)
    # 0.4 of the published 0.75 * 2, and of 0.5 along the sharp axes.
    mean = blur(image, (0.2, 0.2, 0.6)).reshape(4, 6, 4, 2).mean(-1)
    slices = acquire(image, drawn, noise[:, :4, :6, :8])
    # Back on the fine grid a voxel lies a quarter of a slice away from its slice's middle.
    expected = 0.75 * mean[..., 1] + 0.25 * mean[..., 2]
    torch.testing.assert_close(slices[..., 3], expected, atol=1e-6, rtol=0)


def test_thick_slices_keep_the_place(noise):
    ramp = torch.arange(20.0).view(1, 20, 1).expand(*SHAPE) / 20
    resampled = acquire(ramp, replace(STILL, spacing=(1.0, 2.5, 1.0)), noise)
    torch.testing.assert_close(resampled[:, 3:-3], ramp[:, 3:-3], atol=1e-5, rtol=0)


def test_noise_is_a_fraction_of_the_images_sd(noise):
    image = 10 + torch.rand(SHAPE, generator=torch.Generator().manual_seed(3))
    added = acquire(image, replace(STILL, noise=0.2), noise) - image
    assert float(added.std()) == pytest.approx(0.2 * float(image.std()), rel=0.05)


def test_noise_on_the_scale_of_intensities(noise):
    drawn = replace(STILL, noise=0.2, noise_relative=False)
    torch.testing.assert_close(acquire(torch.full(SHAPE, 9.0), drawn, noise), 9 + 0.2 * noise[0])


def test_rician_noise_is_the_length_of_a_complex_signal(noise):
    drawn = replace(STILL, noise=0.1, noise_relative=False, rician=True)
    image = torch.zeros(SHAPE)
    image[:9] = 5.0
    noisy = acquire(image, drawn, noise)
    expected = torch.hypot(image + 0.1 * noise[0], 0.1 * noise[1])
    torch.testing.assert_close(noisy, expected)
    # In air the mean is sqrt(pi / 2) SDs, not 0 (Gudbjartsson and Patz 1995).
    assert noisy[9:].mean().item() == pytest.approx(0.1 * np.sqrt(np.pi / 2), rel=0.05)


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


def draws(**config: object) -> list[AcquisitionDraw]:
    rng = np.random.default_rng(5)
    return [draw_acquisition(AcquisitionConfig(**config), rng) for _ in range(300)]


def test_lowest_noise_and_bias_are_kept():
    drawn = draws(noise_min=0.1, noise_max=0.2, bias_min=0.3, bias=0.4, bias_nodes=9)
    assert 0.1 <= min(d.noise for d in drawn) < 0.11 < 0.19 < max(d.noise for d in drawn) <= 0.2
    sds = np.array([d.bias.std() for d in drawn if len(d.bias) > 6])
    assert 0.25 < sds.min() < sds.max() < 0.45
    assert {len(d.bias) for d in drawn} == set(range(2, 10))
    assert {len(d.bias) for d in draws(bias_nodes_min=4, bias_nodes=4)} == {4}


@pytest.mark.parametrize(
    ("key", "happened"),
    [
        ("bias_probability", lambda d: d.bias.any()),
        ("rician", lambda d: d.rician),
        ("gapless", lambda d: d.thickness == d.spacing),
    ],
)
def test_probabilities_of_single_effects(key, happened):
    thick = {"sharp": 0.0, "one_axis": 1.0}
    for probability in (0.0, 0.4, 1.0):
        share = np.mean([happened(d) for d in draws(**thick, **{key: probability})])
        assert share == pytest.approx(
            probability, abs=3 * np.sqrt(0.24 / 300) * (probability % 1 > 0)
        )


def test_sharp_blur_is_for_the_resolution_of_the_grid_alone():
    for d in draws(sharp=0.5, one_axis=0.2, sharp_blur=0.0, blur=2.0, blur_jitter=0.1):
        assert d.blur == 0 if max(d.spacing) == 1 else 1.8 <= d.blur <= 2.2


def test_uneven_resolution_is_drawn_for_each_axis():
    coarse = {"sharp": 0.0, "one_axis": 0.0, "isotropic_max": 4.0}
    assert all(len(set(d.spacing)) == 1 for d in draws(**coarse))
    uneven = np.array([d.spacing for d in draws(**coarse, uneven=True)])
    assert all(len(set(row)) == 3 for row in uneven)
    assert 1 <= uneven.min() < 1.1 and 3.9 < uneven.max() <= 4


def test_thick_slices_start_at_the_smallest_spacing():
    thick = {"sharp": 0.0, "one_axis": 1.0, "spacing_max": 8.0}
    largest = [max(d.spacing) for d in draws(**thick, spacing_min=3.0)]
    assert 3 <= min(largest) < 3.2 and 7.8 < max(largest) <= 8
    assert all(max(d.spacing) == 1 for d in draws(**thick | {"spacing_max": 1.0}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"sharp": 0.8, "one_axis": 0.4},
        {"bias": -1.0},
        {"spacing_max": 0.5},
        {"noise_min": 0.5},
        {"bias_nodes_min": 9},
        {"rician": 1.5},
        {"blur_jitter": 2.0},
    ],
)
def test_impossible_ranges_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AcquisitionConfig(**wrong)


def test_the_field_of_coils_is_smooth_and_as_strong_as_asked():
    found = draws(coil=1.0, coil_max=4.0, bias=0.0)
    ranges = [float(np.exp(np.ptp(draw.bias))) for draw in found]
    assert min(ranges) > 1.2 and max(ranges) <= 4.0**1.2 + 1e-3 and np.median(ranges) > 1.8
    # Between nodes it changes by little: no coil is as near as that.
    steps = [np.abs(np.diff(draw.bias, axis=axis)).max() for draw in found for axis in range(3)]
    assert max(steps) < 1.2
    # Rims are alike on both sides, coils at one side are not.
    uneven = [abs(draw.bias[0] - draw.bias[-1]).mean() for draw in found]
    assert min(uneven) < 0.2 < max(uneven)
    assert all(draw.bias.shape[0] <= 5 for draw in draws(coil=0.0))
