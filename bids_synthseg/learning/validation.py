"""How well a network does on real scans that lie beside label maps, on its own working grid.

The brain's box is taken from the map, so this judges the network alone, without the locator.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from bids_synthseg.learning.config import TrainConfig
from bids_synthseg.learning.datasets import TrainingMap
from bids_synthseg.models.heads import Head
from bids_synthseg.models.inputs import network_input
from bids_synthseg.models.unet import UNet
from bids_synthseg.synthesis.acquisition import AcquisitionConfig
from bids_synthseg.synthesis.deformation import DeformationConfig
from bids_synthseg.synthesis.head import HeadConfig
from bids_synthseg.synthesis.recipe import SynthesisConfig, draw, render

UNTOUCHED = SynthesisConfig(
    flip=0.0,
    real=1.0,
    keep_surroundings=1.0,
    deformation=DeformationConfig(rotation_deg=0, scale=0, shear=0, shift=0, warp=0),
    acquisition=AcquisitionConfig(bias=0, gamma=0, noise_max=0, sharp=1, one_axis=0, blur=0),
    head=HeadConfig(shells=0, csf_only=0, blobs=0),
)
"""The generator with every effect switched off: it resamples the paired scan."""


@torch.no_grad()
def validation_dice(
    network: UNet, maps: Sequence[TrainingMap], config: TrainConfig, head: Head
) -> dict[str, float]:
    """Mean Dice of each scan beside a map, by `data set/map/number of the scan`.

    Maps must lie on the network's device.
    """
    scores = {}
    for one in maps:
        # Nothing is left to chance but which voxel of a pool gives the class.
        drawn = draw(
            one.source, UNTOUCHED, config.shape, config.fill, np.random.default_rng(0), config.pool
        )
        # What a scan leaves empty is painted: black.
        black = np.zeros_like(drawn.means)
        drawn = replace(drawn, means=black, spreads=black)
        for number in range(len(one.source.images)):
            image, classes = render(one.source, replace(drawn, image=number))
            labels = head.probabilities(
                network(network_input(image, config.network.intensity)).float()
            )[0].argmax(0)
            scores[f"{one.dataset}/{one.name}/{number}"] = mean_dice(labels, classes, one.sets)
    return scores


def mean_dice(labels: torch.Tensor, classes: torch.Tensor, sets: np.ndarray) -> float:
    """Mean over the label sets present, those that may be background left out; NaN without any.

    `labels` (X, Y, Z) predicted channels, `classes` (X, Y, Z) rows of `sets` (K, C) bool.
    """
    groups, group = np.unique(sets, axis=0, return_inverse=True)
    target = torch.from_numpy(group.ravel()).to(classes.device)[classes]
    scores = []
    for number, members in enumerate(groups):
        truth = target == number
        if members[0] or not truth.any():
            continue
        found = torch.from_numpy(members).to(labels.device)[labels]
        scores.append(float(2 * (found & truth).sum() / (found.sum() + truth.sum())))
    return float(np.mean(scores)) if scores else float("nan")
