"""Label-set loss: Dice and cross-entropy on the summed probability of each target's label set.

After Fidon et al. 2021, "Label-set loss functions for partial supervision". A voxel whose target
set overlaps another set is no false positive of that set: where "background or CSF" is all that
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
    """Loss of one sample: mean cross-entropy plus `dice_weight` times one minus the mean Dice.

    `logits` (1, n, X, Y, Z); `classes` (X, Y, Z) int64 rows of `sets` (K, C) bool. Classes of the
    same set count as one; sets that do not occur in the sample take no part in the Dice term, which
    weighs all others alike whatever their size.
    """
    device = logits.device
    present = torch.bincount(classes.flatten(), minlength=len(sets)).cpu().numpy() > 0
    sets, group = np.unique(sets[present], axis=0, return_inverse=True)
    target_of = np.zeros(len(present), dtype=np.int64)
    target_of[present] = group.ravel()
    target = torch.from_numpy(target_of).to(device)[classes.flatten()]

    # (T, V): probability of each set in each voxel, and which set is the voxel's target.
    structures, left = head.split(logits.float())
    structures, left = structures[0].flatten(1), left[0].flatten()
    in_left, in_right = (torch.from_numpy(m).to(device) for m in head.memberships(sets))
    chance = in_left @ (structures * left) + in_right @ (structures * (1 - left))
    truth = torch.zeros_like(chance).scatter_(0, target[None], 1.0)

    matched = chance.gather(0, target[None])
    cross_entropy = -matched.clamp(min=1e-6).log().mean()
    predicted = chance @ truth.T  # (T, T): probability of a set, summed over each set's voxels
    volume = truth.sum(1)
    overlap = (sets.astype(int) @ sets.T.astype(int)) > 0
    counted = torch.from_numpy(~overlap | np.eye(len(sets), dtype=bool)).to(device)
    dice = (2 * predicted.diagonal() + 1) / (volume + (predicted * counted).sum(1) + 1)
    return cross_entropy + dice_weight * (1 - dice.mean())
