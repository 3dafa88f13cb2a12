"""Posteriors as a function of the place in the world.

Working grids, native grids and moved scans meet here: a field answers at any point in mm, so
native posteriors never need to exist as a whole.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import maximum_filter

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.posteriors import merge
from bids_synthseg.anatomy.volume import Grid, Volume, resample

SLAB_VOXELS = 200_000
"""Points asked for at once: about 30 MB of posteriors."""

NO_LABEL = 0.999
"""Where background is more probable than this, and all around, no label is to be expected."""


class PosteriorField(Protocol):
    """Anything that knows the probability of every label at points in the world."""

    @property
    def table(self) -> LabelTable:
        """The labels, in channel order."""
        ...

    def at(self, points_mm: np.ndarray) -> np.ndarray:
        """(N, 3) world mm -> (C, N) float32 probabilities that sum to 1, or are 0 throughout where
        nothing is known."""
        ...

    def support(self, grid: Grid) -> np.ndarray:
        """(X, Y, Z) bool: the voxels of a grid where something but background may be."""
        ...


@dataclass(frozen=True, eq=False)
class GridField:
    """Trilinear interpolation of posteriors (C, X, Y, Z) on a grid.

    Over one voxel beyond the outermost centres it fades to background, which it is outside. The
    grid has at least two voxels along every axis.
    """

    data: torch.Tensor
    grid: Grid
    table: LabelTable

    @property
    def brain(self) -> np.ndarray:
        """(X, Y, Z) bool: where background is less probable than all labels together."""
        return (self.data[0] < 0.5).cpu().numpy()

    @cached_property
    def channels(self) -> np.ndarray:
        """(X, Y, Z) int64: the most probable channel."""
        return self.data.argmax(0).cpu().numpy()

    def at(self, points_mm: np.ndarray) -> np.ndarray:
        """(N, 3) world mm -> (C, N)."""
        size = np.array(self.grid.shape)
        unit = 2 * self.grid.to_voxel(points_mm) / (size - 1) - 1
        places = torch.from_numpy(unit[:, ::-1].astype(np.float32).copy()).to(self.data.device)
        found = F.grid_sample(
            self.data[None].float(), places[None, None, None], align_corners=True
        )[0, :, 0, 0]
        found[0] += 1 - found.sum(0)
        return found.clamp_(min=0).cpu().numpy()

    def support(self, grid: Grid) -> np.ndarray:
        """(X, Y, Z) bool, with a margin of more than a voxel of either grid."""
        possible = (self.data[0] < NO_LABEL).cpu().numpy()
        margin = 1 + math.ceil((grid.voxel_size_mm.max() / self.grid.voxel_size_mm).max())
        # Labels fade out beyond the outermost centres as well.
        wide = maximum_filter(np.pad(possible, margin), 2 * margin + 1)
        affine = self.grid.affine.copy()
        affine[:3, 3] = self.grid.to_world(np.full(3, -float(margin)))
        return resample(Volume(wide, Grid(wide.shape, affine)), grid, order=0).data


@dataclass(frozen=True, eq=False)
class SeenField:
    """A field that says nothing, all zeros, where its scan shows nothing: beyond the field of view,
    and where `unseen`, (X, Y, Z) bool on the grid of the scan, is true in the nearest voxel."""

    source: PosteriorField
    unseen: Volume

    @property
    def table(self) -> LabelTable:
        """The labels of the source."""
        return self.source.table

    def at(self, points_mm: np.ndarray) -> np.ndarray:
        """(N, 3) world mm -> (C, N)."""
        found = self.source.at(points_mm)
        nearest, within = self._voxels(points_mm)
        found[:, ~within] = 0
        found[:, within] *= ~self.unseen.data[tuple(nearest[within].T)]
        return found

    def support(self, grid: Grid) -> np.ndarray:
        """(X, Y, Z) bool: that of the source, whatever the scan shows."""
        return self.source.support(grid)

    def is_empty(self, points_mm: np.ndarray) -> np.ndarray:
        """(N, 3) world mm -> (N,) bool: within the field of view, but nothing was measured."""
        nearest, within = self._voxels(points_mm)
        within[within] = self.unseen.data[tuple(nearest[within].T)]
        return within

    def _voxels(self, points_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The nearest voxels (N, 3), and whether they lie in the field of view (N,)."""
        grid = self.unseen.grid
        nearest = np.rint(grid.to_voxel(points_mm)).astype(np.intp)
        return nearest, ((nearest >= 0) & (nearest < grid.shape)).all(axis=1)


@dataclass(frozen=True, eq=False)
class MovedField:
    """A field seen from another world: `transform` (4, 4) takes a point there to a point here."""

    source: PosteriorField
    transform: np.ndarray

    @property
    def table(self) -> LabelTable:
        """The labels of the source."""
        return self.source.table

    def at(self, points_mm: np.ndarray) -> np.ndarray:
        """(N, 3) mm in the other world -> (C, N)."""
        return self.source.at(points_mm @ self.transform[:3, :3].T + self.transform[:3, 3])

    def support(self, grid: Grid) -> np.ndarray:
        """(X, Y, Z) bool."""
        return self.source.support(Grid(grid.shape, self.transform @ grid.affine))


@dataclass(frozen=True)
class MergedField:
    """One or more contrasts of one brain: per point, the whole vector of the surest one.

    Later fields win ties, so T2w comes after T1w. All fields have the same labels. A field that
    says nothing (`SeenField`) leaves the word to the others.
    """

    fields: Sequence[PosteriorField]

    @property
    def table(self) -> LabelTable:
        """The labels of every field."""
        return self.fields[0].table

    def at(self, points_mm: np.ndarray) -> np.ndarray:
        """(N, 3) world mm -> (C, N)."""
        return surest([field.at(points_mm) for field in self.fields])

    def support(self, grid: Grid) -> np.ndarray:
        """(X, Y, Z) bool: where any of the fields has it."""
        return np.any([field.support(grid) for field in self.fields], axis=0)


def surest(posteriors: Sequence[np.ndarray]) -> np.ndarray:
    """Posteriors (C, ...) of several contrasts -> per point the whole vector of the surest one, as
    in `MergedField`."""
    merged = posteriors[0]
    for other in posteriors[1:]:
        merged, _ = merge(merged, other)
    return merged


def is_silent(posteriors: np.ndarray) -> np.ndarray:
    """(C, ...) -> (...) bool: where a field says nothing."""
    return posteriors.sum(axis=0) < 0.5


def background_where_silent(posteriors: np.ndarray) -> np.ndarray:
    """Posteriors (C, ...), in place, with certain background where a field says nothing."""
    posteriors[0][is_silent(posteriors)] = 1
    return posteriors


def chunks(mask: np.ndarray) -> Iterator[np.ndarray]:
    """The voxels of a mask (X, Y, Z), so many at once as are asked for: indices (N, 3)."""
    indices = np.argwhere(mask)
    for start in range(0, len(indices), SLAB_VOXELS):
        yield indices[start : start + SLAB_VOXELS]


def slabs(source: PosteriorField, grid: Grid) -> Iterator[tuple[slice, np.ndarray]]:
    """The field on a grid in slabs along its first axis: (slice, (C, n, Y, Z)) after another."""
    thickness = max(1, SLAB_VOXELS // (grid.shape[1] * grid.shape[2]))
    for start in range(0, grid.shape[0], thickness):
        part = slice(start, min(start + thickness, grid.shape[0]))
        shape = (part.stop - part.start, *grid.shape[1:])
        indices = np.stack(np.indices(shape), axis=-1).reshape(-1, 3)
        indices[:, 0] += start
        yield part, source.at(grid.to_world(indices)).reshape(-1, *shape)
