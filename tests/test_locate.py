"""Where the brain is: boxes, and a hand-made locator in many fields of view."""

import numpy as np
import pytest
from handmade import RADII_MM, grid, head, locator
from scipy.spatial.transform import Rotation

from bids_synthseg.anatomy.intensity import standardised
from bids_synthseg.anatomy.volume import Grid, Volume, resample
from bids_synthseg.segmentation.locate import (
    BOX_MARGIN,
    BrainBox,
    box_of,
    locate,
    whole_field_of_view,
)

TURN = Rotation.from_euler("xyz", [10, -15, 8], degrees=True).as_matrix()


def test_box_of_a_mask_is_in_millimetres():
    place = grid((20, 30, 10), (2.0, 3.0, 5.0), TURN)
    mask = np.zeros(place.shape, bool)
    mask[3:13, 5:15, 2:9] = True
    box = box_of(mask, place)
    np.testing.assert_allclose(box.extent_mm, [20, 30, 35])
    np.testing.assert_allclose(box.centre_mm, place.to_world([7.5, 9.5, 5]))
    assert box.found


@pytest.mark.parametrize("side", [0, 14, 120])
def test_what_is_no_brain_by_its_size_has_no_box(side):
    place = grid((120, 4, 4), (2.0, 2.0, 2.0))
    mask = np.zeros(place.shape, bool)
    mask[:side] = True  # 0, 28 and 240 mm
    assert box_of(mask, place) is None


def test_boxes_agree_within_a_fraction_of_their_size():
    box = BrainBox(np.zeros(3), np.array([80.0, 100.0, 70.0]))
    for shift, size, agree in ((5, 100, True), (7, 100, False), (0, 105, True), (0, 108, False)):
        other = BrainBox(np.array([0.0, shift, 0.0]), np.array([80.0, size, 70.0]))
        assert box.agrees_with(other, 0.06) is agree
        assert other.agrees_with(box, 0.06) is agree


@pytest.mark.parametrize(
    ("shape", "voxel_mm", "turn", "shift_mm", "scale"),
    [
        ((32, 36, 30), (2.1, 2.2, 2.3), None, (0, 0, 0), 1.0),
        ((32, 36, 30), (2.1, 2.2, 2.3), TURN, (0, 0, 0), 1.0),
        ((32, 36, 30), (4.0, 4.0, 4.0), None, (30, -30, 25), 1.0),  # in a corner
        ((60, 36, 36), (3.0, 3.0, 3.0), None, (-40, 0, 0), 1.0),  # a long field of view
        ((40, 40, 12), (3.0, 3.0, 9.0), TURN, (0, 10, 0), 1.5),  # thick slices
        ((32, 36, 30), (1.4, 1.5, 1.4), None, (0, 0, 0), 0.6),  # a fetus
        ((24, 24, 24), (3.0, 3.0, 3.0), None, (0, 0, 0), 1.0),  # nothing around the head
    ],
)
def test_the_head_is_found(shape, voxel_mm, turn, shift_mm, scale):
    place = grid(shape, voxel_mm, turn)
    centre = place.centre_mm + np.array(shift_mm)
    box = locate(standardised(head(place, centre, scale)[1]), place, locator()).box
    # As exact as a voxel of the locator, or of the scan where that is coarser.
    exact = max((np.array(shape) * voxel_mm).max() / 32, max(voxel_mm))
    assert box.found
    np.testing.assert_allclose(box.centre_mm, centre, atol=exact)
    whole = 2 * scale * RADII_MM * BOX_MARGIN
    np.testing.assert_allclose(box.extent_mm, whole, atol=2 * exact)


def test_a_bright_thing_beside_the_brain_does_not_matter():
    place = grid((48, 36, 36), (3.0, 3.0, 3.0))
    image = head(place, place.centre_mm - [30, 0, 0])[1].data
    image[44:47, 10:16, 10:16] = 150
    box = locate(standardised(Volume(image, place)), place, locator()).box
    np.testing.assert_allclose(box.centre_mm, place.centre_mm - [30, 0, 0], atol=4.5)


def test_without_a_brain_the_whole_field_of_view_is_taken():
    place = grid()
    seen = [np.random.default_rng(0).normal(20, 1, place.shape), np.zeros(place.shape)]
    seen[1][10:12, 10:12, 10:12] = 100
    for image in seen:
        scan = standardised(Volume(image.astype(np.float32), place))
        box = locate(scan, place, locator(level=1.4)).box
        assert not box.found
        np.testing.assert_allclose(box.centre_mm, place.centre_mm)
        np.testing.assert_allclose(box.extent_mm, [32 * 2.1, 36 * 2.2, 30 * 2.3])


def test_scattered_specks_are_no_brain():
    """Many voxels in all, but no two that touch."""
    place = grid((32, 32, 32), (3.0, 3.0, 3.0))
    image = np.zeros(place.shape, np.float32)
    image[2::4, 2::4, 2::4] = 100
    image[0, 0] = 1
    assert (image > 50).sum() > 100
    assert not locate(standardised(Volume(image, place)), place, locator(level=0.9)).box.found


def test_a_stand_in_is_no_larger_than_a_head():
    box = whole_field_of_view(grid((100, 20, 20), (5.0, 5.0, 5.0)))
    np.testing.assert_allclose(box.extent_mm, [230, 100, 100])


@pytest.mark.parametrize("turn", [None, TURN])
def test_what_lies_around_the_brain_does_not_move_its_box(turn):
    """Air on any side, and none: the same box to the last bits."""
    place = grid((36, 44, 34), (1.9, 2.0, 2.0), turn)
    labels, image = head(place)
    data = np.where(labels.data > 0, image.data, 0).astype(np.float32)
    boxes = []
    for before, after in ((0, 0), (20, 20), (0, 35), (50, 3)):
        padded = np.pad(data, [(before, after), (after, before), (before, before)])
        offset = np.eye(4)
        offset[:3, 3] = -before, -after, -before
        around = Grid(padded.shape, place.affine @ offset)
        boxes.append(locate(standardised(Volume(padded, around)), around, locator()).box)
    for box in boxes[1:]:
        np.testing.assert_allclose(box.centre_mm, boxes[0].centre_mm, atol=1e-6)
        np.testing.assert_allclose(box.extent_mm, boxes[0].extent_mm, atol=1e-6)


def test_along_the_axes_of_another_frame():
    turn = Rotation.from_euler("xyz", [30, 0, 0], degrees=True).as_matrix()
    upright = grid((40, 44, 40), (2.0, 2.0, 2.0))
    turned = grid((44, 52, 52), (1.8, 1.8, 1.8), turn)
    image = resample(head(upright)[1], turned, fill=20.0)
    box = locate(standardised(image), turned.upright(), locator()).box
    np.testing.assert_allclose(box.centre_mm, upright.centre_mm, atol=3)
    np.testing.assert_allclose(box.extent_mm, 2 * RADII_MM * BOX_MARGIN, atol=7)
