"""Networks made by hand, and a head whose structures they read off its grey values exactly.

The head is a nest of ellipsoids, each brighter than the one around it: the mean of two neighbours
is never the grey of a third, so blurred edges stay edges.
"""

import numpy as np
import torch
from torch import nn

from bids_synthseg.anatomy.labels import Label, LabelTable
from bids_synthseg.anatomy.volume import Grid, Volume
from bids_synthseg.models.checkpoint import Model
from bids_synthseg.models.heads import Head
from bids_synthseg.models.unet import NetworkConfig
from bids_synthseg.pipeline import Segmenter

RADII_MM = np.array([24.0, 30.0, 22.0])
# From the outside in: share of the radii, ids on the left and right, structure, grey value.
SHELLS = (
    (1.0, 24, 24, "cerebrospinal fluid", 45.0),
    (0.88, 3, 42, "cerebral cortex", 70.0),
    (0.7, 2, 41, "cerebral white matter", 95.0),
    (0.5, 10, 49, "thalamus", 120.0),
    (0.22, 1004, 2004, "corpus callosum", 145.0),
)
BACKGROUND_GREY = 20.0
# The callosum is too small to count: the 1st and 99th percentile are air and thalamus.
_RANGE = 120.0 - BACKGROUND_GREY


def grid(
    shape: tuple[int, int, int] = (32, 36, 30),
    voxel_mm: tuple[float, float, float] = (2.1, 2.2, 2.3),
    turn: np.ndarray | None = None,
    centre_mm: tuple[float, float, float] = (7.0, -12.0, 5.0),
) -> Grid:
    """A grid whose middle is at `centre_mm`, axes turned by a rotation matrix."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ np.diag(voxel_mm)
    affine[:3, 3] = centre_mm - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def head(
    place: Grid, centre_mm: np.ndarray | None = None, scale: float = 1.0, noise: float = 0.5
) -> tuple[Volume, Volume]:
    """Labels (int32) and image (float32) on any grid, of a head along the grid's RAS axes.

    centre_mm: where its middle is (default: that of the grid); scale: its size; noise: its sigma.
    """
    axes = place.canonical()[0].affine[:3, :3] / place.canonical()[0].voxel_size_mm
    centre = place.centre_mm if centre_mm is None else centre_mm
    places = np.stack(np.indices(place.shape), axis=-1)
    local = (place.to_world(places) - centre) @ axes
    radius = np.linalg.norm(local / (scale * RADII_MM), axis=-1)
    labels = np.zeros(place.shape, np.int32)
    image = np.full(place.shape, BACKGROUND_GREY, np.float32)
    for share, left, right, _, grey in SHELLS:
        inside = radius < share
        labels[inside] = np.where(local[..., 0] < 0, left, right)[inside]
        image[inside] = grey
    image += np.random.default_rng(3).normal(0, noise, place.shape)
    return Volume(labels, place), Volume(image.astype(np.float32), place)


def interior(labels: np.ndarray) -> np.ndarray:
    """Bool array, true where the six neighbours have the same label: little partial volume."""
    same = np.ones(labels.shape, bool)
    for axis in range(3):
        moved = np.moveaxis(same, axis, 0)
        differ = np.moveaxis(np.diff(labels, axis=axis) != 0, axis, 0)
        moved[:-1] &= ~differ
        moved[1:] &= ~differ
    return same


class GreyReader(nn.Module):
    """The structure whose grey value is nearest; left where the x coordinate (-1..1) is below
    `middle`."""

    def __init__(self, table: LabelTable, middle: float = 0.0) -> None:
        super().__init__()
        self.config = NetworkConfig(intensity="range")
        greys = {"background": BACKGROUND_GREY} | {name: grey for *_, name, grey in SHELLS}
        levels = [(greys.get(name, 1e4) - BACKGROUND_GREY) / _RANGE for name in table.structures]
        self.levels = nn.Parameter(torch.tensor(levels).reshape(1, -1, 1, 1, 1))
        self.middle = middle

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = -300.0 * (image[:, :1] - self.levels) ** 2
        return torch.cat([logits, -200.0 * (image[:, 1:2] - self.middle)], dim=1)


class BrightIsBrain(nn.Module):
    """Brain where the image is brighter than a level between air and the outermost shell."""

    def __init__(self, level: float = 0.12) -> None:
        super().__init__()
        self.config = NetworkConfig(intensity="range")
        self.level = nn.Parameter(torch.tensor(level))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        brain = 100.0 * (image[:, :1] - self.level)
        return torch.cat([-brain, brain], dim=1)


def reader(shape: tuple[int, int, int] = (40, 48, 40), fill: float = 0.85) -> Model:
    """A model of all shipped labels."""
    table = LabelTable.default()
    # It reads grey values as they are.
    return Model(GreyReader(table), Head(table, "sided"), shape, fill, correct_bias=False)


def locator(level: float = 0.12, shape: tuple[int, int, int] = (48, 48, 48)) -> Model:
    """A model of brain and background."""
    brain = Label(1, "Brain", "BRAIN", "#cd3e4e", 1, "brain", "midline", 1, 1)
    table = LabelTable((LabelTable.default().rows[0], brain))
    return Model(BrightIsBrain(level), Head(table, "joint"), shape, 0.5)


def segmenter(checksum: str = "0" * 64) -> Segmenter:
    """Both, as the pipeline wants them."""
    return Segmenter(reader(), locator(), checksum)
