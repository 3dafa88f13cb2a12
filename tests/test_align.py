"""Rigid alignment: a known motion is found, a wrong one refused, the file means what it says."""

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import nifti
from handmade import grid, head, interior, locator, reader
from scipy.spatial.transform import Rotation

from bids_synthseg.anatomy.volume import Grid, Volume
from bids_synthseg.segmentation.align import Alignment, align, itk_text, mirrored, overlap
from bids_synthseg.segmentation.field import GridField
from bids_synthseg.segmentation.predict import segment

PLACE = grid((32, 36, 30), (2.1, 2.2, 2.3))
T2W_PLACE = grid((36, 34, 30), (2.0, 2.2, 2.4))


def rigid(deg=(8.0, 0.0, 0.0), mm=(6.0, 0.0, 0.0), about=PLACE.centre_mm):
    """A rotation about a point, then a shift."""
    transform = np.eye(4)
    transform[:3, :3] = Rotation.from_euler("xyz", deg, degrees=True).as_matrix()
    transform[:3, 3] = about - transform[:3, :3] @ about + mm
    return transform


def moved(part, transform):
    """A segmented scan after the subject has moved (or a header that says so)."""
    place = Grid(part.field.grid.shape, transform @ part.field.grid.affine)
    return replace(
        part, field=replace(part.field, grid=place), image=Volume(part.image.data, place)
    )


def error_mm(found, truth, place=PLACE):
    """Mean distance between where two transforms take the brain."""
    points = place.to_world(np.argwhere(head(place)[0].data > 0))
    apart = points @ (found - truth)[:3, :3].T + (found - truth)[:3, 3]
    return float(np.linalg.norm(apart, axis=1).mean())


@pytest.fixture(scope="module")
def t1w():
    return segment(head(PLACE)[1], reader(), locator())


@pytest.fixture(scope="module")
def t2w():
    """The same head in the same place, on another grid and in the opposite greys."""
    part = segment(head(T2W_PLACE, noise=1.0)[1], reader(), locator())
    return replace(part, image=replace(part.image, data=300 - 1.3 * part.image.data))


def test_the_same_scans_give_the_same_alignment(t1w, t2w):
    apart = moved(t2w, rigid((8, 0, 0), (6, 0, 0)))
    first, again = (align(t1w, apart).transform for _ in range(2))
    np.testing.assert_allclose(first, again, atol=1e-6)


@pytest.mark.parametrize(
    ("deg", "mm"),
    [
        ((8, 0, 0), (6, 0, 0)),
        ((-3, 5, 6), (2, -4, 4)),
        ((0, 0, 12), (-8, 8, 0)),
        ((3, 0, 0), (0, 0, 3)),
    ],
)
def test_a_known_motion_is_found(t1w, t2w, deg, mm):
    truth = rigid(deg, mm)
    found = align(t1w, moved(t2w, truth))
    assert found.accepted
    assert found.dice > found.dice_before + 0.05
    assert error_mm(found.transform, truth) < 0.5 * PLACE.voxel_size_mm.min()
    assert found.moved_mm == pytest.approx(error_mm(truth, np.eye(4)), abs=1)
    rotation = found.transform[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
    assert np.linalg.det(rotation) == pytest.approx(1)


def test_headers_that_agree_are_left_alone(t1w, t2w):
    for other in (t1w, t2w, moved(t2w, rigid((0, 0, 0), (0.4, 0, 0)))):
        found = align(t1w, other)
        np.testing.assert_array_equal(found.transform, np.eye(4))
        assert found.accepted
        assert found.dice == found.dice_before > 0.8
        assert found.moved_mm == 0


def test_segmentations_that_err_apart_move_no_scan(t1w):
    """The labels of one scan are shifted by 4 mm, the scan itself is not."""
    place = t1w.field.grid
    shifted = Grid(place.shape, rigid((0, 0, 0), (0, 4, 0)) @ place.affine)
    data = GridField(t1w.field.data, shifted, t1w.field.table).at(
        place.to_world(np.stack(np.indices(place.shape), -1).reshape(-1, 3))
    )
    wrong = replace(
        t1w, field=replace(t1w.field, data=torch.from_numpy(data.reshape(t1w.field.data.shape)))
    )
    found = align(t1w, wrong)
    assert overlap(t1w.field, wrong.field, rigid((0, 0, 0), (0, 4, 0))) > found.dice + 0.1
    np.testing.assert_array_equal(found.transform, np.eye(4))


def one_sided(image, side=1):
    """The image of a head with a bright cube in the front of one side's white matter."""
    data = image.data.copy()
    axis = image.grid.to_world(np.stack(np.indices(data.shape), -1)) - image.grid.centre_mm
    near = np.abs(axis - [side * 9.0, 16.0, 6.0]).max(axis=-1) < 6
    data[near] = 120
    return Volume(data, image.grid)


@pytest.fixture(scope="module")
def sided():
    """A head that is no mirror image of itself, in both contrasts."""
    first, second = (
        segment(one_sided(head(place)[1]), reader(), locator()) for place in (PLACE, T2W_PLACE)
    )
    return first, replace(second, image=replace(second.image, data=3 - 1.3 * second.image.data))


@pytest.mark.parametrize(
    ("deg", "mm"),
    [
        ((-20, 15, 20), (15, 12, -14)),  # too far for the intensities alone
        ((0, 0, 0), (200, 0, 0)),
        ((0, 0, 90), (0, -120, 160)),
        ((-90, 0, 0), (60, 0, 0)),
        ((180, 0, 0), (0, 0, 150)),
        ((20, 70, -30), (0, 0, 0)),
    ],
)
def test_brains_that_are_far_apart_are_found(sided, deg, mm):
    fixed, moving = sided
    truth = rigid(deg, mm)
    found = align(fixed, moved(moving, truth))
    assert found.accepted and not found.mirrored
    assert error_mm(found.transform, truth) < 0.5 * PLACE.voxel_size_mm.min()


@pytest.mark.parametrize("mm", [(0, 0, 0), (60, 0, 0)])
def test_a_mirror_image_is_noticed(sided, mm):
    """As where a header exchanges left and right: the network takes left for left all the same."""
    fixed, moving = sided
    flipped = replace(moving.image, data=moving.image.data[::-1])
    twin = replace(moving, field=mirrored(moving.field), image=flipped)
    found = align(fixed, moved(twin, rigid((0, 0, 0), mm)))
    assert found.mirrored and not found.accepted
    assert found.mirrored_dice > found.dice + 0.03
    for other in (moving, fixed):
        assert not align(fixed, other).mirrored


def test_a_brain_that_is_its_own_mirror_image_is_none(t1w, t2w):
    assert align(t1w, t2w).accepted
    assert align(t1w, replace(t2w, field=mirrored(t2w.field))).accepted


def test_scans_without_a_brain_are_refused(t1w):
    empty = torch.zeros_like(t1w.field.data)
    empty[0] = 1
    found = align(t1w, replace(t1w, field=replace(t1w.field, data=empty)))
    np.testing.assert_array_equal(found.transform, np.eye(4))
    assert found.dice == 0 and not found.accepted


def test_a_brain_of_another_size_is_refused(t1w):
    small = segment(head(grid((32, 32, 32), (1.3, 1.3, 1.3)), scale=0.6)[1], reader(), locator())
    found = align(t1w, small)
    assert not found.accepted
    assert found.dice < 0.6


def test_overlap_by_hand():
    """Two cubes of one label, half of each shared: Dice 0.5; certainty of a half: as well."""
    place = grid((8, 8, 8), (2.0, 2.0, 2.0))
    table = reader().head.table

    def cube(start, sure=1.0):
        data = torch.zeros(len(table), 8, 8, 8)
        data[1, start : start + 4, 2:6, 2:6] = sure
        data[0] = 1 - data[1]
        return GridField(data, place, table)

    identity = np.eye(4)
    assert overlap(cube(0), cube(0), identity) == pytest.approx(1)
    assert overlap(cube(0), cube(2), identity) == pytest.approx(0.5)
    assert overlap(cube(0), cube(4), identity) == pytest.approx(0)
    assert overlap(cube(0), cube(0, 0.5), identity) == pytest.approx(2 * 0.5 / 1.5)
    shift = rigid((0, 0, 0), (8, 0, 0), np.zeros(3))  # a point of the first -> 4 voxels on
    assert overlap(cube(0), cube(4), shift) == pytest.approx(1)
    empty = GridField(torch.zeros_like(cube(0).data), place, table)
    empty.data[0] = 1
    assert overlap(empty, empty, identity) == 0


def test_the_first_scan_is_in_place():
    first = Alignment.of_the_first()
    assert first.accepted
    np.testing.assert_array_equal(first.transform, np.eye(4))


def test_the_file_maps_points_as_documented(tmp_path):
    """ITK counts in LPS: x and y change sign on the way in and out."""
    transform = rigid((8, -5, 11), (6, -2, 3))
    path = tmp_path / "xfm.txt"
    ras = np.array([11.0, -23.0, 35.0])
    for matrix in (transform, np.linalg.inv(transform)):
        path.write_text(itk_text(matrix))
        read = sitk.ReadTransform(str(path))
        x, y, z = read.TransformPoint((-ras[0], -ras[1], ras[2]))
        np.testing.assert_allclose((-x, -y, z), (matrix @ [*ras, 1])[:3], atol=1e-9)


def test_resampling_with_the_file_lays_one_scan_on_the_other(t1w, t2w, tmp_path):
    """What antsApplyTransforms -i T2w -r T1w -t from-T2w_to-T1w does."""
    truth = rigid((8, 0, 0), (6, 0, 0))
    labels = head(T2W_PLACE)[0].data
    t2w_labels = Volume(labels, Grid(labels.shape, truth @ T2W_PLACE.affine))
    t1w_labels = head(PLACE)[0]
    for name, volume in (("T1w", t1w_labels), ("T2w", t2w_labels)):
        nifti(volume.data, volume.grid.affine).to_filename(tmp_path / f"{name}.nii.gz")
    found = align(t1w, moved(t2w, truth))
    (tmp_path / "xfm.txt").write_text(itk_text(found.transform))
    fixed, moving = (sitk.ReadImage(str(tmp_path / f"{n}.nii.gz")) for n in ("T1w", "T2w"))
    inner = interior(t1w_labels.data) & (t1w_labels.data > 0)

    def agreement(transform):
        laid = sitk.Resample(moving, fixed, transform, sitk.sitkNearestNeighbor, 0)
        return (t1w_labels.data == sitk.GetArrayFromImage(laid).T)[inner].mean()

    read = sitk.ReadTransform(str(tmp_path / "xfm.txt"))
    assert agreement(read) > 0.97
    assert agreement(sitk.Transform(3, sitk.sitkIdentity)) < 0.8
    assert agreement(read.GetInverse()) < 0.6
