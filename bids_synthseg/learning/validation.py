"""How well a network does on maps it was not trained on: on the real scans that lie beside them,
and on images painted from them that are the same every time.

The brain's box is taken from the map, so this judges the network alone, without the locator.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.learning.config import TrainConfig
from bids_synthseg.learning.maps import TrainingMap
from bids_synthseg.models.heads import Head
from bids_synthseg.models.inputs import network_input
from bids_synthseg.models.unet import UNet
from bids_synthseg.synthesis.acquisition import AcquisitionConfig
from bids_synthseg.synthesis.deformation import DeformationConfig
from bids_synthseg.synthesis.head import HeadConfig
from bids_synthseg.synthesis.recipe import SynthesisConfig, draw, render, working_voxel

UNTOUCHED = SynthesisConfig(
    flip=0.0,
    real=1.0,
    keep_surroundings=1.0,
    deformation=DeformationConfig(rotation_deg=0, scale=0, shear=0, shift=0, warp=0),
    acquisition=AcquisitionConfig(bias=0, gamma=0, noise_max=0, sharp=1, one_axis=0, blur=0),
    head=HeadConfig(shells=0, csf_only=0, blobs=0),
)
"""The generator with every effect switched off: it resamples the paired scan."""

SYNTHETIC = "synthetic"
"""Kind of the images that are no scans; those of scans are their contrasts."""


@dataclass(frozen=True)
class Score:
    """Dice of one structure in one image: `kind` is "T1w", "T2w" or "synthetic", `number` tells
    images of one map and kind apart."""

    dataset: str
    map: str
    kind: str
    number: int
    structure: str
    dice: float

    @property
    def name(self) -> str:
        """The image: `data set/map/T1w`, or `data set/map/synthetic-0`."""
        image = f"{self.kind}-{self.number}" if self.kind == SYNTHETIC else self.kind
        return f"{self.dataset}/{self.map}/{image}"


@torch.no_grad()
def validate(
    network: UNet,
    maps: Sequence[TrainingMap],
    config: TrainConfig,
    head: Head,
    n_synthetic: int = 2,
) -> list[Score]:
    """The scores of every scan beside a map and of `n_synthetic` images painted from it.

    Painted images come from the run's own generator, with seeds that depend on the map's name
    alone: they are the same at every step, in every order of the maps and on every device.
    """
    device = next(network.parameters()).device
    images = (image for one in maps for image in _images(one, config, n_synthetic, device))
    scores = []
    while batch := list(islice(images, config.batch)):
        logits = network(
            torch.cat([network_input(image.voxels, network.config.intensity) for image in batch])
        )
        for image, own in zip(batch, logits, strict=True):
            labels = head.probabilities(own[None].float())[0].argmax(0)
            found = structure_dice(labels, image.classes, image.map.sets, head.table)
            place = image.map.dataset, image.map.name, image.kind, image.number
            scores += [Score(*place, structure, dice) for structure, dice in found.items()]
    return scores


@dataclass(frozen=True)
class _Image:
    """`voxels` (X, Y, Z) of a scan or a painted image, `classes` (X, Y, Z) rows of the map's
    sets."""

    map: TrainingMap
    kind: str
    number: int
    voxels: torch.Tensor
    classes: torch.Tensor


def _images(
    one: TrainingMap, config: TrainConfig, n_synthetic: int, device: torch.device
) -> Iterator[_Image]:
    source = one.source.to(device)
    voxel_mm = working_voxel(source, config.shape, config.fill, config.voxel_mm)
    grid = config.shape, voxel_mm
    # Nothing is left to chance but which voxel of a pool gives the class.
    drawn = draw(source, UNTOUCHED, *grid, np.random.default_rng(0), config.pool)
    # What a scan leaves empty is painted: black.
    black = np.zeros_like(drawn.means)
    drawn = replace(drawn, means=black, spreads=black)
    for number, contrast in enumerate(source.contrasts):
        yield _Image(one, contrast, number, *render(source, replace(drawn, image=number)))
    painted = replace(config.synthesis, real=0.0)
    identity = zlib.crc32(f"{one.dataset}/{one.name}".encode("utf-8", "backslashreplace"))
    for number in range(n_synthetic):
        rng = np.random.default_rng([identity, number])
        drawn = draw(source, painted, *grid, rng, config.pool, age_weeks=one.age_weeks)
        yield _Image(one, SYNTHETIC, number, *render(source, drawn))


def structure_dice(
    labels: torch.Tensor, classes: torch.Tensor, sets: np.ndarray, table: LabelTable
) -> dict[str, float]:
    """Dice of each structure that is present, the mean of its sides; a set of several structures
    is one, by the names of all.

    `labels` (X, Y, Z) predicted channels of `table`, `classes` (X, Y, Z) rows of `sets` (K, C)
    bool. Sets that may be background are not judged. A voxel whose own set overlaps another is no
    false positive of that one, as in `loss.label_set_loss`.
    """
    groups, group = np.unique(sets, axis=0, return_inverse=True)
    group_of_class = torch.from_numpy(group.ravel()).to(classes.device)
    # How many voxels of each set were given each label: all that is needed, in one pass.
    pairs = group_of_class[classes.flatten()] * len(table) + labels.flatten()
    counts = torch.bincount(pairs, minlength=len(groups) * len(table))
    counts = counts.view(len(groups), len(table)).cpu().numpy()
    found = counts @ groups.T.astype(int)  # (T, T): voxels of a set whose label is in another
    overlap = groups.astype(int) @ groups.T.astype(int) > 0
    counted = ~overlap | np.eye(len(groups), dtype=bool)
    truth, hits, predicted = counts.sum(1), found.diagonal(), (found * counted).sum(0)
    by_structure: dict[str, list[float]] = {}
    for number, members in enumerate(groups):
        if truth[number] and not members[0]:
            dice = 2 * hits[number] / (truth[number] + predicted[number])
            by_structure.setdefault(_name(members, table), []).append(float(dice))
    return {name: float(np.mean(sides)) for name, sides in by_structure.items()}


def _name(members: np.ndarray, table: LabelTable) -> str:
    """The structures of a label set, without sides."""
    names = (row.structure for row, member in zip(table.rows, members, strict=True) if member)
    return " + ".join(dict.fromkeys(names))
