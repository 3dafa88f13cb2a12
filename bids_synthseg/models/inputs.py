"""What the network gets to see: an image in 0..1 and where each voxel is."""

import torch

CHANNELS = 4
"""Image and three coordinates."""

PERCENTILES = (0.01, 0.99)


def normalise(image: torch.Tensor) -> torch.Tensor:
    """(X, Y, Z) scaled so that the 1st and 99th percentile of its non-zero voxels are 0 and 1.

    Values are clipped to -0.25 and 1.5. An image without contrast becomes zeros.
    """
    values = image.reshape(-1)
    values = values[values.abs() > 1e-6]
    if values.numel() < 8:
        return torch.zeros_like(image)
    ordered = values[:: max(1, values.numel() // 50_000)].sort().values
    last = ordered.numel() - 1
    low, high = (ordered[round(p * last)] for p in PERCENTILES)
    return ((image - low) / (high - low).clamp(min=1e-6)).clamp(-0.25, 1.5)


def network_input(image: torch.Tensor) -> torch.Tensor:
    """(X, Y, Z) -> (1, CHANNELS, X, Y, Z): normalised image, and coordinates that run from -1 in
    the first voxel of an axis to 1 in the last."""
    axes = [torch.linspace(-1, 1, n, device=image.device) for n in image.shape]
    places = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([normalise(image), *places])[None]
