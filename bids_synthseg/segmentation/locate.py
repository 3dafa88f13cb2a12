"""Where the brain is, in any field of view.

A small network sees the whole field of view on a coarse isotropic grid and answers "brain or
not"; the box of the largest component decides centre and scale of the working grid.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from bids_synthseg.anatomy.islands import largest_component
from bids_synthseg.anatomy.volume import Grid, Volume, resample
from bids_synthseg.models.checkpoint import Model
from bids_synthseg.models.inputs import network_input

MIN_VOXELS = 24
"""A smaller find on the locator's grid is taken for noise."""

SMALLEST_BRAIN_MM, LARGEST_BRAIN_MM = 30.0, 230.0
"""Sides of a brain's box from a 20-week fetus to an adult, with some room."""

BOX_MARGIN = 1.15
"""The locator sees less than all of a brain: its box is made larger by this factor, so that the
network need not run once more in the box that it finds itself (benchmarks/accuracy.md)."""


@dataclass(frozen=True, eq=False)
class BrainBox:
    """`centre_mm` (3,) in the world, `extent_mm` (3,) along the grid's axes.

    `found` is false where the whole field of view stands in for a brain that was not seen.
    """

    centre_mm: np.ndarray
    extent_mm: np.ndarray
    found: bool = True

    def scaled(self, factor: float) -> "BrainBox":
        """The same box, larger by a factor about its centre."""
        return replace(self, extent_mm=self.extent_mm * factor)

    def agrees_with(self, other: "BrainBox", tolerance: float) -> bool:
        """True where size and place differ by less than a fraction of the box."""
        size = max(float(self.extent_mm.max()), float(other.extent_mm.max()))
        shift = np.abs(self.centre_mm - other.centre_mm).max()
        change = abs(float(self.extent_mm.max()) - float(other.extent_mm.max()))
        return bool(shift < tolerance * size and change < tolerance * size)


def box_of(mask: np.ndarray, grid: Grid) -> BrainBox | None:
    """The box of a mask (X, Y, Z); None where it is empty or of no brain's size."""
    if not mask.any():
        return None
    spans = [np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    low = np.array([span[0] for span in spans])
    high = np.array([span[-1] for span in spans])
    extent_mm = (high - low + 1) * grid.voxel_size_mm
    if not SMALLEST_BRAIN_MM < extent_mm.max() < LARGEST_BRAIN_MM:
        return None
    return BrainBox(grid.to_world((low + high) / 2), extent_mm)


def whole_field_of_view(grid: Grid) -> BrainBox:
    """The box of everything there is, no larger than a head; marked as not found."""
    extent = np.minimum(np.array(grid.shape) * grid.voxel_size_mm, LARGEST_BRAIN_MM)
    return BrainBox(grid.centre_mm, extent, found=False)


@dataclass(frozen=True, eq=False)
class Location:
    """The box of a brain, and `mask`, float32 on the locator's grid, 1 in what it calls brain; not
    to be relied on where the box was not found."""

    box: BrainBox
    mask: Volume


def locate(scan: Volume, locator: Model) -> Location:
    """The place of the brain in a canonical, standardised scan (anatomy.intensity)."""
    extent_mm = np.array(scan.grid.shape) * scan.grid.voxel_size_mm
    voxel_mm = float((extent_mm / np.array(locator.shape)).max())
    middle = (np.array(scan.grid.shape) - 1) / 2
    window = scan.grid.window(middle, voxel_mm, locator.shape)
    overview = resample(scan, window)
    with torch.inference_mode():
        image = torch.from_numpy(overview.data).to(locator.device)
        logits = locator.network(network_input(image, locator.intensity))
        brain = locator.head.probabilities(logits)[0, 1].cpu().numpy() > 0.5
    brain = largest_component(brain)
    box = box_of(brain, overview.grid) if brain.sum() >= MIN_VOXELS else None
    place = box.scaled(BOX_MARGIN) if box else whole_field_of_view(scan.grid)
    return Location(place, Volume(brain.astype(np.float32), overview.grid))
