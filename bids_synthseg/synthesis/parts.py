"""Parts of a tissue that differ in brightness: clusters of a scan's intensities, or of space.

A mixture of Gaussians in one dimension, ordered by mean, cuts the intensities of a tissue into
intervals (learning.clusters); the thresholds between them are all that is stored. A map without a
scan gets regions of a smooth random field instead. After FetalSynthSeg (Zalevskyi et al. 2024).
"""

from dataclasses import dataclass

import numpy as np
import torch

from bids_synthseg.fields import check_ranges
from bids_synthseg.synthesis.contrast import TISSUE_OF, ContrastConfig
from bids_synthseg.synthesis.deformation import resize

MOST = 9
"""Largest number of parts of a tissue."""

_STEP = 2.0
"""Distance between two tissues on the axis that `part_of` cuts; values take 0..1 of it."""


@dataclass(frozen=True)
class PartsConfig:
    """`probability` that a sample is painted by parts; then `tissues` and `surroundings`: that
    parts take the place of the brain's classes and that the scan's own surroundings are painted
    where the map has background; each tissue has `clusters_min` to `clusters_max` of them."""

    probability: float = 0.0
    tissues: float = 1.0
    surroundings: float = 1.0
    clusters_min: int = 1
    clusters_max: int = 6

    def __post_init__(self) -> None:
        for name in ("probability", "tissues", "surroundings"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, not {getattr(self, name)}")
        if not 1 <= self.clusters_min <= self.clusters_max <= MOST:
            raise ValueError(
                f"clusters_min and clusters_max must lie in 1..{MOST}, in this order, "
                f"not {self.clusters_min} and {self.clusters_max}"
            )
        check_ranges(self, dict.fromkeys(("clusters_min", "clusters_max"), (1, MOST)))


@dataclass(frozen=True)
class PartsDraw:
    """`counts` (5,): parts of each tissue (TISSUE_OF), 0 where it keeps its classes; `means` and
    `spreads` (5, MOST) float32; `image`: the scan whose intensities are cut, or -1: `field`
    (n, n, n) float32 is cut instead."""

    counts: np.ndarray
    means: np.ndarray
    spreads: np.ndarray
    image: int
    field: np.ndarray | None


def draw_parts(
    config: PartsConfig, contrast: ContrastConfig, n_images: int, rng: np.random.Generator
) -> PartsDraw | None:
    """Draw the parts of one sample of a map with `n_images` scans, or None: it has none.

    Means and SDs of parts have the ranges of `contrast`.
    """
    if rng.uniform() >= config.probability:
        return None
    counts = rng.integers(config.clusters_min, config.clusters_max + 1, len(TISSUE_OF))
    brain = np.arange(len(TISSUE_OF)) != TISSUE_OF["background"]
    counts[brain] *= rng.uniform() < config.tissues
    # Without a scan nobody knows where the surroundings end.
    counts[~brain] *= rng.uniform() < config.surroundings and n_images > 0
    size = (len(TISSUE_OF), MOST)
    field = None
    if n_images == 0:
        nodes = int(rng.integers(4, 10))
        field = rng.standard_normal((nodes, nodes, nodes)).astype(np.float32)
    return PartsDraw(
        counts=counts,
        means=rng.uniform(contrast.mean_min, contrast.mean_max, size).astype(np.float32),
        spreads=rng.uniform(contrast.spread_min, contrast.spread_max, size).astype(np.float32),
        image=int(rng.integers(n_images)) if n_images else -1,
        field=field,
    )


def part_of(
    tissue: torch.Tensor,
    scan: torch.Tensor | None,
    thresholds: np.ndarray | None,
    draw: PartsDraw,
) -> torch.Tensor:
    """(X, Y, Z) int64: tissue * MOST + part of every voxel, -1 where no part applies.

    `tissue` (X, Y, Z) int64 holds values of TISSUE_OF. With a `scan` (X, Y, Z) in 0..1 the part is
    the number of `thresholds[tissue, count - 1]` below the scan's value, and background has parts
    where the scan is above 0. Without one, the parts of a tissue take equal shares of the draw's
    field, which then must not be None.
    """
    if scan is None:
        value = _uniform(torch.from_numpy(draw.field).to(tissue.device), tuple(tissue.shape))
    else:
        value = scan.clamp(0, 1)
    # One axis for all tissues, so that a single search finds tissue and part.
    borders, cells = [-1.0], [-1]
    for number, count in enumerate(draw.counts.tolist()):
        if count == 0:
            cuts = np.zeros(0)
        elif thresholds is None:
            cuts = np.arange(1, count) / count
        else:
            cuts = thresholds[number, count - 1]
            cuts = cuts[np.isfinite(cuts)]
        lowest = 0.0 if number == TISSUE_OF["background"] else -_STEP / 4
        borders += [number * _STEP + cut for cut in (lowest, *cuts.tolist())]
        parts = range(number * MOST, number * MOST + len(cuts) + 1)
        cells += parts if count else [-1]
    place = torch.bucketize(tissue * _STEP + value, torch.tensor(borders, device=tissue.device))
    return torch.tensor(cells, device=tissue.device)[place - 1]


def _uniform(field: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """(*shape): a field at nodes made smooth, and even over 0..1."""
    smooth = resize(field[None], shape)[0]
    # Interpolation lowers the variance between nodes.
    return torch.special.ndtr((smooth - smooth.mean()) / smooth.std(correction=0).clamp(min=1e-6))
