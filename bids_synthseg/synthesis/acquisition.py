"""What a scanner does to an image: bias field, limited resolution, thick slices, noise, gamma."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from bids_synthseg.synthesis.deformation import resize


@dataclass(frozen=True)
class AcquisitionConfig:
    """Ranges, all 0 (spacings 1) for an image as it is.

    `bias`: largest SD of the logarithm of the bias field; `bias_nodes`: most nodes of it per axis;
    `gamma`: SD of the logarithm of the exponent; `noise_max`: largest noise as a fraction of the
    image's SD; `sharp`, `one_axis`: probabilities of isotropic working resolution and of thick
    slices along one axis, the rest is isotropic but coarse; `spacing_max`, `isotropic_max`:
    coarsest spacing of either in working voxels; `blur`: multiple of the published slice blur.
    """

    bias: float = 0.4
    bias_nodes: int = 5
    gamma: float = 0.3
    noise_max: float = 0.25
    sharp: float = 0.4
    one_axis: float = 0.25
    spacing_max: float = 4.0
    isotropic_max: float = 1.7
    blur: float = 1.0

    def __post_init__(self) -> None:
        if min(self.bias, self.gamma, self.noise_max, self.blur) < 0 or self.bias_nodes < 2:
            raise ValueError("bias, gamma, noise_max, blur: not below 0; bias_nodes: at least 2")
        if min(self.sharp, self.one_axis) < 0 or self.sharp + self.one_axis > 1 + 1e-9:
            raise ValueError("sharp and one_axis are probabilities; their sum must not exceed 1")
        if min(self.spacing_max, self.isotropic_max) < 1:
            raise ValueError("spacing_max and isotropic_max are in working voxels, at least 1")


@dataclass(frozen=True)
class AcquisitionDraw:
    """`bias` (n, n, n) log field; `gamma` exponent; `spacing`, `thickness` (3,) in working voxels;
    `blur` multiple of the published slice blur; `noise` as a fraction of the image's SD."""

    bias: np.ndarray
    gamma: float
    spacing: tuple[float, float, float]
    thickness: tuple[float, float, float]
    blur: float
    noise: float


def draw_acquisition(config: AcquisitionConfig, rng: np.random.Generator) -> AcquisitionDraw:
    """Draw one acquisition."""
    nodes = int(rng.integers(2, config.bias_nodes + 1))
    bias = rng.uniform(0, config.bias) * rng.standard_normal((nodes, nodes, nodes))
    spacing = np.ones(3)
    kind = rng.uniform()
    if kind >= config.sharp + config.one_axis:
        spacing[:] = rng.uniform(1, config.isotropic_max)
    elif kind >= config.sharp:
        spacing[rng.integers(3)] = rng.uniform(min(1.5, config.spacing_max), config.spacing_max)
    thickness = rng.uniform(1, np.maximum(spacing, 1 + 1e-6))
    return AcquisitionDraw(
        bias.astype(np.float32),
        float(np.exp(config.gamma * rng.standard_normal())),
        tuple(float(s) for s in spacing),
        tuple(float(t) for t in thickness),
        float(config.blur * rng.uniform(0.7, 1.3)),
        float(rng.uniform(0, config.noise_max)),
    )


def blur_sigma(spacing: float, thickness: float) -> float:
    """SD in working voxels of the blur of a slice: 0.75 of its width, 0.5 where it is one voxel.

    Width is the smaller of both. Source: Billot et al. 2023 (SynthSeg), as lab2im's
    `blurring_sigma_for_downsampling` has it.
    """
    width = min(spacing, thickness)
    return 0.5 if width <= 1 else 0.75 * width


def blur(image: torch.Tensor, sigmas: tuple[float, float, float]) -> torch.Tensor:
    """Separable Gaussian blur of (X, Y, Z), SDs in voxels; SD 0 leaves an axis as it is.

    Beyond the border lies 0, as in the air around a head.
    """
    for axis, sigma in enumerate(sigmas):
        if sigma <= 0:
            continue
        radius = max(1, round(2.5 * sigma))
        taps = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
        kernel = torch.exp(-0.5 * (taps / sigma) ** 2)
        kernel = (kernel / kernel.sum()).view(-1, *([1] * (2 - axis)))
        kernel = kernel.view(1, 1, *([1] * axis), *kernel.shape)
        padding = [0, 0, 0]
        padding[axis] = radius
        image = F.conv3d(image[None, None], kernel, padding=tuple(padding))[0, 0]
    return image


def acquire(image: torch.Tensor, draw: AcquisitionDraw, noise: torch.Tensor) -> torch.Tensor:
    """(X, Y, Z) in 0..1 as a scanner would have given it; `noise` (X, Y, Z) is standard normal.

    Noise is added on the acquired grid, before it is interpolated back to the working grid.
    """
    shape = tuple(image.shape)
    if draw.bias.any():
        bias = resize(torch.from_numpy(draw.bias).to(image.device)[None], shape)[0]
        image = image * torch.exp(bias)
    sigmas = tuple(
        draw.blur * blur_sigma(s, t) for s, t in zip(draw.spacing, draw.thickness, strict=True)
    )
    image = blur(image, sigmas)
    acquired = tuple(max(2, round(n / s)) for n, s in zip(shape, draw.spacing, strict=True))
    if acquired != shape:
        image = F.interpolate(image[None, None], size=acquired, mode="trilinear")[0, 0]
    grain = noise[tuple(slice(0, n) for n in acquired)]
    image = (image + draw.noise * image.std() * grain).clamp(min=0)
    if acquired != shape:
        image = F.interpolate(image[None, None], size=shape, mode="trilinear")[0, 0]
    if draw.gamma != 1:
        top = image.max().clamp(min=1e-6)
        image = top * (image / top) ** draw.gamma
    return image
