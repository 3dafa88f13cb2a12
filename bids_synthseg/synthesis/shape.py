"""Brains of another shape: larger ventricles, and a cortex that is thicker or thinner.

Only classes whose role is known take part, so a map that does not label ventricles, cortex or white
matter by themselves stays as it is. After the label inflation of Shang et al. 2026 (clinical fetal
SynthSeg), which dilates any label by a cube; here growth is uneven and ends where white matter
does, so no structure is eaten up.
"""

from dataclasses import dataclass

import numpy as np
import torch

from bids_synthseg.fields import check_ranges
from bids_synthseg.synthesis.deformation import resize

ROLE_OF = {"other": 0, "ventricle": 1, "cortex": 2, "white": 3, "csf": 4}
"""What a class is to this module; "other" never changes."""


@dataclass(frozen=True)
class ShapeConfig:
    """Probabilities of larger `ventricles` and of another thickness of the `cortex`, and the
    farthest that their borders move, in voxels of the grid that is painted."""

    ventricles: float = 0.0
    cortex: float = 0.0
    radius_max: float = 3.0
    cortex_max: float = 2.0

    def __post_init__(self) -> None:
        if not (0 <= self.ventricles <= 1 and 0 <= self.cortex <= 1):
            raise ValueError("ventricles and cortex are probabilities, 0 to 1")
        if min(self.radius_max, self.cortex_max) < 1:
            raise ValueError("radius_max and cortex_max must be at least 1 voxel")
        check_ranges(self, dict.fromkeys(("radius_max", "cortex_max"), (1, 64)))


@dataclass(frozen=True)
class ShapeDraw:
    """Farthest move of the borders of `ventricles` and `cortex` in voxels (0: none; a cortex below
    0 is a thinner one); `unevenness` (2, n, n, n): share of either in each place, 0 to 1."""

    ventricles: float
    cortex: float
    unevenness: np.ndarray


def draw_shape(config: ShapeConfig, rng: np.random.Generator) -> ShapeDraw:
    """Draw the changes of one brain."""
    ventricles = rng.uniform(1, config.radius_max) * (rng.uniform() < config.ventricles)
    cortex = rng.uniform(1, config.cortex_max) * (rng.uniform() < config.cortex)
    nodes = int(rng.integers(2, 8))
    unevenness = rng.uniform(0.2, 1, (2, nodes, nodes, nodes)).astype(np.float32)
    return ShapeDraw(float(ventricles), float(cortex * rng.choice([-1, 1])), unevenness)


def reshape_tissue(classes: torch.Tensor, roles: np.ndarray, draw: ShapeDraw) -> torch.Tensor:
    """(X, Y, Z) int64 classes after the draw; `roles` (K,) holds values of ROLE_OF.

    Ventricles and cortex grow into white matter; a thinner cortex gives way to it but for its
    outermost voxel. A voxel takes the class of a neighbour, and with it the neighbour's side.
    """
    for extent, share, grows, yields in (
        (draw.ventricles, draw.unevenness[0], "ventricle", "white"),
        (draw.cortex, draw.unevenness[1], "cortex", "white"),
        (-draw.cortex, draw.unevenness[1], "white", "cortex"),
    ):
        known = np.isin([ROLE_OF[grows], ROLE_OF[yields]], roles).all()
        if extent >= 1 and known:
            classes = _grown(classes, roles, grows, yields, extent, share)
    return classes


def _grown(
    classes: torch.Tensor,
    roles: np.ndarray,
    grows: str,
    yields: str,
    extent: float,
    share: np.ndarray,
) -> torch.Tensor:
    """One role's classes grown into another's, up to `extent` * `share` voxels far."""
    role = torch.from_numpy(roles).to(classes.device)[classes]
    free = role == ROLE_OF[yields]
    # Class 0 is background and grows nowhere, so 0 can mean that a voxel was not reached.
    front = torch.where(role == ROLE_OF[grows], classes, 0).to(torch.int16)
    if yields == "cortex":
        beyond = (~free & (front == 0)).to(torch.int16)
        free = free & (_spread(beyond, cube=True) == 0)
    reach = extent * resize(torch.from_numpy(share).to(classes.device)[None], classes.shape)[0]
    for step in range(1, int(extent) + 1):
        # Crosses and cubes in turn make a ball of sorts.
        there = free & (front == 0) & (reach >= step)
        front = torch.where(there, _spread(front, cube=step % 2 == 0), front)
    return torch.where(free & (front > 0), front.long(), classes)


def _spread(values: torch.Tensor, cube: bool) -> torch.Tensor:
    """Largest value of each voxel and its 6 neighbours, or of all 27 if `cube`."""
    result = values.clone()
    for axis, n in enumerate(values.shape):
        before = result.clone() if cube else values
        for start, other in ((0, 1), (1, 0)):
            here = result.narrow(axis, start, n - 1)
            torch.maximum(here, before.narrow(axis, other, n - 1), out=here)
    return result
