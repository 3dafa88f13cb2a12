"""Metrics on shapes whose answer is known, in mm, with anisotropic voxels."""

import numpy as np
import pytest
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from bids_synthseg.anatomy.metrics import dice, hd95_mm, remap, volumes_mm3

SPACING = (1.0, 0.5, 3.0)


def box(low, high, shape=(20, 20, 20)):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(*ends) for ends in zip(low, high, strict=True))] = True
    return mask


def ball(radius_mm, spacing, shape=(50, 50, 50)):
    middle = (np.array(shape) - 1) / 2
    away = [(np.arange(n) - m) * s for n, m, s in zip(shape, middle, spacing, strict=True)]
    x, y, z = np.ix_(*away)
    return x**2 + y**2 + z**2 <= radius_mm**2


# Overlap and volume


def test_dice_by_hand():
    prediction = np.array([0, 2, 2, 2, 3, 7])
    reference = np.array([0, 2, 2, 4, 3, 0])
    scores = dice(prediction, reference, [0, 2, 3, 4, 7, 9])
    assert scores[2] == pytest.approx(2 * 2 / (3 + 2))
    assert scores[0] == pytest.approx(2 * 1 / (1 + 2))
    assert scores[3] == 1
    assert scores[4] == scores[7] == 0
    assert np.isnan(scores[9])


def test_dice_counts_no_id_that_was_not_asked_for():
    # A histogram with contiguous bins would count 5 into 4.
    assert dice(np.array([4, 5, 5]), np.array([4, 0, 0]), [4]) == {4: 1.0}


def test_volumes_by_hand():
    labels = np.array([[0, 2], [2, 1004]])
    assert volumes_mm3(labels, [2, 1004, 41], 1.5) == {2: 3.0, 1004: 1.5, 41: 0.0}


def test_volume_of_a_ball():
    volume = volumes_mm3(ball(9, SPACING).astype(int), [1], float(np.prod(SPACING)))[1]
    assert volume == pytest.approx(4 / 3 * np.pi * 9**3, rel=0.02)


def test_remap_replaces_all_at_once():
    labels = np.array([[2, 41], [1004, 7]], dtype=np.int16)
    renamed = remap(labels, {2: 41, 41: 2, 1004: 2, 999: 1})
    assert renamed.tolist() == [[41, 2], [2, 7]]
    assert renamed.dtype == np.int32
    assert labels[0, 0] == 2


# Surfaces


@pytest.mark.parametrize(("axis", "want_mm"), [(0, 2.0), (1, 1.0), (2, 6.0)])
def test_shifted_box_is_as_far_as_the_shift(axis, want_mm):
    # The far side of a cube is more than 5 % of its surface.
    low, high = np.full(3, 5), np.full(3, 13)
    shift = 2 * np.eye(3, dtype=int)[axis]
    got = hd95_mm(box(low, high), box(low + shift, high + shift), SPACING)
    assert got == pytest.approx(want_mm)


def test_single_voxels_are_apart_by_their_centres():
    got = hd95_mm(box((1, 2, 3), (2, 3, 4)), box((4, 6, 3), (5, 7, 4)), SPACING)
    assert got == pytest.approx(np.hypot(3 * 1.0, 4 * 0.5))


@pytest.mark.parametrize("spacing", [(0.5, 0.5, 0.5), (0.5, 0.6, 1.0)])
def test_concentric_balls_are_apart_by_their_radii(spacing):
    got = hd95_mm(ball(9, spacing), ball(6, spacing), spacing)
    assert got == pytest.approx(3, abs=max(spacing))


def test_identical_masks_touch():
    assert hd95_mm(ball(9, SPACING), ball(9, SPACING), SPACING) == 0


def test_one_stray_voxel_of_hundreds_is_beyond_the_percentile():
    brain = box((2, 2, 2), (14, 14, 14))
    stray = brain.copy()
    stray[19, 19, 19] = True
    assert hd95_mm(stray, brain, SPACING) == 0


def test_a_distant_piece_counts():
    brain = box((2, 2, 2), (6, 6, 6))
    piece = brain | box((16, 2, 2), (20, 6, 6))
    # Half of the surface is 11 to 14 voxels of 1 mm from the brain's last plane.
    assert hd95_mm(piece, brain, (1, 1, 1)) == pytest.approx(14)
    assert hd95_mm(brain, piece, (1, 1, 1)) == pytest.approx(14)


def test_border_of_the_array_is_surface():
    # Both fill the array across y and z; only x differs, by one voxel of 2 mm, at 1/4 of 4 planes.
    shape = (6, 3, 3)
    got = hd95_mm(box((0, 0, 0), (4, 3, 3), shape), box((0, 0, 0), (3, 3, 3), shape), (2, 1, 1))
    assert got == pytest.approx(2)


def test_against_all_pairs_of_surface_voxels():
    rng = np.random.default_rng(0)
    for _ in range(5):
        first, second = rng.uniform(size=(2, 7, 8, 6)) > 0.6
        ours, theirs = (np.argwhere(m & ~binary_erosion(m)) * SPACING for m in (first, second))
        apart = cdist(ours, theirs)
        want = max(np.percentile(apart.min(axis=1), 95), np.percentile(apart.min(axis=0), 95))
        assert hd95_mm(first, second, SPACING) == pytest.approx(want)


def test_absent_labels():
    empty, full = np.zeros((4, 4, 4), dtype=bool), np.ones((4, 4, 4), dtype=bool)
    assert np.isnan(hd95_mm(empty, empty, SPACING))
    assert hd95_mm(empty, full, SPACING) == np.inf
    assert hd95_mm(full, empty, SPACING) == np.inf


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="shapes"):
        dice(np.zeros(3), np.zeros(1), [0])
    with pytest.raises(ValueError, match="shapes"):
        hd95_mm(np.zeros((3, 3, 3)), np.zeros((3, 3, 1)), SPACING)
