"""Label maps on another grid: exact where grids agree, smooth and unbiased where they do not."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bids_synthseg.anatomy.label_maps import carry_labels
from bids_synthseg.anatomy.volume import Grid, Volume


def moved(grid, shape, matrix=None, shift=(0.0, 0.0, 0.0)):
    """A grid whose voxel ijk lies at `matrix @ ijk + shift` of another."""
    step = np.eye(4)
    step[:3, :3] = np.eye(3) if matrix is None else matrix
    step[:3, 3] = shift
    return Grid(shape, grid.affine @ step)


@pytest.fixture
def brain(phantom_labels):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [5, -8, 11], degrees=True).as_matrix() * [1, 1.1, 2]
    return Volume(phantom_labels, Grid(phantom_labels.shape, affine))


def test_same_grid_is_the_same_map(brain):
    found = carry_labels(brain, brain.grid)
    assert found.data.dtype == np.int32
    np.testing.assert_array_equal(found.data, brain.data)


def test_flips_permutations_crops_and_padding_are_exact(brain):
    flipped = moved(brain.grid, (20, 24, 18), np.diag([-1, 1, -1]), (19, 0, 17))
    np.testing.assert_array_equal(carry_labels(brain, flipped).data, brain.data[::-1, :, ::-1])
    turned = moved(brain.grid, (18, 20, 24), np.eye(3)[:, [2, 0, 1]])
    np.testing.assert_array_equal(carry_labels(brain, turned).data, brain.data.transpose(2, 0, 1))
    cropped = moved(brain.grid, (7, 9, 5), shift=(6, 8, 7))
    np.testing.assert_array_equal(carry_labels(brain, cropped).data, brain.data[6:13, 8:17, 7:12])
    padded = moved(brain.grid, (30, 30, 30), shift=(-5, -4, -6))
    np.testing.assert_array_equal(
        carry_labels(brain, padded).data, np.pad(brain.data, ((5, 5), (4, 2), (6, 6)))
    )
    elsewhere = moved(brain.grid, (8, 8, 8), shift=(500, 0, 0))
    assert not carry_labels(brain, elsewhere).data.any()


def test_the_largest_share_wins_and_background_counts():
    """Between two voxels, a quarter of the way: three quarters of the one, one of the other."""
    row = np.array([0, 0, 5, 5, 7, 7, 0, 3, 0], np.int32)
    labels = Volume(
        np.broadcast_to(row[:, None, None], (9, 3, 3)).copy(), Grid((9, 3, 3), np.eye(4))
    )
    near = moved(labels.grid, (8, 3, 3), shift=(0.25, 0, 0))
    np.testing.assert_array_equal(carry_labels(labels, near).data[:, 1, 1], row[:-1])
    far = moved(labels.grid, (8, 3, 3), shift=(0.75, 0, 0))
    np.testing.assert_array_equal(carry_labels(labels, far).data[:, 1, 1], row[1:])
    middle = moved(labels.grid, (8, 3, 3), shift=(0.5, 0, 0))
    # Equal shares: a label before background, the lower id before the higher.
    np.testing.assert_array_equal(
        carry_labels(labels, middle).data[:, 1, 1], [0, 5, 5, 5, 7, 7, 3, 3]
    )


@pytest.mark.parametrize("step", [0.5, 1.6])
def test_a_turned_grid_keeps_volumes_and_places(step):
    """A ball and its shell, whose volumes are known."""
    source = Grid((40, 40, 40), np.eye(4))
    radius = np.linalg.norm(np.stack(np.indices(source.shape), -1) - 19.5, axis=-1)
    ball = Volume(np.where(radius < 8, 10, np.where(radius < 14, 3, 0)).astype(np.int32), source)
    turn = Rotation.from_euler("xyz", [20, -30, 40], degrees=True).as_matrix() * step
    n = int(40 / step)
    affine = np.eye(4)
    affine[:3, :3] = turn
    affine[:3, 3] = 19.5 - turn @ np.full(3, (n - 1) / 2)
    grid = Grid((n, n, n), affine)
    found = carry_labels(ball, grid).data
    for index, expected in ((10, 8**3), (3, 14**3 - 8**3)):
        volume = (found == index).sum() * step**3
        assert volume == pytest.approx(4 / 3 * np.pi * expected, rel=0.03)
    middle = grid.to_world(np.argwhere(found == 10)).mean(axis=0)
    np.testing.assert_allclose(middle, 19.5, atol=0.1)
