"""What an image says of every class, given roughly where the classes are.

A T2w shows white matter bright where a newborn's T1w shows it dark: for a network that is to know
neither, "bright" means nothing until it has seen which tissue is bright here. Coarse answers tell
that: the intensities of each class are taken for a Gaussian, which a few rounds of expectation
maximisation fit to the image at hand (Van Leemput et al. 1999; SAMSEG, Puonti et al. 2016). How
well a voxel fits each of them means the same in every contrast.
"""

import torch

ROUNDS = 2
"""Of expectation and maximisation, after the Gaussians of the coarse answer itself."""

SMALLEST_SD = 0.1
"""Of a class, on the network's scale of intensities: less is the noise of a few voxels."""

_LEAST_WEIGHT = 1.0  # voxels that stand in every class for the whole image


@torch.no_grad()
def class_gaussians(image: torch.Tensor, prior: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and SD (B, C, 1) of the intensities of each class.

    `image` (B, X, Y, Z); `prior` (B, C, X / f, Y / f, Z / f): the chance of each class, of which
    every f-th voxel of the image is taken as a sample. Neither gets a gradient.
    """
    factor = image.shape[1] // prior.shape[2]
    places = slice(factor // 2, None, factor)
    values = image[:, places, places, places].flatten(1)
    chances = prior.flatten(2)
    mean, sd = _moments(values, chances)
    for _ in range(ROUNDS):
        joint = chances * fit(values[:, None], mean, sd) / sd
        weights = joint / joint.sum(1, keepdim=True).clamp(min=1e-12)
        mean, sd = _moments(values, weights)
    return mean, sd


def fit(values: torch.Tensor, mean: torch.Tensor, sd: torch.Tensor) -> torch.Tensor:
    """How well values fit Gaussians, 1 at the mean; the arguments are broadcast."""
    return (-0.5 * ((values - mean) / sd).square()).exp()


def _moments(values: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and SD (B, C, 1) of values (B, V) under weights (B, C, V)."""
    middle = values.mean(1, keepdim=True)
    centred = values - middle
    total = weights.sum(2) + _LEAST_WEIGHT
    mean = torch.einsum("bcv,bv->bc", weights, centred) / total
    square = torch.einsum("bcv,bv->bc", weights, centred.square())
    variance = (square + centred.var(1, keepdim=True)) / total - mean.square()
    sd = variance.clamp(min=SMALLEST_SD**2).sqrt()
    return (mean + middle)[..., None], sd[..., None]
