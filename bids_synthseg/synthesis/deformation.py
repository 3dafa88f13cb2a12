"""Where an output voxel comes from: affine and diffeomorphic deformation of a label map.

Coordinates are voxels, channel first `(3, X, Y, Z)`. A stationary velocity field on a coarse
grid is integrated by scaling and squaring (Arsigny et al. 2006), so the map stays invertible.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from bids_synthseg.fields import SHARE, check_ranges

INTEGRATION_STEPS = 5


@dataclass(frozen=True)
class DeformationConfig:
    """Ranges: rotations in degrees; scale up to 1 + `scale` or its inverse, of which the part
    `scale_sharing` is common to all axes; shear; shift as a fraction of the grid; warp as the
    largest SD of the velocity in fractions of the grid's mean side, on `warp_nodes_min` to
    `warp_nodes` nodes per axis."""

    rotation_deg: float = 15.0
    scale: float = 0.15
    scale_sharing: float = 0.7
    shear: float = 0.05
    shift: float = 0.05
    warp: float = 0.03
    warp_nodes_min: int = 3
    warp_nodes: int = 7

    def __post_init__(self) -> None:
        if not 0 <= self.scale_sharing <= 1 or not 2 <= self.warp_nodes_min <= self.warp_nodes:
            raise ValueError("scale_sharing in 0..1; 2 <= warp_nodes_min <= warp_nodes")
        nodes = dict.fromkeys(("warp_nodes_min", "warp_nodes"), (2, 64))
        shares = dict.fromkeys(("scale_sharing", "shift", "warp"), SHARE)
        check_ranges(self, {"rotation_deg": (0, 180), "scale": (0, 10), "shear": (0, 2), **shares})
        check_ranges(self, nodes)


def draw_affine(
    config: DeformationConfig, shape: tuple[int, int, int], flip: bool, rng: np.random.Generator
) -> np.ndarray:
    """(4, 4): output voxel -> undeformed output voxel, about the centre of the grid.

    `flip` mirrors the first axis (left-right in canonical orientation).
    """
    angles = np.deg2rad(rng.uniform(-1, 1, 3) * config.rotation_deg)
    linear = np.eye(3)
    for axis, angle in enumerate(angles):
        rotation = np.eye(3)
        first, second = (axis + 1) % 3, (axis + 2) % 3
        rotation[first, first] = rotation[second, second] = np.cos(angle)
        rotation[first, second], rotation[second, first] = -np.sin(angle), np.sin(angle)
        linear = linear @ rotation
    shear = np.eye(3)
    shear[~np.eye(3, dtype=bool)] = rng.uniform(-1, 1, 6) * config.shear
    common = config.scale_sharing
    spread = common * rng.uniform(-1, 1) + (1 - common) * rng.uniform(-1, 1, 3)
    scale = (1 + config.scale) ** spread
    linear = linear @ shear @ np.diag(scale)
    if flip:
        linear = linear @ np.diag([-1.0, 1.0, 1.0])
    centre = (np.array(shape) - 1) / 2
    shift = rng.uniform(-1, 1, 3) * config.shift * np.array(shape)
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = centre + shift - linear @ centre
    return affine


def draw_velocity(
    config: DeformationConfig, shape: tuple[int, int, int], rng: np.random.Generator
) -> np.ndarray:
    """(3, n, n, n) float32 velocity at nodes spread evenly over the grid, in output voxels."""
    strength = rng.uniform(0, config.warp) * float(np.mean(shape))
    nodes = int(rng.integers(config.warp_nodes_min, config.warp_nodes + 1))
    return (strength * rng.standard_normal((3, nodes, nodes, nodes))).astype(np.float32)


def identity_grid(shape: tuple[int, ...], device: torch.device | str = "cpu") -> torch.Tensor:
    """(3, X, Y, Z) voxel coordinates."""
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def resize(field: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """(C, x, y, z) -> (C, *shape), trilinear, corner nodes on corner voxels."""
    # Axis by axis: a small matrix each is several times faster than interpolating in one go.
    x, y, z = (
        F.interpolate(
            torch.eye(m, device=field.device)[None], size=n, mode="linear", align_corners=True
        )[0].T
        for m, n in zip(field.shape[1:], shape, strict=True)
    )
    field = y @ (field @ z.T)
    return (x @ field.flatten(2)).reshape(len(field), *shape)


def sample_linear(field: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """(C, x, y, z) sampled at voxel coordinates (3, X, Y, Z); clamped at the border."""
    size = torch.tensor(field.shape[1:], device=field.device, dtype=torch.float32)
    unit = 2 * coordinates / (size - 1).clamp(min=1).view(3, 1, 1, 1) - 1
    points = unit.flip(0).permute(1, 2, 3, 0)[None]
    return F.grid_sample(
        field[None], points, mode="bilinear", padding_mode="border", align_corners=True
    )[0]


def displacement(velocity: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """(3, *shape) displacement in voxels of the diffeomorphism that `velocity` generates.

    The field is integrated on a quarter-resolution grid: it is smooth by construction.
    """
    coarse = tuple(max(2, (n + 3) // 4) for n in shape)
    ratio = torch.tensor(
        [(c - 1) / max(1, n - 1) for c, n in zip(coarse, shape, strict=True)],
        device=velocity.device,
    ).view(3, 1, 1, 1)
    field = resize(velocity, coarse) * ratio / 2**INTEGRATION_STEPS
    grid = identity_grid(coarse, velocity.device)
    for _ in range(INTEGRATION_STEPS):
        field = field + sample_linear(field, grid + field)
    return resize(field / ratio, shape)


def sampling_coordinates(
    affine: torch.Tensor, velocity: torch.Tensor, shape: tuple[int, int, int]
) -> torch.Tensor:
    """(3, *shape): source voxel of every output voxel; warp first, then the (4, 4) affine."""
    moved = identity_grid(shape, velocity.device) + displacement(velocity, shape)
    source = affine[:3, :3] @ moved.reshape(3, -1) + affine[:3, 3:]
    return source.reshape(3, *shape)


def nearest_index(coordinates: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Flat index of the nearest voxel of an array of `shape`, or -1 outside of it."""
    x, y, z = (coordinates + 0.5).floor().to(torch.int32)
    inside = (x >= 0) & (x < shape[0]) & (y >= 0) & (y < shape[1]) & (z >= 0) & (z < shape[2])
    return torch.where(inside, (x * shape[1] + y) * shape[2] + z, -1)
