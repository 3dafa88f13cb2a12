"""Where the brain is, in any field of view.

A small network sees the whole field of view on a coarse isotropic grid and answers "brain or
not". It looks again, closer, on a window around what it found, until the window is that of the
brain that is found in it: whatever lies farther away, or how much air a scan has around the head,
then changes nothing. To be the same from wherever the looks began, windows have sizes and places of
a few steps, and are approached from the larger. The box of the largest component decides centre and
scale of the working grid.
"""

import math
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

WINDOW = 2.6
"""Side of a window about a brain, in cube roots of its volume: about 1.6 times its longest side."""

SIZE_STEP, PLACE_STEP = 1.15, 0.12
"""Sizes of windows differ by this factor, their middles by this part of the cube root."""

MOST_LOOKS = 6

BOX_MARGIN = 1.12
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
    """The box of a brain, and `mask`, float32 on the locator's grid, the probability of brain in
    what it calls brain and 0 elsewhere; not to be relied on where the box was not found."""

    box: BrainBox
    mask: Volume


@dataclass(frozen=True)
class _Window:
    """A cube about a brain: the cube root of the brain's volume is SIZE_STEP ** size mm, `place`
    its middle along the axes of a frame, from the world's origin, in parts of that."""

    size: int
    place: tuple[int, ...]

    @staticmethod
    def about(mask: Volume, larger: int = 0) -> "_Window":
        """The window that fits a mask (X, Y, Z) of probabilities, not empty; or one that is so
        many steps larger."""
        centre = [
            mask.data.sum(axis=others) @ np.arange(mask.grid.shape[axis]) / mask.data.sum()
            for axis, others in enumerate(((1, 2), (0, 2), (0, 1)))
        ]
        root_mm = (float(mask.data.sum()) * mask.grid.voxel_volume_mm3) ** (1 / 3)
        size = round(math.log(root_mm, SIZE_STEP)) + larger
        along = np.linalg.solve(_axes(mask.grid), mask.grid.to_world(np.array(centre)))
        steps = np.round(along / (PLACE_STEP * SIZE_STEP**size))
        return _Window(size, tuple(int(n) for n in steps))

    def grid(self, frame: Grid, shape: tuple[int, int, int]) -> Grid:
        """The window as a grid of this shape along the axes of `frame`."""
        root_mm = SIZE_STEP**self.size
        centre_mm = _axes(frame) @ (np.array(self.place) * PLACE_STEP * root_mm)
        return frame.window(frame.to_voxel(centre_mm), WINDOW * root_mm / min(shape), shape)


def _axes(grid: Grid) -> np.ndarray:
    """(3, 3) directions of the axes, one a column."""
    return grid.affine[:3, :3] / grid.voxel_size_mm


def locate(scan: Volume, frame: Grid, locator: Model) -> Location:
    """The place of the brain in a canonical, standardised scan (anatomy.intensity), along the axes
    of `frame`, a grid that holds its field of view."""
    extent_mm = np.array(frame.shape) * frame.voxel_size_mm
    voxel_mm = float((extent_mm / np.array(locator.shape)).max())
    middle = (np.array(frame.shape) - 1) / 2
    seen = _seen(scan, frame.window(middle, voxel_mm, locator.shape), locator)
    box = _box(seen)
    if box is None:
        return Location(whole_field_of_view(frame), seen)
    window = _Window.about(seen, larger=1)
    for _ in range(MOST_LOOKS - 1):
        closer = _seen(scan, window.grid(frame, locator.shape), locator)
        found = _box(closer)
        if found is None:
            break
        seen, box = closer, found
        fitting = _Window.about(seen)
        if fitting == window:
            break
        window = fitting
    return Location(box.scaled(BOX_MARGIN), seen)


def _seen(scan: Volume, window: Grid, locator: Model) -> Volume:
    """Probability of brain in the largest piece of what is called brain, 0 elsewhere."""
    overview = resample(scan, window)
    with torch.inference_mode():
        image = torch.from_numpy(overview.data).to(locator.device)
        logits = locator.network(network_input(image, locator.intensity))
        brain = locator.head.probabilities(logits)[0, 1].cpu().numpy()
    return Volume(np.where(largest_component(brain > 0.5), brain, np.float32(0)), window)


def _box(seen: Volume) -> BrainBox | None:
    """The box of a brain that was seen, None where it is too small or large for one."""
    brain = seen.data > 0
    return box_of(brain, seen.grid) if brain.sum() >= MIN_VOXELS else None
