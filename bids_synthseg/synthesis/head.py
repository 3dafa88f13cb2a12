"""What is outside the brain: nothing, shells of CSF, skull and scalp, or blobs.

The label map comes with `outside`, the distance of every voxel to the brain in units of 1/200 of
the brain's size; shells are intervals of that distance with an uneven border, so one small map
serves every head that is drawn.
"""

from dataclasses import dataclass

import numpy as np
import torch

from bids_synthseg.synthesis.deformation import resize

OUTSIDE_UNIT = 1 / 200
"""One step of the `outside` map, as a fraction of the brain's size."""

CSF, SKULL, FAT, SKIN, BLOB = range(5)
"""Classes painted by this module, counted from the end of a map's own classes; blobs come last."""
BLOB_LEVELS = (0.2, 0.7, 1.3)
"""Where the random field exceeds one of these, a class of blob begins."""
N_CLASSES = BLOB + len(BLOB_LEVELS)


@dataclass(frozen=True)
class HeadConfig:
    """Probabilities: a head of shells, CSF alone, else a bare brain; and of blobs around it."""

    shells: float = 0.55
    csf_only: float = 0.25
    blobs: float = 0.35

    def __post_init__(self) -> None:
        lowest = min(self.shells, self.csf_only, self.blobs)
        if lowest < 0 or self.shells + self.csf_only > 1 + 1e-9:
            raise ValueError("shells and csf_only are probabilities; their sum must not exceed 1")


@dataclass(frozen=True)
class HeadDraw:
    """`edges`: outer border of CSF, skull, fat and skin, in `OUTSIDE_UNIT`s (0: absent);
    `unevenness` (n, n, n): what is added to the distance; `blobs` (m, m, m): random field."""

    edges: tuple[float, float, float, float]
    unevenness: np.ndarray
    blobs: np.ndarray | None


def draw_head(config: HeadConfig, rng: np.random.Generator) -> HeadDraw:
    """Draw the surroundings of one sample."""
    kind = rng.uniform()
    csf = rng.uniform(2, 9)
    if kind < config.shells:
        thickness = np.array([csf, rng.uniform(2, 9), rng.uniform(0, 7), rng.uniform(1, 7)])
        edges = tuple(float(edge) for edge in np.cumsum(thickness))
    elif kind < config.shells + config.csf_only:
        edges = (float(csf),) * 4
    else:
        edges = (0.0,) * 4
    nodes = int(rng.integers(3, 9))
    uneven = rng.standard_normal((nodes, nodes, nodes)).astype(np.float32)
    blobs = None
    if rng.uniform() < config.blobs:
        nodes = int(rng.integers(4, 10))
        blobs = rng.standard_normal((nodes, nodes, nodes)).astype(np.float32)
    return HeadDraw(edges, uneven * np.float32(rng.uniform(0.5, 2.5)), blobs)


def paint_head(
    classes: torch.Tensor,
    outside: torch.Tensor,
    n_map_classes: int,
    has_csf: bool,
    draw: HeadDraw,
) -> torch.Tensor:
    """Replace background (class 0) around the brain by this module's classes.

    `classes` (X, Y, Z) and `outside` (X, Y, Z) lie on one grid; nothing inside the brain changes.
    A new class is `n_map_classes` plus CSF, SKULL, FAT, SKIN or BLOB and following. A map that
    `has_csf` of its own gets the outer shells alone, directly around it.
    """
    shape = tuple(classes.shape)
    device = classes.device
    uneven = resize(torch.from_numpy(draw.unevenness).to(device)[None], shape)[0]
    distance = outside.float() + uneven + (draw.edges[CSF] if has_csf else 0.0)
    background = classes == 0
    result = classes
    lower = draw.edges[CSF] if has_csf else -float("inf")
    for shell, upper in enumerate(draw.edges):
        if upper > 0 and not (has_csf and shell == CSF):
            inside = background & (distance > lower) & (distance <= upper)
            result = torch.where(inside, n_map_classes + shell, result)
            lower = upper
    if draw.blobs is not None:
        field = resize(torch.from_numpy(draw.blobs).to(device)[None], shape)[0]
        free = (result == 0) & (distance > draw.edges[-1] + 2)
        for number, level in enumerate(BLOB_LEVELS):
            result = torch.where(free & (field > level), n_map_classes + BLOB + number, result)
    return result
