"""Grids and resampling: every test compares places in the world, not voxel numbers."""

from itertools import permutations, product

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bids_synthseg.anatomy.volume import (
    Grid,
    Reorientation,
    Volume,
    axis_weights,
    parallel_axes,
    resample,
)

ORIENTATIONS = [
    Reorientation(axes, flips)
    for axes in permutations(range(3))
    for flips in product((False, True), repeat=3)
]


def affine(angles_deg=(0, 0, 0), size_mm=(1, 1, 1), origin_mm=(0, 0, 0)):
    """Voxel -> world: rotated about x, y, z, then placed."""
    matrix = np.eye(4)
    rotation = Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix()
    matrix[:3, :3] = rotation @ np.diag(size_mm)
    matrix[:3, 3] = origin_mm
    return matrix


OBLIQUE = Grid((5, 6, 7), affine((20, -10, 5), (1.0, 0.7, 2.1), (3, -20, 11)))


def indices(shape):
    """(X, Y, Z, 3) voxel indices."""
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)


def stored_as(volume, turn):
    """The same object in the world, stored in another orientation."""
    data = turn.apply(volume.data)
    change = np.eye(4)[:, [*turn.axes, 3]]
    for new, old in enumerate(turn.axes):
        if turn.flips[new]:
            change[old, new] = -1
            change[old, 3] = volume.data.shape[old] - 1
    return Volume(data, Grid(data.shape, volume.grid.affine @ change))


def ramp(grid, slope=(0.5, -0.25, 0.125)):
    """A linear function of the world position, on a grid."""
    world = grid.to_world(indices(grid.shape))
    return Volume((world @ np.array(slope) + 3).astype(np.float32), grid)


def within(source, target, margin):
    """Which voxels of `target` lie at least `margin` voxels inside the outer centres of source."""
    at = source.to_voxel(target.to_world(indices(target.shape)))
    return ((at >= margin) & (at <= np.array(source.shape) - 1 - margin)).all(axis=-1)


# Grids


@pytest.mark.parametrize(
    ("shape", "matrix"),
    [
        ((3, 4), np.eye(4)),
        ((3, 4, 0), np.eye(4)),
        ((3, 4, 2.5), np.eye(4)),
        ((3, 4, 5), np.eye(3)),
        ((3, 4, 5), np.diag([1, 1, 0, 1])),
        ((3, 4, 5), np.diag([1, np.nan, 1, 1])),
        ((3, 4, 5), np.diag([1, np.inf, 1, 1])),
        ((3, 4, 5), np.diag([1, 1, 1, 2])),
        ((3, 4, 5), np.array([[1, 2, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])),
    ],
)
def test_impossible_grids_are_refused(shape, matrix):
    with pytest.raises(ValueError):
        Grid(shape, matrix)


def test_small_voxels_are_not_singular():
    assert Grid((2, 2, 2), np.diag([1e-3, 1e-3, 1e-3, 1])).voxel_volume_mm3 == pytest.approx(1e-9)


def test_sizes_and_centre_worked_by_hand():
    grid = Grid((3, 5, 1), np.array([[0, -2, 0, 10], [1, 0, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1]]))
    assert np.allclose(grid.voxel_size_mm, (1, 2, 3))
    assert grid.voxel_volume_mm3 == pytest.approx(6)
    assert np.allclose(grid.centre_mm, (10 - 2 * 2, 20 + 1, 30))
    assert np.allclose(grid.to_world([1, 2, 3]), (6, 21, 39))


def test_world_and_voxel_are_inverse_to_double_precision():
    ijk = np.random.default_rng(0).uniform(-50, 250, (4, 25, 3))
    assert np.abs(OBLIQUE.to_voxel(OBLIQUE.to_world(ijk)) - ijk).max() < 1e-11


def test_grids_are_equal_by_value_and_cannot_be_changed():
    twin = Grid(OBLIQUE.shape, OBLIQUE.affine.copy())
    assert twin == OBLIQUE
    assert hash(twin) == hash(OBLIQUE)
    assert Grid((1, 1, 1), np.eye(4)) != Grid((1, 1, 2), np.eye(4))
    with pytest.raises(ValueError):
        OBLIQUE.affine[0, 0] = 3


def test_negative_zero_is_zero():
    plain, signed = np.eye(4), np.eye(4)
    signed[0, 1] = -0.0
    assert hash(Grid((2, 2, 2), plain)) == hash(Grid((2, 2, 2), signed))


def test_same_as_measures_the_farthest_corner():
    grid = Grid((101, 2, 2), np.eye(4))
    stretched = Grid((101, 2, 2), np.diag([1 + 1e-4, 1, 1, 1]))
    assert not grid.same_as(stretched, tol_mm=0.0099)
    assert grid.same_as(stretched, tol_mm=0.0101)
    assert not grid.same_as(Grid((101, 2, 3), np.eye(4)), tol_mm=100)


def test_window_lies_along_the_axes_and_around_the_centre():
    window = OBLIQUE.window((1.25, 3, -2.5), 0.8, (10, 11, 13))
    assert window.shape == (10, 11, 13)
    assert np.allclose(window.voxel_size_mm, 0.8)
    assert np.allclose(window.centre_mm, OBLIQUE.to_world((1.25, 3, -2.5)), atol=1e-12)
    cosines = OBLIQUE.affine[:3, :3] / OBLIQUE.voxel_size_mm
    assert np.allclose(window.affine[:3, :3], 0.8 * cosines)


# Orientation


@pytest.mark.parametrize(
    "angles",
    [(0, 0, 0), (20, -10, 5), (30, 40, 20), (45, 0, 0), (0, 45, 45), (0, 0, 90), (180, 0, 3)],
)
def test_all_48_orientations_come_to_one_array(angles):
    data = np.random.default_rng(1).normal(size=(3, 4, 5))
    base = Volume(data, Grid(data.shape, affine(angles, (1, 0.7, 2.1), (3, -20, 11))))
    want, _ = base.canonical()
    for turn in ORIENTATIONS:
        stored = stored_as(base, turn)
        got, back = stored.canonical()
        assert np.array_equal(got.data, want.data)
        assert got.grid.same_as(want.grid, tol_mm=1e-11)
        assert np.array_equal(back.undo(got.data), stored.data)


def test_canonical_moves_no_voxel_in_the_world():
    grid = Grid((5, 6, 7), affine((100, 20, -70), (1.0, 0.7, 2.1), (3, -20, 11)))
    world = np.moveaxis(grid.to_world(indices(grid.shape)), -1, 0)
    turned_grid, turn = grid.canonical()
    turned_world = np.moveaxis(turned_grid.to_world(indices(turned_grid.shape)), -1, 0)
    assert np.allclose(turn.apply(world), turned_world, rtol=0, atol=1e-12)
    cosines = turned_grid.affine[:3, :3] / turned_grid.voxel_size_mm
    assert (cosines.diagonal() > 0).all()


def test_canonical_of_las_flips_the_first_axis_only():
    grid, turn = Grid((4, 5, 6), np.diag([-2.0, 1, 1, 1])).canonical()
    assert turn == Reorientation((0, 1, 2), (True, False, False))
    assert np.array_equal(grid.affine[:3, 3], (-6, 0, 0))
    assert np.array_equal(grid.affine[:3, :3], np.diag([2, 1, 1]))


@pytest.mark.parametrize("turn", ORIENTATIONS)
def test_undo_is_exact_and_contiguous_with_channels_in_front(turn):
    array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    applied = turn.apply(array)
    assert applied.flags.c_contiguous
    assert turn.undo(applied).flags.c_contiguous
    assert np.array_equal(turn.undo(applied), array)
    assert np.array_equal(turn.apply(turn.undo(applied)), applied)


def test_volume_must_fit_its_grid():
    with pytest.raises(ValueError, match="does not fit"):
        Volume(np.zeros((5, 6, 8)), OBLIQUE)


# One axis


def test_weights_of_upsampling_by_hand():
    # Two voxels become four half as wide: centres at -0.25, 0.25, 0.75, 1.25.
    want = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    assert np.allclose(axis_weights(2, 4, 0.5, -0.25), want, atol=1e-7)


def test_weights_outside_the_field_of_view_are_zero():
    # Positions -1, 0, 1, 2, 3 of an axis that reaches from -0.5 to 1.5.
    assert np.array_equal(axis_weights(2, 5, 1, -1).sum(axis=1), [0, 1, 1, 0, 0])
    assert axis_weights(2, 2, 2, -0.5).sum(axis=1) == pytest.approx([1, 1])  # on the border


def test_identity_weights_are_exactly_one():
    assert np.array_equal(axis_weights(6, 6, 1, 0), np.eye(6))
    assert np.array_equal(axis_weights(6, 6, -1, 5), np.eye(6)[::-1])


@pytest.mark.parametrize("scale", [0.3, 1.0, 1.01, 1.7, 2.0, 4.5, -2.3])
def test_weights_average_to_the_position(scale):
    offset = 40 if scale < 0 else 7.3
    weights = axis_weights(50, 8, scale, offset).astype(np.float64)
    assert (weights >= 0).all()
    assert np.allclose(weights.sum(axis=1), 1, atol=1e-6)
    assert np.allclose(weights @ np.arange(50), scale * np.arange(8) + offset, atol=1e-5)


def test_coarse_sampling_does_not_alias():
    stripes = (-1.0) ** np.arange(40)
    # Every second stripe is +1: sampling without smoothing would answer 1 everywhere.
    assert np.abs(axis_weights(40, 16, 2, 4) @ stripes).max() < 0.05


def test_axis_of_one_voxel_fills_its_own_thickness():
    # A slice 4 mm thick seen at 1 mm: positions -0.75 ... 0.75 in steps of a quarter.
    assert np.array_equal(axis_weights(1, 7, 0.25, -0.75).ravel(), [0, 1, 1, 1, 1, 1, 0])


# Resampling

TARGETS = {
    "finer": ((0, 0, 0), (0.5, 0.6, 0.9)),
    "coarser": ((0, 0, 0), (1.7, 2.0, 3.1)),
    "mixed": ((0, 0, 0), (0.5, 2.5, 2.1)),
    "turned": ((90, 0, 90), (1.3, 0.6, 1.6)),
    "oblique": ((12, -7, 25), (1.1, 0.8, 1.4)),
    "oblique coarser": ((12, -7, 25), (2.2, 2.0, 3.0)),
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("tilt", [(0, 0, 0), (20, -10, 5)])
def test_ramp_in_the_world_is_reproduced(name, tilt):
    source = Grid((28, 30, 20), affine(tilt, (1.0, 0.8, 1.5), (3, -20, 11)))
    angles, size = TARGETS[name]
    relative = affine(angles, size)
    matrix = source.affine / np.array([*source.voxel_size_mm, 1]) @ relative
    shape = (12, 13, 11)
    matrix[:3, 3] = source.centre_mm - matrix[:3, :3] @ ((np.array(shape) - 1) / 2)
    target = Grid(shape, matrix)
    got = resample(ramp(source), target)
    # Away from the border by the reach of the smoothing: there the kernel is complete.
    deep = within(source, target, margin=5 if "coarser" in name or name == "mixed" else 1)
    assert deep.sum() > 100
    assert got.data.dtype == np.float32
    assert np.abs(got.data - ramp(target).data)[deep].max() < 2e-4


@pytest.mark.parametrize("angles", [(0, 0, 0), (12, -7, 25)])
@pytest.mark.parametrize("size", [0.7, 1.0, 2.3])
@pytest.mark.parametrize("fill", [0.0, -5.0])
def test_constant_stays_constant_and_fill_begins_at_the_border(angles, size, fill):
    source = Volume(np.full((9, 8, 7), 42, dtype=np.int16), Grid((9, 8, 7), np.eye(4)))
    target = Grid((20, 20, 20), affine(angles, (size,) * 3, (-3.1, -2.2, -4.3)))
    got = resample(source, target, fill=fill).data
    inside = within(source.grid, target, margin=-0.5)
    assert 0 < inside.sum() < inside.size
    assert np.allclose(got[inside], 42, atol=1e-4)
    assert (got[~inside] == fill).all()


def test_resampling_to_the_own_grid_is_exact():
    data = np.random.default_rng(2).normal(size=(5, 6, 7)).astype(np.float32)
    volume = Volume(data, OBLIQUE)
    for order in (0, 1):
        assert np.array_equal(resample(volume, OBLIQUE, order).data, data)


@pytest.mark.parametrize("order", [0, 1])
def test_resampling_to_another_orientation_is_exact(order):
    data = np.random.default_rng(3).normal(size=(4, 5, 6)).astype(np.float32)
    volume = Volume(data, Grid(data.shape, affine((20, -10, 5), (1, 0.7, 2), (3, -2, 1))))
    for turn in ORIENTATIONS:
        stored = stored_as(volume, turn)
        assert np.allclose(resample(volume, stored.grid, order).data, stored.data, atol=1e-5)


@pytest.mark.parametrize("angles", [(0, 0, 0), (8, 5, -6)])
def test_smooth_image_survives_the_round_trip(angles):
    grid = Grid((40, 40, 40), affine(size_mm=(1, 1, 1)))
    distance2 = ((grid.to_world(indices(grid.shape)) - grid.centre_mm) ** 2).sum(axis=-1)
    blob = Volume(np.exp(-distance2 / (2 * 6**2)).astype(np.float32), grid)
    between = Grid((60, 60, 60), affine(angles, (0.8, 0.8, 0.8)))
    moved = between.affine.copy()
    moved[:3, 3] += grid.centre_mm - between.centre_mm
    back = resample(resample(blob, Grid(between.shape, moved)), grid)
    assert np.abs(back.data - blob.data).max() < 0.02


@pytest.mark.parametrize("angles", [(0, 0, 0), (12, -7, 25)])
def test_coarse_grid_averages_noise_away(angles):
    noise = np.random.default_rng(5).normal(size=(40, 40, 40)).astype(np.float32)
    source = Volume(noise, Grid(noise.shape, np.eye(4)))
    spread = []
    for size_mm in (1.0, 3.0):
        matrix = affine(angles, (size_mm,) * 3)
        matrix[:3, 3] = source.grid.centre_mm - matrix[:3, :3] @ (3.5, 3.5, 3.5)
        spread.append(resample(source, Grid((8, 8, 8), matrix)).data.std())
    # A kernel 3 voxels wide averages more than ten voxels: a third at most is left of the noise.
    assert spread[1] < spread[0] / 3


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.int32, np.float64])
@pytest.mark.parametrize("angles", [(0, 0, 0), (30, 0, 0)])
def test_nearest_keeps_type_and_values(dtype, angles):
    data = (np.random.default_rng(4).uniform(size=(9, 9, 9)) * 100).astype(dtype)
    target = Grid((12, 12, 12), affine(angles, (0.8, 0.8, 0.8)))
    got = resample(Volume(data, Grid((9, 9, 9), np.eye(4))), target, order=0).data
    assert got.dtype == dtype
    assert set(np.unique(got)) <= {*np.unique(data), dtype(0)}


def test_nearest_takes_the_voxel_that_contains_the_point():
    source = Volume(np.arange(4).reshape(4, 1, 1), Grid((4, 1, 1), np.eye(4)))
    target = Grid((6, 1, 1), affine(size_mm=(0.8, 1, 1), origin_mm=(-0.6, 0, 0)))
    # Positions -0.6, 0.2, 1.0, 1.8, 2.6, 3.4: the first lies outside.
    found = resample(source, target, order=0, fill=9).data.ravel()
    assert found.tolist() == [9, 0, 1, 2, 3, 3]


def test_header_rounding_leaves_axes_parallel():
    rounded = Grid((5, 6, 7), OBLIQUE.affine.astype(np.float32))
    axes, scales, offsets = parallel_axes(OBLIQUE, rounded)
    assert axes == (0, 1, 2)
    assert np.allclose(scales, 1, atol=1e-5)
    assert np.allclose(offsets, 0, atol=1e-4)


def test_half_a_degree_is_not_parallel():
    with pytest.raises(ValueError, match="parallel"):
        parallel_axes(Grid((9, 9, 9), np.eye(4)), Grid((9, 9, 9), affine((0.5, 0, 0))))


def test_source_is_left_alone():
    data = np.ones((5, 6, 7), dtype=np.float32)
    resample(Volume(data, OBLIQUE), OBLIQUE.window((0, 0, 0), 1, (9, 9, 9)), fill=-1)
    assert (data == 1).all()


def test_cubic_interpolation_is_not_offered():
    with pytest.raises(ValueError, match="order"):
        resample(Volume(np.zeros((5, 6, 7)), OBLIQUE), OBLIQUE, order=3)


def test_how_oblique_a_grid_is():
    for angles in ([0, 0, 0], [17, 0, 0], [10, -20, 30]):
        turn = Rotation.from_euler("xyz", angles, degrees=True)
        affine = np.eye(4)
        affine[:3, :3] = turn.as_matrix() @ np.diag([1.0, 2.0, 3.0])
        expected = np.degrees(turn.magnitude())
        assert Grid((3, 4, 5), affine).obliqueness_deg == pytest.approx(expected, abs=1e-4)


def test_an_upright_grid_holds_the_field_of_view():
    turn = Rotation.from_euler("xyz", [10, -20, 30], degrees=True)
    affine = np.eye(4)
    affine[:3, :3] = turn.as_matrix() @ np.diag([1.0, 2.0, 1.5])
    affine[:3, 3] = 5, -7, 9
    oblique = Grid((30, 20, 25), affine)
    upright = oblique.upright()
    np.testing.assert_allclose(upright.affine[:3, :3], 2 * np.eye(3))
    np.testing.assert_allclose(upright.centre_mm, oblique.centre_mm)
    corners = oblique.to_world(np.array(list(product(*((-0.5, n - 0.5) for n in oblique.shape)))))
    reach = upright.to_voxel(corners)
    assert (reach >= -0.5 - 1e-9).all() and (reach <= np.array(upright.shape) - 0.5 + 1e-9).all()
    assert (np.ptp(reach, axis=0) > np.array(upright.shape) - 1).all()
    straight = Grid((30, 20, 25), np.diag([2.0, 2.0, 2.0, 1.0]))
    assert straight.upright() == straight
