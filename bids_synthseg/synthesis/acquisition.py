"""What a scanner does to an image: bias field, limited resolution, thick slices, noise, gamma."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from bids_synthseg.fields import SHARE, check_ranges
from bids_synthseg.synthesis.deformation import resize


@dataclass(frozen=True)
class AcquisitionConfig:
    """Ranges and probabilities; lengths are in voxels of the grid that is painted.

    Bias field, with `bias_probability`: its logarithm has an SD between `bias_min` and `bias` at
    `bias_nodes_min` to `bias_nodes` nodes per axis. With probability `coil` that of surface coils
    comes on top: a rim up to `coil_max` times brighter than the middle, or one side.

    Resolution: that of the grid with probability `sharp`; thick slices along one axis with
    `one_axis`, between `spacing_min` and `spacing_max` apart; the rest is coarse along all axes, 1
    to `isotropic_max`, alike or, if `uneven`, each axis alone. Slices are between 1 and their
    spacing thick, with probability `gapless` as thick as that. `blur`: multiple of the published
    slice blur, which varies by the fraction `blur_jitter`; `sharp_blur`: multiple of that where the
    resolution is that of the grid.

    Noise: SD between `noise_min` and `noise_max`, as a fraction of the image's SD, or on the scale
    of intensities unless `noise_relative`; Rician with probability `rician`, else Gaussian.

    `gamma`: SD of the logarithm of the exponent.

    An image stays as it is where bias, noise_max, gamma and blur are 0 and sharp is 1.
    """

    bias: float = 0.4
    bias_min: float = 0.0
    bias_nodes: int = 5
    bias_nodes_min: int = 2
    bias_probability: float = 1.0
    coil: float = 0.0
    coil_max: float = 4.0
    gamma: float = 0.3
    noise_max: float = 0.25
    noise_min: float = 0.0
    noise_relative: bool = True
    rician: float = 0.0
    sharp: float = 0.4
    sharp_blur: float = 1.0
    one_axis: float = 0.25
    spacing_min: float = 1.5
    spacing_max: float = 4.0
    isotropic_max: float = 1.7
    uneven: bool = False
    gapless: float = 0.0
    blur: float = 1.0
    blur_jitter: float = 0.3

    def __post_init__(self) -> None:
        if min(self.gamma, self.blur, self.sharp_blur) < 0 or not 0 <= self.blur_jitter <= 1:
            raise ValueError("gamma, blur, sharp_blur must not be below 0, blur_jitter in 0..1")
        for low, high in (("bias_min", "bias"), ("noise_min", "noise_max")):
            if not 0 <= getattr(self, low) <= getattr(self, high):
                raise ValueError(f"{low} must be at least 0 and at most {high}")
        if not 1 <= self.bias_nodes_min <= self.bias_nodes:
            raise ValueError("bias_nodes_min must be at least 1 and at most bias_nodes")
        if not all(0 <= p <= 1 for p in (self.bias_probability, self.rician, self.gapless)):
            raise ValueError("bias_probability, rician and gapless are probabilities, 0 to 1")
        if min(self.sharp, self.one_axis) < 0 or self.sharp + self.one_axis > 1 + 1e-9:
            raise ValueError("sharp and one_axis are probabilities; their sum must not exceed 1")
        if min(self.spacing_min, self.spacing_max, self.isotropic_max) < 1:
            raise ValueError("spacing_min, spacing_max and isotropic_max must be at least 1 voxel")
        check_ranges(self, _RANGES)


_LENGTH, _STRENGTH = (0.0, 64.0), (0.0, 100.0)
_RANGES = {
    **dict.fromkeys(("bias", "bias_min", "gamma"), (0.0, 10.0)),
    **dict.fromkeys(("bias_nodes", "bias_nodes_min"), (1, 64)),
    **dict.fromkeys(("bias_probability", "coil", "rician", "sharp", "one_axis"), SHARE),
    "gapless": SHARE,
    "coil_max": (1.0, 100.0),
    **dict.fromkeys(("noise_max", "noise_min", "blur", "sharp_blur"), _STRENGTH),
    **dict.fromkeys(("spacing_min", "spacing_max", "isotropic_max"), _LENGTH),
    "blur_jitter": SHARE,
}


@dataclass(frozen=True)
class AcquisitionDraw:
    """`bias` (n, n, n) log field at nodes, the outermost on the outermost voxels; `gamma` exponent;
    `spacing`, `thickness` (3,) in voxels; `blur` multiple of the published slice blur; `noise` as a
    fraction of the image's SD if `noise_relative`, `rician` or Gaussian."""

    bias: np.ndarray
    gamma: float
    spacing: tuple[float, float, float]
    thickness: tuple[float, float, float]
    blur: float
    noise: float
    noise_relative: bool
    rician: bool


def draw_acquisition(config: AcquisitionConfig, rng: np.random.Generator) -> AcquisitionDraw:
    """Draw one acquisition."""
    nodes = int(rng.integers(config.bias_nodes_min, config.bias_nodes + 1))
    bias = rng.uniform(config.bias_min, config.bias) * rng.standard_normal((nodes, nodes, nodes))
    bias *= rng.uniform() < config.bias_probability
    spacing = np.ones(3)
    blur = config.blur * rng.uniform(1 - config.blur_jitter, 1 + config.blur_jitter)
    kind = rng.uniform()
    if kind >= config.sharp + config.one_axis:
        spacing[:] = rng.uniform(1, config.isotropic_max, 3 if config.uneven else 1)
    elif kind >= config.sharp:
        low = min(config.spacing_min, config.spacing_max)
        spacing[rng.integers(3)] = rng.uniform(low, config.spacing_max)
    else:
        blur *= config.sharp_blur
    thickness = rng.uniform(1, np.maximum(spacing, 1 + 1e-6))
    if rng.uniform() < config.gapless:
        thickness = spacing
    drawn = AcquisitionDraw(
        bias=bias.astype(np.float32),
        gamma=float(np.exp(config.gamma * rng.standard_normal())),
        spacing=tuple(float(s) for s in spacing),
        thickness=tuple(float(t) for t in thickness),
        blur=float(blur),
        noise=float(rng.uniform(config.noise_min, config.noise_max)),
        noise_relative=config.noise_relative,
        rician=bool(rng.uniform() < config.rician),
    )
    if rng.uniform() < config.coil:
        coil = _coil_field(rng)
        strength = math.log(config.coil_max) * rng.uniform(0.3, 1)
        field = _at_nodes(bias, len(coil)) + strength * coil
        drawn = replace(drawn, bias=field.astype(np.float32))
    return drawn


COIL_NODES = 9
"""Per axis, of the field of surface coils: between them it is nearly straight."""

MOST_BEYOND = 1.2
"""Of the field of coils all around: beyond the brain it rises no higher."""

BRAIN_REACH = 0.8
"""Of half a grid: about so far from its middle a brain ends, where a coil's field is 1."""


def _coil_field(rng: np.random.Generator) -> np.ndarray:
    """(n, n, n) field of coils all around a head, or at one side of it: 0 to 1 within the brain,
    and a little more beyond."""
    axes = np.meshgrid(*[np.linspace(-1, 1, COIL_NODES)] * 3, indexing="ij")
    places = np.stack(axes, axis=-1) / BRAIN_REACH
    if rng.uniform() < 0.5:
        # All around, nearer on some sides: a rim, flat or steep.
        shift = rng.uniform(-0.3, 0.3, 3)
        distance = np.linalg.norm(places - shift, axis=-1)
        return np.minimum(distance ** rng.uniform(1.5, 4), MOST_BEYOND)
    direction = rng.standard_normal(3)
    coil = rng.uniform(1.0, 1.6) * direction / np.linalg.norm(direction)
    distance = np.linalg.norm(places - coil, axis=-1)
    near = np.exp(-0.5 * (distance / rng.uniform(0.6, 1.3)) ** 2)
    return near / near.max()


def _at_nodes(field: np.ndarray, nodes: int) -> np.ndarray:
    """A field (n, n, n) at another number of nodes."""
    whole = resize(torch.from_numpy(field.astype(np.float32))[None], (nodes,) * 3)
    return whole[0].numpy()


def blur_sigma(spacing: float, thickness: float) -> float:
    """SD in voxels of the blur of a slice: 0.75 of its width, 0.5 where it is one voxel.

    Width is the smaller of both. Source: Billot et al. 2023 (SynthSeg), as lab2im's
    `blurring_sigma_for_downsampling` has it.
    """
    width = min(spacing, thickness)
    return 0.5 if width <= 1 else 0.75 * width


def blur(image: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Separable Gaussian blur of (X, Y, Z), SDs in voxels; SD 0 leaves an axis as it is.

    Beyond the border lies 0, as in the air around a head.
    """
    for axis, sigma in enumerate(sigmas):
        if sigma > 0:
            image = _along(image, _blur_matrix(image.shape[axis], sigma, image.device), axis)
    return image


def acquire(image: torch.Tensor, draw: AcquisitionDraw, noise: torch.Tensor) -> torch.Tensor:
    """(X, Y, Z) in 0..1 as a scanner would have given it; `noise` (2, X, Y, Z) is standard normal:
    what is added to the signal and, if Rician, what lies across it in the complex plane.

    Noise is added on the acquired grid, before it is interpolated back to the working grid.
    """
    shape, device = image.shape, image.device
    if draw.bias.any():
        bias = resize(torch.from_numpy(draw.bias).to(device)[None], shape)[0]
        image = image * bias.exp_()
    acquired = [max(2, round(n / s)) for n, s in zip(shape, draw.spacing, strict=True)]
    for axis, (n, m) in enumerate(zip(shape, acquired, strict=True)):
        sigma = draw.blur * blur_sigma(draw.spacing[axis], draw.thickness[axis])
        if sigma > 0:
            slices = _blur_matrix(n, sigma, device)
            image = _along(image, slices if n == m else _lines(n, m, device) @ slices, axis)
        elif n != m:
            image = _along(image, _lines(n, m, device), axis)
    if draw.noise:
        sd = draw.noise * (image.std() if draw.noise_relative else 1.0)
        x, y, z = acquired
        real, imaginary = noise[:, :x, :y, :z]
        image = image + sd * real
        if draw.rician:
            image = image.square_().add_((sd * imaginary).square_()).sqrt_()
        else:
            image = image.clamp_(min=0)
    for axis, (n, m) in enumerate(zip(shape, acquired, strict=True)):
        if n != m:
            image = _along(image, _lines(m, n, device), axis)
    if draw.gamma != 1:
        top = image.max().clamp(min=1e-6)
        # A power by logarithm: several times faster than pow, and 0 stays 0.
        image = (image / top).log_().mul_(draw.gamma).exp_().mul_(top)
    return image


def _along(image: torch.Tensor, matrix: torch.Tensor, axis: int) -> torch.Tensor:
    """Each line of (X, Y, Z) along an axis, n voxels long, times an (m, n) matrix.

    Several times faster than a convolution and an interpolation of so few lines on a CPU.
    """
    if axis == 0:
        return (matrix @ image.reshape(len(image), -1)).reshape(-1, *image.shape[1:])
    return matrix @ image if axis == 1 else image @ matrix.T


def _blur_matrix(n: int, sigma: float, device: torch.device) -> torch.Tensor:
    """(n, n): Gaussian blur that ends after 2.5 SDs, or one voxel."""
    radius = max(1, round(2.5 * sigma))
    place = torch.arange(n, dtype=torch.float32, device=device)
    taps = torch.arange(-radius, radius + 1, dtype=torch.float32)
    total = float(torch.exp(-0.5 * (taps / sigma) ** 2).sum())
    apart = (place[:, None] - place).abs()
    return torch.exp(-0.5 * (apart / sigma) ** 2) * (apart <= radius) / total


def _lines(n: int, m: int, device: torch.device) -> torch.Tensor:
    """(m, n): linear interpolation of n voxels at m that cover the same length."""
    unit = torch.eye(n, device=device)[None]
    return F.interpolate(unit, size=m, mode="linear")[0].T
