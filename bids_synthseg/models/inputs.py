"""What the network gets to see: an image on a scale of its own, and where each voxel is.

Two scales, chosen by `NetworkConfig.intensity`:

- "range": the 1st and 99th percentile of non-zero voxels become 0 and 1; coordinates run from -1
  to 1. Enough for a locator.
- "rank": tissue is equalised to -1.5..1.5, so that the small differences inside a brain, a few
  percent of the range of a newborn's T1w, are as large as anything else in the input; coordinates
  run from -0.5 to 0.5. With "range" networks learned places long before they looked at tissue.
"""

import torch

CHANNELS = 4
"""Image and three coordinates."""

INTENSITIES = ("range", "rank")

PERCENTILES = (0.01, 0.99)

FOREGROUND = 0.1
"""Tissue is what is brighter than this fraction of the 99th percentile."""

_LEVELS = 256
_SORTED_VOXELS = 100_000


def to_range(image: torch.Tensor) -> torch.Tensor:
    """(X, Y, Z) scaled so that the 1st and 99th percentile of its non-zero voxels are 0 and 1.

    Values are clipped to -0.25 and 1.5. An image without contrast becomes zeros.
    """
    values = image.reshape(-1)
    values = values[values.abs() > 1e-6]
    if values.numel() < 8:
        return torch.zeros_like(image)
    ordered = values[:: max(1, values.numel() // (_SORTED_VOXELS // 2))].sort().values
    last = ordered.numel() - 1
    low, high = (ordered[round(p * last)] for p in PERCENTILES)
    return ((image - low) / (high - low).clamp(min=1e-6)).clamp(-0.25, 1.5)


def to_rank(image: torch.Tensor) -> torch.Tensor:
    """(X, Y, Z) with tissue equalised to -1.5..1.5, and what is darker than tissue in -2..-1.5.

    Any increasing, linear change of scale leaves the result as it is. An image without contrast
    becomes zeros.
    """
    ordered = image.reshape(-1)[:: max(1, image.numel() // _SORTED_VOXELS)].sort().values
    low, high = (ordered[round(p * (ordered.numel() - 1))] for p in PERCENTILES)
    # Scans of signed values (z-scores) have their air below zero.
    floor = low.clamp(max=0)
    threshold = floor + FOREGROUND * (high - floor)
    tissue = ordered[ordered > threshold]
    if tissue.numel() < 8 or not tissue[-1] > tissue[0]:
        return torch.zeros_like(image)
    places = torch.linspace(0, tissue.numel() - 1, _LEVELS + 1, device=image.device)
    levels = tissue[places.round().long()]
    upper = torch.searchsorted(levels, image.contiguous()).clamp(1, _LEVELS)
    below, above = levels[upper - 1], levels[upper]
    part = ((image - below) / (above - below).clamp(min=1e-12)).clamp(0, 1)
    rank = (upper - 1 + part) / _LEVELS
    dark = ((image - floor) / (threshold - floor) - 1).clamp(-1, 0)
    return torch.where(image > threshold, 3 * (rank - 0.5), 0.5 * dark - 1.5)


def network_input(image: torch.Tensor, intensity: str) -> torch.Tensor:
    """(X, Y, Z) -> (1, CHANNELS, X, Y, Z): image on the scale `intensity`, and coordinates that
    run from the first to the last voxel of an axis."""
    scaled, reach = (to_rank(image), 0.5) if intensity == "rank" else (to_range(image), 1.0)
    axes = [torch.linspace(-reach, reach, n, device=image.device) for n in image.shape]
    places = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([scaled, *places])[None]
