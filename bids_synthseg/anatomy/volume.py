"""Arrays in the world: a grid is a shape and an affine, a volume is data on a grid.

World coordinates are millimetres, RAS+ (x to the right, y to the front, z up), as in nibabel.
Voxel coordinates are continuous; integers are voxel centres, and the field of view reaches half a
voxel beyond the outermost centres.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations, product

import numpy as np

# Affines come from float32 headers: positions that differ by less than this many voxels are equal.
_POSITION_TOLERANCE = 1e-3
# Two grids that touch exactly must not lose their last plane to the last bit of a float.
_EDGE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Reorientation:
    """A permutation and flips of the three spatial axes; `undo` is the exact inverse of `apply`.

    axes: source axis that becomes each new axis; flips: whether that axis runs backwards.
    """

    axes: tuple[int, ...]
    flips: tuple[bool, ...]

    def apply(self, array: np.ndarray) -> np.ndarray:
        """(..., X, Y, Z) in the source's axis order -> contiguous array in the new order."""
        lead = array.ndim - 3
        moved = array.transpose(*range(lead), *(lead + axis for axis in self.axes))
        return np.ascontiguousarray(np.flip(moved, self._flipped))

    def undo(self, array: np.ndarray) -> np.ndarray:
        """(..., X, Y, Z) in the new order -> contiguous array in the source's axis order."""
        lead = array.ndim - 3
        back = (lead + int(axis) for axis in np.argsort(self.axes))
        moved = np.flip(array, self._flipped).transpose(*range(lead), *back)
        return np.ascontiguousarray(moved)

    @property
    def _flipped(self) -> tuple[int, ...]:
        return tuple(axis - 3 for axis in range(3) if self.flips[axis])


@dataclass(frozen=True, eq=False)
class Grid:
    """Voxel grid in the world: shape (X, Y, Z) and (4, 4) float64 voxel -> RAS+ mm affine.

    Raises ValueError where the shape is not three positive integers or the affine is not a finite,
    invertible one.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1 or shape != tuple(self.shape):
            raise ValueError(f"a grid needs three positive integers as shape, not {self.shape}")
        # Adding zero copies and turns -0.0 into 0.0, so that equal affines have equal bytes.
        affine = np.asarray(self.affine, dtype=np.float64) + 0.0
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError("the affine must be a finite 4 x 4 matrix")
        if not np.array_equal(affine[3], (0, 0, 0, 1)):
            raise ValueError("the last row of the affine must be 0 0 0 1")
        size = np.linalg.norm(affine[:3, :3], axis=0)
        if size.min() == 0 or abs(np.linalg.det(affine[:3, :3] / size)) < 1e-6:
            raise ValueError("the affine is singular: its axes do not span space")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grid):
            return NotImplemented
        return self.shape == other.shape and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    @cached_property
    def voxel_size_mm(self) -> np.ndarray:
        """(3,) distance between neighbouring voxel centres along each axis."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def centre_mm(self) -> np.ndarray:
        """(3,) world position of the middle of the field of view."""
        return self.to_world((np.array(self.shape) - 1) / 2)

    @cached_property
    def _inverse(self) -> np.ndarray:
        return np.linalg.inv(self.affine)

    def to_world(self, ijk: np.ndarray) -> np.ndarray:
        """(..., 3) voxel coordinates -> (..., 3) world mm."""
        return np.asarray(ijk, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_voxel(self, xyz: np.ndarray) -> np.ndarray:
        """(..., 3) world mm -> (..., 3) continuous voxel coordinates."""
        away = np.asarray(xyz, dtype=np.float64) - self.affine[:3, 3]
        return away @ self._inverse[:3, :3].T

    def same_as(self, other: "Grid", tol_mm: float = 1e-3) -> bool:
        """True where shapes agree and no voxel centre lies further than `tol_mm` apart."""
        if self.shape != other.shape:
            return False
        # The difference of two affines is affine: its norm is largest at a corner.
        corners = np.array(list(product(*((0, n - 1) for n in self.shape))))
        apart = self.to_world(corners) - other.to_world(corners)
        return bool(np.linalg.norm(apart, axis=1).max() <= tol_mm)

    def canonical(self) -> tuple["Grid", Reorientation]:
        """This grid with its axes closest to RAS+, by permutation and flips only.

        Of the 48 orientations the one with the largest sum of cosines to x, y, z is taken (the
        smallest rotation); a grid at exactly 45 degrees is decided by the cosines themselves, so
        that the answer does not depend on the orientation started from.
        """
        cosines = self.affine[:3, :3] / self.voxel_size_mm
        choices = product(permutations(range(3)), product((False, True), repeat=3))

        def closeness(choice: tuple) -> tuple:
            axes, flips = choice
            turned = cosines[:, axes] * np.where(flips, -1, 1)
            return round(np.trace(turned), 6), *turned.round(6).ravel()

        turn = Reorientation(*max(choices, key=closeness))
        return self.reoriented(turn), turn

    def reoriented(self, turn: Reorientation) -> "Grid":
        """The grid of the same voxels after `turn.apply`: every voxel keeps its place."""
        x, y, z = (self.shape[axis] for axis in turn.axes)
        shape = (x, y, z)
        change = np.zeros((4, 4))
        change[3, 3] = 1
        for new, (old, flipped) in enumerate(zip(turn.axes, turn.flips, strict=True)):
            change[old, new] = -1 if flipped else 1
            change[old, 3] = shape[new] - 1 if flipped else 0
        return Grid(shape, self.affine @ change)

    @property
    def obliqueness_deg(self) -> float:
        """Angle by which the axes of a canonical grid are turned from those of the world; a sheared
        grid is taken for the nearest that is not."""
        left, _, right = np.linalg.svd(self.affine[:3, :3] / self.voxel_size_mm)
        cosine = (np.trace(left @ right) - 1) / 2
        return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))

    def upright(self) -> "Grid":
        """The smallest grid along the world's axes, of voxels as long as the longest side of these,
        that holds the field of view of this one."""
        corners = np.array(list(product(*((-0.5, n - 0.5) for n in self.shape))))
        places = self.to_world(corners)
        low, high = places.min(axis=0), places.max(axis=0)
        voxel_mm = float(self.voxel_size_mm.max())
        x, y, z = (int(n) for n in np.ceil((high - low) / voxel_mm - _EDGE_TOLERANCE))
        affine = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
        affine[:3, 3] = (low + high) / 2 - voxel_mm * (np.array([x, y, z]) - 1) / 2
        return Grid((x, y, z), affine)

    def window(
        self, centre_voxel: np.ndarray, voxel_mm: float, shape: tuple[int, int, int]
    ) -> "Grid":
        """Isotropic grid along this grid's axes whose middle is at `centre_voxel` of this one.

        centre_voxel: (3,) continuous voxel coordinates; voxel_mm: new voxel size.
        """
        affine = np.eye(4)
        affine[:3, :3] = self.affine[:3, :3] / self.voxel_size_mm * voxel_mm
        middle = (np.array(shape) - 1) / 2
        affine[:3, 3] = self.to_world(centre_voxel) - affine[:3, :3] @ middle
        return Grid(shape, affine)


@dataclass(frozen=True, eq=False)
class Volume:
    """Data (X, Y, Z) on a grid; raises ValueError where their shapes differ."""

    data: np.ndarray
    grid: Grid

    def __post_init__(self) -> None:
        if self.data.shape != self.grid.shape:
            raise ValueError(f"data {self.data.shape} does not fit its grid {self.grid.shape}")

    def canonical(self) -> tuple["Volume", Reorientation]:
        """The same voxels in the axis order closest to RAS+, and the way back."""
        grid, turn = self.grid.canonical()
        return Volume(turn.apply(self.data), grid), turn


def working_voxel_mm(extent_mm: Sequence[float], shape: tuple[int, int, int], fill: float) -> float:
    """Side in mm of the isotropic voxel with which a box (3,) fills `fill` of a grid.

    Training and segmentation share this rule: it decides the scale on which a network sees brains.
    """
    return max(float(e) / (fill * n) for e, n in zip(extent_mm, shape, strict=True))


def axis_weights(n_in: int, n_out: int, scale: float, offset: float) -> np.ndarray:
    """(n_out, n_in) float32 weights that resample one axis; row i looks at `scale * i + offset`.

    Linear interpolation. Where the output is coarser (|scale| > 1) the interpolant is smoothed by
    a second tent, together of the variance of one tent of half width |scale|; unlike that tent
    sampled at voxels, this keeps linear ramps exact at every ratio. Rows sum to 1, rows outside
    the field of view are 0.
    """
    position = scale * np.arange(n_out, dtype=np.float64) + offset
    distance = position[:, None] - np.arange(n_in)
    reach = np.sqrt(max(0.0, scale**2 - 1))
    if reach > _POSITION_TOLERANCE:
        # Tent convolved with tent: a second difference of the first one's second integral.
        sides = _tent_integral2(distance + reach) + _tent_integral2(distance - reach)
        weights = np.maximum(0, sides - 2 * _tent_integral2(distance)) / reach**2
    else:
        weights = np.maximum(0, 1 - np.abs(distance))
    # A kernel that reaches over the border is completed from the inside.
    total = weights.sum(axis=1, keepdims=True)
    inside = _inside(position, n_in)[:, None]
    return np.where(inside, weights / np.where(inside, total, 1), 0).astype(np.float32)


def parallel_axes(source: Grid, target: Grid) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
    """How each axis of `target` runs through `source`, as (source axis, scale, offset).

    Voxel i along target axis a lies at `scale[a] * i + offset[a]` of source axis `axes[a]`.
    Raises ValueError where the axes of the two grids are not parallel.
    """
    matrix = source._inverse @ target.affine
    # A target axis of one voxel has no extent: its step must still count as a direction.
    reach = np.abs(matrix[:3, :3]) * np.maximum(np.array(target.shape) - 1, 1)
    axes = reach.argmax(axis=0)
    columns = np.arange(3)
    reach[axes, columns] = 0
    if len(set(axes.tolist())) < 3 or reach.sum(axis=1).max() > _POSITION_TOLERANCE:
        raise ValueError("the axes of the two grids are not parallel")
    return tuple(axes.tolist()), matrix[axes, columns], matrix[axes, 3]


def resample(volume: Volume, grid: Grid, order: int = 1, fill: float = 0.0) -> Volume:
    """The volume as seen on another grid.

    order 1: float32, linear, smoothed first along axes where `grid` is coarser; a constant stays
    constant up to the border of the field of view. order 0: nearest voxel, type of the data kept.
    Voxels of `grid` whose centre is outside the field of view become `fill`. The data must be
    finite. Raises ValueError for another order.
    """
    if order not in (0, 1):
        raise ValueError(f"order must be 0 or 1, not {order}")
    data = volume.data if order == 0 else volume.data.astype(np.float32, copy=False)
    try:
        axes, scales, offsets = parallel_axes(volume.grid, grid)
    except ValueError:
        return Volume(_resample_oblique(data, volume.grid, grid, order, fill), grid)
    found = data.transpose(axes)
    size, outside = found.shape, {}
    # The axis that shrinks most first: less to do for the others.
    for axis in np.argsort(np.array(grid.shape) / size):
        n_in, n_out, scale, offset = size[axis], grid.shape[axis], scales[axis], offsets[axis]
        position = scale * np.arange(n_out) + offset
        outside[axis] = ~_inside(position, n_in)
        if order == 0:
            found = found.take(_nearest(position, n_in), axis)
        else:
            weights = axis_weights(n_in, n_out, scale, offset)
            found = np.moveaxis(np.tensordot(weights, found, axes=(1, axis)), 0, axis)
    for axis, beyond in outside.items():
        np.moveaxis(found, axis, 0)[beyond] = fill
    return Volume(np.ascontiguousarray(found), grid)


def _resample_oblique(
    data: np.ndarray, source: Grid, target: Grid, order: int, fill: float
) -> np.ndarray:
    """`resample` for any two grids, in one pass of scipy."""
    from scipy import ndimage  # here: training works without it

    matrix = source._inverse @ target.affine
    if order == 1:
        # Variance of the triangle that `axis_weights` stands for; row norms are the target's step.
        step = np.linalg.norm(matrix[:3, :3], axis=1)
        data = ndimage.gaussian_filter(
            data, np.sqrt(np.maximum(0, step**2 - 1) / 6), mode="nearest"
        )
    found = ndimage.affine_transform(
        data, matrix[:3, :3], matrix[:3, 3], target.shape, order=order, mode="nearest"
    )
    i, j, k = np.ogrid[tuple(slice(n) for n in target.shape)]
    inside = np.ones(target.shape, dtype=bool)
    for row, n_in in zip(matrix, source.shape, strict=False):
        inside &= _inside(row[0] * i + row[1] * j + row[2] * k + row[3], n_in)
    found[~inside] = fill
    return found


def _inside(position: np.ndarray, n_in: int) -> np.ndarray:
    border = 0.5 + _EDGE_TOLERANCE
    return (position >= -border) & (position <= n_in - 1 + border)


def _nearest(position: np.ndarray, n_in: int) -> np.ndarray:
    return np.clip(np.floor(position + 0.5), 0, n_in - 1).astype(np.intp)


def _tent_integral2(x: np.ndarray) -> np.ndarray:
    """Second integral, from -infinity to x, of the unit tent max(0, 1 - |x|)."""
    near = np.clip(x, -1, 1)
    beyond = np.maximum(x - 1, 0)  # a straight line once the tent is passed
    return (1 + near) ** 3 / 6 - np.maximum(near, 0) ** 3 / 3 + beyond
