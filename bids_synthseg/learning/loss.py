"""Label-set loss: Dice and cross-entropy on the summed probability of each target's label set.

After Fidon et al. 2021, "Label-set loss functions for partial supervision". A voxel whose target
set overlaps a larger set is no false positive of that set: where "background or CSF" is all that
one label says, CSF that another label names does not count against it.
"""

import numpy as np
import torch

from bids_synthseg.models.heads import Head


def label_set_loss(
    logits: torch.Tensor,
    classes: torch.Tensor,
    sets: np.ndarray,
    head: Head,
    dice_weight: float = 1.0,
) -> torch.Tensor:
    """Loss of one sample: `logits` (1, n, X, Y, Z), `classes` (X, Y, Z) rows of `sets` (K, C).

    Sets that do not occur in the sample take no part in the Dice term, which weighs all others
    alike. Only sums per target set are stored beside the network's output.
    """
    device = logits.device
    # Classes with the same set are one question.
    sets, group = np.unique(sets, axis=0, return_inverse=True)
    target = torch.from_numpy(group.ravel()).to(device)[classes.flatten()]
    in_left, in_right = (torch.from_numpy(m).to(device) for m in head.memberships(sets))
    structures, left = head.split(logits.float())
    structures, left = structures[0].flatten(1), left[0].flatten()
    on_left, on_right = structures * left, structures * (1 - left)

    matched = (in_left.T[:, target] * on_left + in_right.T[:, target] * on_right).sum(0)
    cross_entropy = -matched.clamp(min=1e-6).log().mean()

    # (S, K): probability of each structure, summed over the voxels of each target set.
    sums = torch.zeros((len(structures), len(sets)), device=device)
    index = target.expand(len(structures), -1)
    sum_left = sums.scatter_add(1, index, on_left)
    sum_right = sums.scatter_add(1, index, on_right)
    predicted = in_left @ sum_left + in_right @ sum_right  # (K, K): set x target
    overlap = (sets.astype(int) @ sets.T.astype(int)) > 0
    counts = torch.from_numpy(~overlap | np.eye(len(sets), dtype=bool)).to(device)
    volume = torch.bincount(target, minlength=len(sets)).float()
    dice = (2 * predicted.diagonal() + 1) / (volume + (predicted * counts).sum(1) + 1)
    return cross_entropy + dice_weight * (1 - dice[volume > 0].mean())
