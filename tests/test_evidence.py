"""Evidence: Gaussians of classes by hand, fitted to the image, the same in every contrast."""

import pytest
import torch

from bids_synthseg.models.evidence import SMALLEST_SD, class_gaussians, fit, fit_table, looked_up
from bids_synthseg.models.unet import NetworkConfig, UNet

HALVES = (torch.arange(8) >= 4).view(1, 8, 1, 1).expand(1, 8, 8, 8)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def prior_of(labels: torch.Tensor, sure: float) -> torch.Tensor:
    """(B, 2, X, Y, Z), `sure` of the label."""
    chance = torch.where(labels, torch.tensor(sure), torch.tensor(1 - sure))
    return torch.stack([1 - chance, chance], dim=1)


def test_a_certain_prior_gives_mean_and_spread_of_each_class():
    image = torch.where(HALVES, 1.0, -1.0) + 0.3 * noise(1, 8, 8, 8)
    mean, sd = class_gaussians(image, prior_of(HALVES, 1.0))
    for label in (False, True):
        values = image[label == HALVES]
        # One voxel of 256 stands for the whole image.
        assert float(mean[0, int(label), 0]) == pytest.approx(float(values.mean()), abs=0.01)
        assert float(sd[0, int(label), 0]) == pytest.approx(float(values.std()), abs=0.03)


def test_a_vague_prior_is_sharpened_by_the_image():
    image = torch.where(HALVES, 1.0, -1.0) + 0.2 * noise(1, 8, 8, 8)
    mean, sd = class_gaussians(image, prior_of(HALVES, 0.7))
    torch.testing.assert_close(mean[0, :, 0], torch.tensor([-1.0, 1.0]), atol=0.1, rtol=0)
    assert sd.max() < 0.5  # the prior alone gives 0.9


def test_a_coarser_prior_samples_the_image():
    fine = torch.zeros(1, 8, 8, 8)
    fine[:, 1::2, 1::2, 1::2] = torch.where(HALVES[:, ::2, ::2, ::2], 2.0, 1.0)
    mean, _ = class_gaussians(fine, prior_of(HALVES[:, ::2, ::2, ::2], 1.0))
    torch.testing.assert_close(mean[0, :, 0], torch.tensor([1.0, 2.0]), atol=0.05, rtol=0)


def test_a_class_of_one_value_keeps_a_spread_and_an_absent_one_that_of_the_image():
    image = torch.where(HALVES, 1.0, 0.0)
    prior = torch.cat([prior_of(HALVES, 1.0), torch.zeros(1, 1, 8, 8, 8)], dim=1)
    mean, sd = class_gaussians(image, prior)
    assert float(sd[0, 0, 0]) == pytest.approx(SMALLEST_SD, abs=0.05)
    assert float(mean[0, 2, 0]) == pytest.approx(0.5, abs=1e-3)
    assert float(sd[0, 2, 0]) == pytest.approx(float(image.std()), abs=0.01)


def test_entries_of_a_batch_have_gaussians_of_their_own():
    image = noise(2, 8, 8, 8)
    prior = prior_of(HALVES.expand(2, 8, 8, 8), 0.8)
    both = class_gaussians(image, prior)
    for k in range(2):
        alone = class_gaussians(image[k : k + 1], prior[k : k + 1])
        for got, wanted in zip(both, alone, strict=True):
            torch.testing.assert_close(got[k : k + 1], wanted)


@pytest.mark.parametrize("scale", [1.0, -1.0, 2.0, -0.5])
def test_fit_means_the_same_in_every_contrast(scale):
    image = torch.where(HALVES, 1.0, -1.0) + 0.4 * noise(1, 8, 8, 8)
    prior = prior_of(HALVES, 0.8)

    def fits(values: torch.Tensor) -> torch.Tensor:
        return fit(values.flatten(1)[:, None], *class_gaussians(values, prior))

    torch.testing.assert_close(fits(scale * image + 0.3), fits(image), atol=2e-2, rtol=0)


@pytest.mark.parametrize("stem", [False, True])
def test_the_finest_level_heeds_what_it_is_told(stem):
    torch.manual_seed(0)
    config = NetworkConfig((4, 6), 2, 3, (1, 1), stem=stem, evidence=2)
    net, image = UNet(config), noise(1, 2, 8, 8, 8)
    with torch.no_grad():
        before = net.pyramid(image)
        net.evidence[0].weight.mul_(-3)
        after = net.pyramid(image)
    assert not torch.allclose(before[0], after[0]) and torch.equal(before[1], after[1])


def test_gaussians_have_no_gradient():
    prior = prior_of(HALVES, 0.8).requires_grad_()
    mean, sd = class_gaussians(noise(1, 8, 8, 8).requires_grad_(), prior)
    assert not mean.requires_grad and not sd.requires_grad


@pytest.mark.parametrize(
    "wrong", [{"evidence": 4}, {"evidence": -1}, {"features": (4,), "convs": (1,), "evidence": 1}]
)
def test_impossible_evidence_is_refused(wrong):
    with pytest.raises(ValueError, match="evidence"):
        NetworkConfig(**{"features": (4, 6), "convs": (1, 1), "channels_out": 3, **wrong})


def test_a_table_says_what_the_exponentials_say():
    """Sums of fits over classes, with weights of each channel's own, and their gradient."""
    torch.manual_seed(0)
    image = 1.2 * noise(2, 3, 4, 5, 6).clamp(-1.5, 1.5)
    mean, sd = torch.randn(2, 4, 1), torch.rand(2, 4, 1) + SMALLEST_SD
    weight = torch.randn(7, 4, 3, requires_grad=True)  # features, classes, channels
    fits = fit(image[:, :, None], mean.view(2, 1, 4, 1, 1, 1), sd.view(2, 1, 4, 1, 1, 1))
    expected = torch.einsum("bcnxyz,fnc->bfxyz", fits, weight)
    values, tables = fit_table(image, mean, sd)
    found = looked_up(image, values, torch.einsum("bqn,fnc->bcqf", tables, weight))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    slope = torch.randn(found.shape)
    grads = [torch.autograd.grad(got, weight, slope)[0] for got in (found, expected)]
    torch.testing.assert_close(grads[0], grads[1], atol=2e-3, rtol=1e-3)


def test_an_image_of_one_value_has_a_table():
    image = torch.full((1, 1, 2, 2, 2), 0.5)
    values, tables = fit_table(image, torch.tensor([[[0.5], [1.5]]]), torch.ones(1, 2, 1))
    found = looked_up(image, values, tables[:, None])
    torch.testing.assert_close(found[0, :, 0, 0, 0], torch.tensor([1.0, 0.6065]), atol=1e-4, rtol=0)
