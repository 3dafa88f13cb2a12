"""What an image says of every class, given roughly where the classes are.

A T2w shows white matter bright where a newborn's T1w shows it dark: for a network that is to know
neither, "bright" means nothing until it has seen which tissue is bright here. Coarse answers tell
that: the intensities of each class are taken for a Gaussian, which a few rounds of expectation
maximisation fit to the image at hand (Van Leemput et al. 1999; SAMSEG, Puonti et al. 2016). How
well a voxel fits each of them means the same in every contrast.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

ROUNDS = 2
"""Of expectation and maximisation, after the Gaussians of the coarse answer itself."""

SMALLEST_SD = 0.1
"""Of a class, on the network's scale of intensities: less is the noise of a few voxels."""

TABLE_SIZE = 2048
"""Places of a table of fits: with the smallest SD, and the range of the network's intensities, what
lies between them is off by less than 1e-4."""

_LEAST_WEIGHT = 1.0  # voxels that stand in every class for the whole image


@torch.no_grad()
def class_gaussians(image: torch.Tensor, prior: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and SD (B, C, 1) of the intensities of each class.

    `image` (B, X, Y, Z); `prior` (B, C, X / f, Y / f, Z / f): the chance of each class, of which
    every f-th voxel of the image is taken as a sample. Neither gets a gradient.
    """
    factor = image.shape[1] // prior.shape[2]
    places = slice(factor // 2, None, factor)
    # Classes last in memory: a voxel's chances are summed in one go.
    values = image[:, places, places, places].flatten(1)[..., None]
    chances = prior.flatten(2).transpose(1, 2).contiguous()
    mean, sd = _moments(values, chances)
    for _ in range(ROUNDS):
        weights = fit(values, mean, sd).mul_(chances).div_(sd)
        weights /= weights.sum(2, keepdim=True).clamp(min=1e-12)
        mean, sd = _moments(values, weights)
    return mean.transpose(1, 2), sd.transpose(1, 2)


def fit(values: torch.Tensor, mean: torch.Tensor, sd: torch.Tensor) -> torch.Tensor:
    """How well values fit Gaussians, 1 at the mean; the arguments are broadcast."""
    return (-0.5 * ((values - mean) / sd).square()).exp()


@torch.no_grad()
def fit_table(
    values: torch.Tensor, mean: torch.Tensor, sd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`fit` of Gaussians (B, C, 1) at `TABLE_SIZE` values that span `values`: the values (Q,), and
    the table (B, Q, C)."""
    low, high = values.min(), values.max()
    steps = torch.linspace(0, 1, TABLE_SIZE, device=values.device)
    # An image of one value has a table all the same.
    places = low + (high - low).clamp(min=1.0) * steps
    return places, fit(places[:, None], mean.transpose(1, 2), sd.transpose(1, 2))


def looked_up(image: torch.Tensor, values: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """Sum over channels of what tables say of an image, linear between their places.

    `image` (B, C, X, Y, Z); `values` (Q,), the evenly spaced places of all tables; `tables`
    (B, C, Q, F), one for each channel. Returns (B, F, X, Y, Z), channels last in memory. Instead of
    exponentials and a convolution over all classes this takes two looks per voxel.
    """
    n_images, n_channels, n_places, n_features = tables.shape
    step = values[1] - values[0]
    with torch.no_grad():
        # Rows of the tables laid end to end, and how much of each.
        place = ((image - values[0]) / step).clamp(0, n_places - 1).flatten(2).transpose(1, 2)
        below = place.floor().clamp(max=n_places - 2)
        above_share = (place - below).flatten(0, 1)
        first = torch.arange(n_images * n_channels, device=image.device) * n_places
        row = (below.long() + first.view(n_images, 1, n_channels)).flatten(0, 1)
        rows = torch.cat([row, row + 1], dim=1)
        shares = torch.cat([1 - above_share, above_share], dim=1)
    found = _RowSums.apply(tables.flatten(0, 2), rows, shares)
    return found.view(n_images, *image.shape[2:], n_features).movedim(-1, 1)


class _RowSums(torch.autograd.Function):
    """Sums of rows of a table: (R, F), rows (V, K) and their shares (V, K) -> (V, F).

    torch's own gradient sorts all rows that were looked at, which takes longer than all else here.
    """

    @staticmethod
    def forward(
        ctx: Any, table: torch.Tensor, rows: torch.Tensor, shares: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(rows, shares)
        ctx.n_rows = len(table)
        return F.embedding_bag(rows, table, per_sample_weights=shares, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        rows, shares = ctx.saved_tensors
        slope = slope.contiguous()
        result = slope.new_zeros(ctx.n_rows, slope.shape[1])
        for look in range(rows.shape[1]):
            result.index_add_(0, rows[:, look], slope * shares[:, look, None])
        return result, None, None


def _moments(values: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and SD (B, 1, C) of values (B, V, 1) under weights (B, V, C)."""
    middle = values.mean(1, keepdim=True)
    centred = values - middle
    powers = torch.cat([torch.ones_like(centred), centred, centred.square()], dim=2)
    total, first, second = (powers.transpose(1, 2) @ weights).split(1, dim=1)
    total = total + _LEAST_WEIGHT
    mean = first / total
    variance = (second + centred.var(1, keepdim=True)) / total - mean.square()
    return mean + middle, variance.clamp(min=SMALLEST_SD**2).sqrt()
