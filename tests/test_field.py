"""Posteriors as a function of the place: interpolation, moving, merging, slabs."""

import numpy as np
import pytest
import torch
from handmade import grid
from scipy.spatial.transform import Rotation

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.volume import Volume
from bids_synthseg.segmentation import field
from bids_synthseg.segmentation.field import (
    NO_LABEL,
    GridField,
    MergedField,
    MovedField,
    SeenField,
    chunks,
    is_silent,
    slabs,
)

TABLE = LabelTable.default()
TURN = Rotation.from_euler("xyz", [12, -7, 20], degrees=True).as_matrix()
PLACE = grid((5, 6, 4), (2.0, 1.5, 3.0), TURN)


@pytest.fixture
def source():
    """Random posteriors on a small oblique grid."""
    data = np.random.default_rng(0).dirichlet(np.ones(len(TABLE)), PLACE.shape)
    return GridField(torch.from_numpy(np.moveaxis(data, -1, 0).astype(np.float32)), PLACE, TABLE)


def indices(shape):
    return np.stack(np.indices(shape), axis=-1).reshape(-1, 3)


class Everywhere:
    """The same probabilities at every point."""

    table = TABLE

    def __init__(self, **by_id):
        self.vector = np.zeros((len(TABLE), 1), np.float32)
        for name, value in by_id.items():
            self.vector[TABLE.channel_of(int(name[2:]))] = value

    def at(self, points_mm):
        return np.repeat(self.vector, len(points_mm), axis=1)


def test_voxel_centres_give_the_voxels(source):
    found = source.at(PLACE.to_world(indices(PLACE.shape)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, source.data.reshape(len(TABLE), -1), atol=2e-6)


def test_between_two_centres_is_their_mean(source):
    found = source.at(PLACE.to_world(np.array([[2.5, 3.0, 1.0]])))[:, 0]
    np.testing.assert_allclose(found, source.data[:, 2:4, 3, 1].mean(1), atol=2e-6)


def test_probabilities_sum_to_one_everywhere(source):
    points = PLACE.to_world(np.random.default_rng(1).uniform(-2, 8, (500, 3)))
    found = source.at(points)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
    assert found.min() >= 0


def test_outside_is_background(source):
    outside = np.array([[-1.01, 2, 2], [5.01, 2, 2], [2, 6.1, 2], [2, 2, 4.1], [1e4, 0, 0]])
    found = source.at(PLACE.to_world(outside))
    np.testing.assert_allclose(found[0], 1, atol=1e-6)
    # Half a voxel beyond the last centre, half of the last voxel is left.
    rim = source.at(PLACE.to_world(np.array([[4.5, 2, 2]])))[1:, 0]
    np.testing.assert_allclose(rim, source.data[1:, 4, 2, 2] / 2, atol=2e-6)


def test_brain_is_where_labels_outweigh_background():
    data = torch.zeros(len(TABLE), 2, 2, 2)
    data[0] = 1
    data[:, 1, 0, 1] = 0
    data[0, 1, 0, 1], data[3, 1, 0, 1], data[5, 1, 0, 1] = 0.4, 0.3, 0.3
    brain = GridField(data, grid((2, 2, 2)), TABLE).brain
    assert np.argwhere(brain).tolist() == [[1, 0, 1]]


def test_a_moved_field_is_asked_where_the_transform_leads(source):
    transform = np.eye(4)
    transform[:3, :3] = TURN
    transform[:3, 3] = 3, -2, 1
    moved = MovedField(source, transform)
    there = PLACE.to_world(indices(PLACE.shape))
    here = (there - transform[:3, 3]) @ TURN  # the inverse of the rotation is its transpose
    np.testing.assert_allclose(moved.at(here), source.at(there), atol=2e-6)
    assert moved.table is TABLE


def test_the_surer_field_gives_its_whole_vector():
    sure, unsure = Everywhere(id2=0.7, id3=0.3), Everywhere(id2=0.2, id3=0.35, id24=0.45)
    for fields in ((sure, unsure), (unsure, sure)):
        np.testing.assert_array_equal(MergedField(fields).at(np.zeros((3, 3)))[:, :1], sure.vector)


def test_a_tie_goes_to_the_later_field():
    first, second = Everywhere(id2=0.6, id3=0.4), Everywhere(id2=0.4, id3=0.6)
    third = Everywhere(id10=0.6, id0=0.4)
    merged = MergedField((first, second)).at(np.zeros((1, 3)))
    np.testing.assert_array_equal(merged, second.vector)
    merged = MergedField((first, second, third)).at(np.zeros((1, 3)))
    np.testing.assert_array_equal(merged, third.vector)


def test_fields_are_merged_point_by_point(source):
    sure = Everywhere(id41=0.1, id42=0.05, id0=0.85)
    points = PLACE.to_world(indices(PLACE.shape))
    own, merged = source.at(points), MergedField((source, sure)).at(points)
    kept = own.max(0) > np.float32(0.85)
    np.testing.assert_array_equal(merged[:, kept], own[:, kept])
    np.testing.assert_array_equal(merged[:, ~kept], sure.at(points)[:, ~kept])
    assert MergedField((source,)).table is TABLE


@pytest.mark.parametrize("shape", [(1, 7, 5), (7, 1, 1), (5, 6, 4), (3, 20, 20), (13, 3, 4)])
def test_slabs_cover_the_grid_once(source, monkeypatch, shape):
    monkeypatch.setattr(field, "SLAB_VOXELS", 50)
    target = grid(shape, (1.3, 1.1, 0.9), TURN.T)
    whole = source.at(target.to_world(indices(shape))).reshape(-1, *shape)
    times = np.zeros(shape, int)
    for part, data in slabs(source, target):
        times[part] += 1
        assert data[0].size <= max(50, shape[1] * shape[2])
        np.testing.assert_allclose(data, whole[:, part], atol=1e-6)
    assert (times == 1).all()


def test_a_scan_says_nothing_where_it_shows_nothing(source):
    """Beyond its field of view, and where it is empty; the other contrast speaks there alone."""
    unseen = np.zeros(PLACE.shape, bool)
    unseen[2:] = True
    seen = SeenField(source, Volume(unseen, PLACE))
    points = PLACE.to_world(np.array([[1.4, 3, 1], [1.6, 3, 1], [-0.6, 3, 1], [-0.4, 3, 1]]))
    found = seen.at(points)
    np.testing.assert_array_equal(is_silent(found), [False, True, True, False])
    np.testing.assert_allclose(found[:, [0, 3]], source.at(points[[0, 3]]), atol=1e-6)
    np.testing.assert_array_equal(seen.is_empty(points), [False, True, False, False])
    unsure = Everywhere(id2=0.04, id3=0.03)
    for fields in ([seen, unsure], [unsure, seen]):
        both = MergedField(fields).at(points)
        np.testing.assert_array_equal(both[:, [1, 2]], unsure.at(points[[1, 2]]))
        np.testing.assert_array_equal(both[:, [0, 3]], found[:, [0, 3]])


@pytest.mark.parametrize("voxel_mm", [(0.7, 0.6, 0.8), (1.0, 1.1, 0.9), (3.0, 2.5, 4.0)])
@pytest.mark.parametrize("turn", [None, TURN.T], ids=["parallel", "turned"])
def test_beyond_the_support_there_is_but_background(voxel_mm, turn):
    data = torch.zeros((len(TABLE), *PLACE.shape))
    data[0], data[2] = 1.0, 0.0
    data[0, 3:5, 2:4, 2:4], data[2, 3:5, 2:4, 2:4] = 0.2, 0.8
    blob = GridField(data, PLACE, TABLE)
    moved = np.eye(4)
    moved[:3, 3] = 1.5, -1.0, 0.5
    target = grid((24, 22, 20), voxel_mm, turn)
    for own in (blob, MovedField(blob, moved), MergedField((blob, MovedField(blob, moved)))):
        support = own.support(target)
        found = own.at(target.to_world(indices(target.shape))).reshape(-1, *target.shape)
        assert (found[0] < NO_LABEL).any() and not (found[0] < NO_LABEL)[~support].any()
        assert not support.all()


def test_chunks_are_the_voxels_of_a_mask_once(monkeypatch):
    monkeypatch.setattr(field, "SLAB_VOXELS", 7)
    mask = np.random.default_rng(0).random((4, 5, 6)) < 0.4
    parts = list(chunks(mask))
    assert max(len(part) for part in parts) <= 7
    np.testing.assert_array_equal(np.concatenate(parts), np.argwhere(mask))
