"""Posteriors as a function of the place in the world.

Working grids, native grids and moved scans meet here: a field answers at any point in mm, so
native posteriors never need to exist as a whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.posteriors import merge
from bids_synthseg.anatomy.volume import Grid, Volume

SLAB_VOXELS = 200_000
"""Points asked for at once: about 30 MB of posteriors."""


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


def slabs(source: PosteriorField, grid: Grid) -> Iterator[tuple[slice, np.ndarray]]:
    """The field on a grid in slabs along its first axis: (slice, (C, n, Y, Z)) after another."""
    thickness = max(1, SLAB_VOXELS // (grid.shape[1] * grid.shape[2]))
    for start in range(0, grid.shape[0], thickness):
        part = slice(start, min(start + thickness, grid.shape[0]))
        shape = (part.stop - part.start, *grid.shape[1:])
        indices = np.stack(np.indices(shape), axis=-1).reshape(-1, 3)
        indices[:, 0] += start
        yield part, source.at(grid.to_world(indices)).reshape(-1, *shape)
