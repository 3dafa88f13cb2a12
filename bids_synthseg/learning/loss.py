"""Label-set loss: Dice and cross-entropy on the summed probability of each target's label set.

After Fidon et al. 2021, "Label-set loss functions for partial supervision". A voxel whose target
set overlaps another set is no false positive of that set: where "background or CSF" is all that
one label says, CSF that another label names does not count against it.

Before it a run may warm up with SynthSeg's squared error of the logits (Billot et al. 2023), and
beside it the coarser levels of a network may answer for themselves (deep supervision).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from bids_synthseg.fields import MOST_STEPS, check_ranges
from bids_synthseg.models.heads import Head
from bids_synthseg.models.unet import Lattice

LEAST_CHANCE = 1e-30
"""A target less probable than this has no slope in the cross-entropy, which so stays finite. Far
below the chances of a network that goes on with other labels, sure of what is now wrong."""

LOGIT_TARGET = 5.0
"""Warm-up: logits inside a target's set shall be this high, outside it this low."""

BACKGROUND_WEIGHT = 1e-4
"""Warm-up: weight of a voxel whose set contains background; others have 1 more."""

# On a CPU, so many voxels of all channels stay in the cache from one operation to the next.
_CHUNK = 8192


@dataclass(frozen=True)
class LossConfig:
    """`dice` and `cross_entropy`: weights of the two terms; `warm_up_l2`: first steps of a run that
    use the squared error of the logits instead; `deep`: weight of the loss on the grid of half the
    size, each coarser grid having half the weight of the one before; 0: on the finest alone."""

    dice: float = 1.0
    cross_entropy: float = 1.0
    warm_up_l2: int = 0
    deep: float = 0.0

    def __post_init__(self) -> None:
        weights = dict.fromkeys(("dice", "cross_entropy", "deep"), (0, 1e6))
        check_ranges(self, {**weights, "warm_up_l2": (0, MOST_STEPS)})
        if self.dice + self.cross_entropy == 0:
            raise ValueError("loss: one of dice and cross_entropy must be above 0")


def training_loss(
    pyramid: Sequence[torch.Tensor],
    classes: torch.Tensor,
    sets: np.ndarray,
    head: Head,
    config: LossConfig,
    step: int,
    lattice: Lattice | None = None,
) -> torch.Tensor:
    """Loss of one sample at `step`, summed over the levels of a network.

    `pyramid`: logits (1, n, X / f, Y / f, Z / f) of the levels, from f = 1 on, the first at the
    places of `lattice` alone; `classes` (X, Y, Z) int64 rows of `sets` (K, C) bool, of which each
    coarser level takes the voxel nearest to the centre of its own.
    """
    losses = []
    for level, logits in enumerate(pyramid if config.deep else pyramid[:1]):
        if level == 0:
            target = classes[(lattice or Lattice()).slices]
        else:
            factor = len(classes) // logits.shape[2]
            target = classes[(slice(factor // 2, None, factor),) * 3]
        if step < config.warm_up_l2:
            loss = logit_l2_loss(logits, target, sets, head)
        else:
            loss = label_set_loss(logits, target, sets, head, config.dice, config.cross_entropy)
        losses.append(loss if level == 0 else config.deep * 0.5 ** (level - 1) * loss)
    return torch.stack(losses).sum()


def label_set_loss(
    logits: torch.Tensor,
    classes: torch.Tensor,
    sets: np.ndarray,
    head: Head,
    dice: float = 1.0,
    cross_entropy: float = 1.0,
) -> torch.Tensor:
    """`cross_entropy` times the mean cross-entropy plus `dice` times one minus the mean Dice.

    `logits` (1, n, X, Y, Z) of one sample; `classes` (X, Y, Z) int64 rows of `sets` (K, C) bool.
    Classes of the same set count as one; sets that do not occur in the sample take no part in the
    Dice term, which weighs all others alike whatever their size.
    """
    sets, target = _targets(classes, sets)
    sides = head.memberships(sets)
    members = _on(np.stack(sides if head.kind == "sided" else sides[:1]), logits)
    sums, volume, log_chance = _SetSums.apply(logits[0].flatten(1), target, members)
    # (T, T): probability of a set, summed over the voxels of each set.
    predicted = torch.einsum("dts,dsu->tu", members, sums)
    overlap = (sets.astype(int) @ sets.T.astype(int)) > 0
    counted = _on((~overlap | np.eye(len(sets), dtype=bool)).astype(np.float32), logits)
    scores = (2 * predicted.diagonal() + 1) / (volume + (predicted * counted).sum(1) + 1)
    present = (volume > 0).float()
    mean_dice = (scores * present).sum() / present.sum()
    return dice * (1 - mean_dice) - cross_entropy * log_chance


def logit_l2_loss(
    logits: torch.Tensor, classes: torch.Tensor, sets: np.ndarray, head: Head
) -> torch.Tensor:
    """Squared distance of the logits to +5 inside a target and -5 outside it, mean over channels.

    Arguments as in `label_set_loss`. With sets of one label and a joint head this is SynthSeg's
    warm-up loss. The channels of a larger set count as one, whose logit is the log of their summed
    exponentials: that of the set's probability. The side channel of a sided head has a target
    where all of a set lies on one side, and is free elsewhere. Voxels whose set contains background
    weigh next to nothing.
    """
    sets, target = _targets(classes, sets)
    left, right = head.memberships(sets)
    values = logits[0].float().flatten(1)
    n = left.shape[1]
    inside = _on((left + right > 0).T, logits)[:, target]
    together = values[:n].masked_fill(~inside, -torch.inf).logsumexp(0)
    apart = (values[:n] + LOGIT_TARGET).square().masked_fill(inside, 0.0).sum(0)
    error = (together - LOGIT_TARGET).square() + apart
    if head.kind == "sided":
        side = _on(left.any(1).astype(np.float32) - right.any(1), logits)[target]
        error = error + side.abs() * (values[n] - LOGIT_TARGET * side).square()
    weight = _on(np.float32(1 + BACKGROUND_WEIGHT) - sets[:, 0], logits)[target]
    return (weight * error).sum() / (len(values) * weight.sum())


def _targets(classes: torch.Tensor, sets: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
    """(T, C) the distinct sets, and (V,) which of them is the target of each voxel."""
    distinct, group = np.unique(sets, axis=0, return_inverse=True)
    return distinct, _on(group.ravel(), classes)[classes.flatten()]


def _on(table: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    # Not blocking: a GPU need not finish its work for the sake of a small table.
    return torch.from_numpy(table).to(like.device, non_blocking=True)


class _SetSums(torch.autograd.Function):
    """What the loss asks of the voxels, in one pass over them forward and one back.

    `logits` (n, V), `target` (V,) in 0..T-1 and `members` (D, T, S) float32, which structures
    belong to each set on each of D sides (a joint head has one), give (D, S, T) the probabilities
    of structure and side summed over the voxels of each target, (T,) the volume of the targets in
    voxels, and the mean log of the probability of the voxels' own sets. Written out by hand, chunk
    by chunk, it takes less than half the time and memory of recording every operation.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, target: torch.Tensor, members: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        n_sides, n_sets, n = members.shape
        tables = members.transpose(1, 2).reshape(-1, n_sets)
        sums, volume = torch.zeros_like(tables), tables.new_zeros(n_sets)
        chance = tables.new_empty(len(target))
        for part in _parts(target):
            structures, sides = _chances(logits[:, part], n_sides)
            shares = (sides[:, None] * structures).flatten(0, 1)
            truth = _one_hot(target[part], tables)
            sums += shares @ truth.T
            volume += truth.sum(1)
            chance[part] = (shares * (tables @ truth)).sum(0)
        ctx.save_for_backward(logits, target, tables, chance)
        ctx.mark_non_differentiable(volume)
        log_chance = chance.clamp(min=LEAST_CHANCE).log().mean()
        return sums.view(n_sides, n, n_sets), volume, log_chance

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_sums: torch.Tensor, _: torch.Tensor, d_log: torch.Tensor
    ) -> tuple[torch.Tensor, None, None]:
        logits, target, tables, chance = ctx.saved_tensors
        n_sides, n, n_sets = d_sums.shape
        both = torch.cat([d_sums.reshape(-1, n_sets), tables])
        d_chance = torch.where(chance > LEAST_CHANCE, d_log / (len(target) * chance), 0.0)
        slope = torch.empty_like(logits)
        for part in _parts(target):
            structures, sides = _chances(logits[:, part], n_sides)
            from_sums, inside = (both @ _one_hot(target[part], tables)).view(2, n_sides, n, -1)
            d_shares = torch.addcmul(from_sums, inside, d_chance[part])
            pulled = structures * (sides[:, None] * d_shares).sum(0)
            slope[:n, part] = pulled - structures * pulled.sum(0)
            if n_sides == 2:
                towards_left = (structures * (d_shares[0] - d_shares[1])).sum(0)
                slope[n, part] = sides[0] * sides[1] * towards_left
        return slope, None, None


def _parts(target: torch.Tensor) -> Iterator[slice]:
    size = _CHUNK if target.device.type == "cpu" else len(target)
    return (slice(start, start + size) for start in range(0, len(target), size))


def _chances(logits: torch.Tensor, n_sides: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, V) logits -> (S, V) probabilities of the structures and (D, V) of left and right, each
    exact however small; the one side of a joint head is certain."""
    logits = logits.float()
    if n_sides == 1:
        return logits.softmax(0), torch.ones_like(logits[:1])
    return logits[:-1].softmax(0), torch.cat([logits[-1:], -logits[-1:]]).sigmoid()


def _one_hot(target: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """(V,) -> (T, V) float32."""
    truth = tables.new_zeros((tables.shape[1], len(target)))
    return truth.scatter_(0, target[None], 1.0)
