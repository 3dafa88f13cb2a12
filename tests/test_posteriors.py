"""Posteriors worked out by hand on a few voxels."""

import numpy as np
import pytest

from bids_synthseg.anatomy import posteriors
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.posteriors import Posteriors
from bids_synthseg.anatomy.volume import Grid

TABLE = LabelTable.default()
GRID = Grid((2, 3, 4), np.eye(4))


def random_posteriors(shape, seed=0):
    draws = np.random.default_rng(seed).gamma(0.3, size=(len(TABLE), *shape)) + 1e-6
    return (draws / draws.sum(axis=0)).astype(np.float32)


def test_posteriors_that_fit_are_taken_as_they_are():
    data = random_posteriors(GRID.shape)
    assert Posteriors(data, GRID, TABLE).data is data


def spoiled(value, sum_to_one=False):
    data = random_posteriors(GRID.shape)
    data[3, 1, 2, 3] = value
    if sum_to_one:
        data[4, 1, 2, 3] = 1 - np.delete(data[:, 1, 2, 3], 4).sum()
    return data


@pytest.mark.parametrize(
    "data",
    [
        random_posteriors(GRID.shape)[1:],
        random_posteriors((2, 3, 5)),
        spoiled(np.nan),
        spoiled(np.inf),
        spoiled(-np.inf),
        spoiled(-0.5, sum_to_one=True),
        random_posteriors(GRID.shape) * 1.002,
        random_posteriors(GRID.shape) * 0.998,
    ],
    ids=["channels", "shape", "nan", "inf", "-inf", "negative", "sum above 1", "sum below 1"],
)
def test_what_is_no_probability_is_refused(data):
    with pytest.raises(ValueError, match="posteriors"):
        Posteriors(data, GRID, TABLE)


def test_merge_takes_the_surer_contrast_whole():
    #                   second surer, first surer, tie of maxima
    first = np.array([[0.6, 0.9, 0.5], [0.3, 0.1, 0.3], [0.1, 0.0, 0.2]], dtype=np.float32)
    second = np.array([[0.1, 0.2, 0.2], [0.7, 0.4, 0.3], [0.2, 0.4, 0.5]], dtype=np.float32)
    merged, from_second = posteriors.merge(first, second)
    assert from_second.tolist() == [True, False, True]
    assert np.array_equal(merged, np.stack((second[:, 0], first[:, 1], second[:, 2]), axis=1))
    assert merged.dtype == np.float32


def test_merged_posteriors_still_sum_to_one():
    first, second = random_posteriors((6, 5, 4), seed=1), random_posteriors((6, 5, 4), seed=2)
    merged, from_second = posteriors.merge(first, second)
    assert 0 < from_second.sum() < from_second.size
    assert np.allclose(merged.sum(axis=0), 1, atol=1e-5)
    # The element-wise maximum, as an older pipeline wrote it, would not.
    assert np.maximum(first, second).sum(axis=0).min() > 1.01


def test_merge_in_slabs_is_merge_of_the_whole():
    first, second = random_posteriors((6, 5, 4), seed=1), random_posteriors((6, 5, 4), seed=2)
    whole, _ = posteriors.merge(first, second)
    slabs = [posteriors.merge(first[:, i], second[:, i])[0] for i in range(6)]
    assert np.array_equal(np.stack(slabs, axis=1), whole)


def test_merge_refuses_different_grids():
    with pytest.raises(ValueError, match="merge"):
        posteriors.merge(random_posteriors((2, 3)), random_posteriors((1, 3)))


def test_fold_adds_the_corpus_callosum_to_white_matter():
    folded_table, channels = TABLE.fold("aseg")
    data = np.zeros((len(TABLE), 2), dtype=np.float32)
    # Alone each part loses against cortex (0.4); together they win.
    for index, value in {2: 0.3, 1004: 0.3, 3: 0.4}.items():
        data[TABLE.channel_of(index), 0] = value
    data[TABLE.channel_of(2004), 1] = 1
    folded = posteriors.fold(data, channels)
    assert folded.shape == (32, 2)
    assert folded.dtype == np.float32
    assert folded[folded_table.channel_of(2), 0] == pytest.approx(0.6)
    assert posteriors.label_ids(data, TABLE).tolist() == [3, 2004]
    assert posteriors.label_ids(folded, folded_table).tolist() == [2, 41]
    assert np.allclose(folded.sum(axis=0), 1)


def test_mirror_swaps_sides_in_space_and_in_channels():
    data = np.zeros((len(TABLE), 3, 1, 1), dtype=np.float32)
    data[TABLE.channel_of(17), 0] = 1  # left hippocampus on the left
    data[TABLE.channel_of(16), 1] = 1
    data[TABLE.channel_of(2), 2] = 1  # left white matter on the right: swapped
    seen = posteriors.label_ids(posteriors.mirror(data, TABLE), TABLE)
    assert seen.ravel().tolist() == [41, 16, 53]


def test_mirror_twice_is_the_identity():
    data = random_posteriors((3, 4, 5))
    assert np.array_equal(posteriors.mirror(posteriors.mirror(data, TABLE), TABLE), data)


def test_labels_of_a_tie_are_the_earlier_row():
    data = np.full((len(TABLE), 2), 1 / len(TABLE), dtype=np.float32)
    ids = posteriors.label_ids(data, TABLE)
    assert ids.tolist() == [0, 0]
    assert ids.dtype == np.int32


def test_the_best_channel_and_its_value():
    """As argmax, ties included: to the earlier channel."""
    data = np.random.default_rng(2).integers(0, 4, (5, 6, 7, 8)).astype(np.float32)
    channel, value = posteriors.best_channel(data)
    np.testing.assert_array_equal(channel, data.argmax(axis=0))
    np.testing.assert_array_equal(value, data.max(axis=0))
    assert channel.dtype == np.int16
    assert posteriors.best_channel(data[:, :0])[0].shape == (0, 7, 8)


def test_soft_volumes_count_parts_of_voxels():
    data = np.zeros((len(TABLE), 2, 1, 1), dtype=np.float32)
    data[TABLE.channel_of(17)] = [[[0.25]], [[1.0]]]
    data[0, 0] = 0.75
    volumes = posteriors.soft_volumes_mm3(data, TABLE, 8.0)
    assert volumes[17] == pytest.approx(10)
    assert volumes[0] == pytest.approx(6)
    assert sum(volumes.values()) == pytest.approx(16)
    assert list(volumes) == TABLE.ids.tolist()


def test_entropy_runs_from_certain_to_undecided():
    data = np.array([[1, 0.25, 0.5], [0, 0.25, 0.5], [0, 0.25, 0], [0, 0.25, 0]], np.float32)
    # Two equal labels of four: log 2 / log 4.
    assert posteriors.entropy(data) == pytest.approx([0, 1, 0.5], abs=1e-6)
