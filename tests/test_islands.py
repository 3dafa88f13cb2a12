"""Island removal: each rule by hand, and all together against a slow reference."""

from itertools import permutations, product

import numpy as np
import pytest
from scipy import ndimage

from bids_synthseg.anatomy import posteriors
from bids_synthseg.anatomy.islands import fill_holes, largest_component, remove_islands
from bids_synthseg.anatomy.labels import LabelTable

TABLE = LabelTable.default()


def looked_up(data):
    """posterior_at for posteriors held as one array (C, X, Y, Z)."""
    return lambda ijk: data[(slice(None), *ijk.T)].T


def uniform(shape, **favoured):
    """Posteriors that favour the same labels everywhere: uniform(shape, _41=0.5)."""
    data = np.full((len(TABLE), *shape), 1e-3, dtype=np.float32)
    for name, value in favoured.items():
        data[TABLE.channel_of(int(name[1:]))] = value
    return data


def clean(labels, data, voxel_volume_mm3=1.0, table=TABLE):
    return remove_islands(labels, voxel_volume_mm3, looked_up(data), table)


def white_matter_with(n_voxels, label=3, shape=(20, 10, 6)):
    """White matter, a large piece of `label` at one end and a row of it, apart, at the other."""
    labels = np.full(shape, 2, dtype=np.int32)
    labels[:3] = label
    labels[4 : 4 + n_voxels, 4, 3] = label
    return labels


# The rules, one at a time


@pytest.mark.parametrize(
    ("n_voxels", "voxel_mm3", "goes"),
    [
        (14, 1.0, True),
        (15, 1.0, False),
        (16, 1.0, False),
        (15, np.float64(np.float32(0.9999999)), False),
        (7, 2.0, True),
        (8, 2.0, False),
        (15, 0.9, True),
        (1, 15.0, False),
    ],
)
def test_less_than_15_mm3_is_an_island(n_voxels, voxel_mm3, goes):
    labels = white_matter_with(n_voxels)
    cleaned, n_removed = clean(labels, uniform(labels.shape), voxel_mm3)
    assert n_removed == (n_voxels if goes else 0)
    assert (cleaned[4:, :, :] == 3).sum() == (0 if goes else n_voxels)
    assert (cleaned[:3] == 3).all()


def test_input_is_left_alone_and_its_type_kept():
    labels = white_matter_with(5).astype(np.int16)
    before = labels.copy()
    cleaned, _ = clean(labels, uniform(labels.shape))
    assert cleaned.dtype == np.int16
    assert np.array_equal(labels, before)


def test_largest_component_stays_however_small():
    labels = np.full((8, 4, 4), 2, dtype=np.int32)
    labels[1, 1, 1:3] = 26  # two voxels: all there is of the accumbens
    labels[5, 1, 1] = 26
    cleaned, n_removed = clean(labels, uniform(labels.shape))
    assert n_removed == 1
    assert cleaned[5, 1, 1] == 2
    assert (cleaned[1, 1, 1:3] == 26).all()


def test_equal_largest_components_both_stay():
    labels = np.full((8, 4, 4), 2, dtype=np.int32)
    labels[1, 1, 1] = labels[5, 1, 1] = 26
    cleaned, n_removed = clean(labels, uniform(labels.shape))
    assert n_removed == 0
    assert np.array_equal(cleaned, labels)


def test_edges_and_corners_do_not_connect():
    labels = np.full((6, 6, 6), 2, dtype=np.int32)
    labels[1:4, 1:4, 1:4] = 3
    labels[4, 4, 2] = 3  # shares an edge with the block
    labels[0, 0, 0] = 3  # shares a corner
    cleaned, n_removed = clean(labels, uniform(labels.shape))
    assert n_removed == 2
    assert cleaned[4, 4, 2] == cleaned[0, 0, 0] == 2


def test_touching_label_with_the_highest_mean_posterior_wins():
    labels = np.full((12, 5, 5), 2, dtype=np.int32)
    labels[6:] = 41
    labels[0] = 3
    labels[5:7, 2, 2] = 3  # one voxel on each side of the midline
    data = uniform(labels.shape)
    data[TABLE.channel_of(2), 5, 2, 2] = 0.9
    data[TABLE.channel_of(2), 6, 2, 2] = 0.0
    data[TABLE.channel_of(41), 5:7, 2, 2] = 0.4  # mean 0.40 against 0.45
    data[TABLE.channel_of(17)] = 0.99  # likeliest of all, but it touches nowhere
    cleaned, n_removed = clean(labels, data)
    assert n_removed == 2
    assert cleaned[5:7, 2, 2].tolist() == [2, 2]


def test_equal_posteriors_go_to_the_earlier_row():
    labels = np.full((12, 5, 5), 2, dtype=np.int32)
    labels[6:] = 41
    labels[0] = 3
    labels[5:7, 2, 2] = 3
    assert (clean(labels, uniform(labels.shape))[0][5:7, 2, 2] == 2).all()
    assert (clean(labels[::-1], uniform(labels.shape))[0][5:7, 2, 2] == 2).all()


@pytest.mark.parametrize(("background", "want"), [(0.8, 0), (0.1, 2)])
def test_background_may_take_an_island(background, want):
    labels = np.zeros((10, 6, 6), dtype=np.int32)
    labels[:3] = 3
    labels[5:] = 2
    labels[4, 2, 2] = 3  # on the outside of the white matter
    cleaned, n_removed = clean(labels, uniform(labels.shape, _0=background, _2=0.2))
    assert n_removed == 1
    assert cleaned[4, 2, 2] == want


def test_background_is_never_an_island():
    labels = np.zeros((10, 6, 6), dtype=np.int32)
    labels[2:8, 1:5, 1:5] = 2
    labels[4, 3, 3] = 0
    cleaned, n_removed = clean(labels, uniform(labels.shape, _2=0.9))
    assert n_removed == 0
    assert cleaned[4, 3, 3] == 0


@pytest.mark.parametrize("corner", list(product((0, -1), repeat=3)))
def test_islands_in_the_corner_of_the_array(corner):
    labels = np.full((7, 7, 7), 2, dtype=np.int32)
    labels[2:5, 2:5, 2:5] = 3
    labels[corner] = 3
    for axis in range(3):
        across = list(corner)
        across[axis] = -1 - across[axis]
        labels[tuple(across)] = 41  # an index that wraps round would call this a neighbour
    cleaned, n_removed = clean(labels, uniform(labels.shape, _41=0.9))
    assert n_removed == 1
    assert cleaned[corner] == 2


def test_touching_islands_settle_from_the_rim_inwards():
    labels = np.full((9, 9, 9), 2, dtype=np.int32)
    labels[0], labels[-1] = 3, 41
    # A shell of 26 voxels of 0.5 mm3 round a core of one: both are less than 15 mm3.
    labels[3:6, 3:6, 3:6] = 41
    labels[4, 4, 4] = 3
    data = uniform(labels.shape, _2=0.2, _41=0.7)
    cleaned, n_removed = clean(labels, data, voxel_volume_mm3=0.5)
    # The shell touches only label 2; the core, which the posteriors give to 41, sees 2 by then.
    assert n_removed == 27
    assert (cleaned[1:-1] == 2).all()


def test_islands_side_by_side_do_not_take_each_other():
    labels = np.full((9, 6, 6), 2, dtype=np.int32)
    labels[0], labels[-1] = 3, 4
    labels[4, 3, 3], labels[5, 3, 3] = 3, 4
    cleaned, n_removed = clean(labels, uniform(labels.shape, _2=0.1, _3=0.4, _4=0.4))
    assert n_removed == 2
    assert (cleaned[1:-1] == 2).all()


def test_fused_posteriors_decide():
    folded, channels = TABLE.fold("aseg")
    labels = np.full((12, 5, 5), 2, dtype=np.int32)
    labels[6:] = 16
    labels[0] = 3
    labels[5:7, 2, 2] = 3
    # White matter alone (0.3) loses against brain stem (0.4); with the corpus callosum it wins.
    native = uniform(labels.shape, _2=0.3, _1004=0.3, _16=0.4)
    fused = posteriors.fold(native, channels)
    assert (clean(labels, native)[0][5:7, 2, 2] == 16).all()
    assert (clean(labels, fused, table=folded)[0][5:7, 2, 2] == 2).all()


def test_nothing_to_do_asks_for_no_posterior():
    def unexpected(ijk):
        raise AssertionError("posteriors were asked for")

    for labels in (np.zeros((4, 4, 4), np.int32), np.full((4, 4, 4), 2, np.int32)):
        cleaned, n_removed = remove_islands(labels, 1.0, unexpected, TABLE)
        assert n_removed == 0
        assert np.array_equal(cleaned, labels)


def test_posteriors_of_another_table_are_refused():
    labels = white_matter_with(3)
    with pytest.raises(ValueError, match="posteriors"):
        clean(labels, uniform(labels.shape)[:32])


def test_unknown_labels_are_named():
    with pytest.raises(ValueError, match="77"):
        clean(np.full((3, 3, 3), 77, dtype=np.int32), uniform((3, 3, 3)))


# All rules together


def reference(labels, voxel_volume_mm3, data, max_island_mm3=15.0):
    """The same rules, one component and one label at a time, with scipy only."""
    pending = []
    for index in np.unique(labels[labels != 0]):
        component, n = ndimage.label(labels == index)
        masks = [component == i for i in range(1, n + 1)]
        biggest = max(mask.sum() for mask in masks)
        pending += [m for m in masks if m.sum() < biggest]
    pending = [m for m in pending if m.sum() * voxel_volume_mm3 < max_island_mm3]
    cleaned = labels.copy()
    while pending:
        waiting = np.any(pending, axis=0)
        decided, later = [], []
        for mask in pending:
            rim = ndimage.binary_dilation(mask) & ~mask & ~waiting
            touching = np.unique(cleaned[rim])
            if not len(touching):
                later.append(mask)
                continue
            score = [data[TABLE.channel_of(int(t))][mask].mean(dtype=np.float64) for t in touching]
            decided.append((mask, touching[int(np.argmax(score))]))
        for mask, index in decided:
            cleaned[mask] = index
        pending = later
    return cleaned


def noisy_head(seed, shape=(14, 13, 12)):
    """Blobs of six labels with noise in between, and random posteriors."""
    rng = np.random.default_rng(seed)
    smooth = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), 1.0) for _ in range(6)])
    labels = np.array([0, 2, 3, 41, 42, 16], dtype=np.int32)[smooth.argmax(axis=0)]
    data = rng.gamma(0.5, size=(len(TABLE), *shape))
    return labels, (data / data.sum(axis=0)).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_against_the_slow_reference(seed):
    labels, data = noisy_head(seed)
    for voxel_volume_mm3 in (0.1, 0.5, 1.0):
        cleaned, n_removed = clean(labels, data, voxel_volume_mm3)
        want = reference(labels, voxel_volume_mm3, data)
        assert np.array_equal(cleaned, want)
        assert n_removed == (want != labels).sum() > 0


def test_a_second_pass_finds_nothing():
    labels, data = noisy_head(7)
    once, _ = clean(labels, data)
    assert clean(once, data)[1] == 0


def test_order_of_the_voxels_does_not_matter():
    labels, data = noisy_head(5)
    want, _ = clean(labels, data)
    for axes in permutations(range(3)):
        for step in product((1, -1), repeat=3):
            view = tuple(slice(None, None, s) for s in step)
            turned = labels.transpose(axes)[view]
            channels = data.transpose(0, *(axis + 1 for axis in axes))[(slice(None), *view)]
            got, _ = clean(turned, channels)
            assert np.array_equal(got, want.transpose(axes)[view])


# Masks


def test_closed_cavities_are_filled_and_open_ones_not():
    mask = np.zeros((9, 9, 9), dtype=bool)
    mask[1:8, 1:8, 1:8] = True
    mask[3, 3, 3] = mask[5, 5, 4:6] = False  # closed
    mask[6, 2, 5:8] = False  # a shaft to the outside
    filled = fill_holes(mask)
    assert filled[3, 3, 3]
    assert filled[5, 5, 4:6].all()
    assert not filled[6, 2, 5:8].any()
    assert filled.sum() == 7**3 - 3
    assert np.array_equal(filled, ndimage.binary_fill_holes(mask))


def test_a_cavity_at_the_border_is_open():
    mask = np.ones((4, 4, 4), dtype=bool)
    mask[0, 1, 1] = False
    assert np.array_equal(fill_holes(mask), mask)


@pytest.mark.parametrize("value", [True, False])
def test_full_and_empty_masks_have_no_holes(value):
    mask = np.full((3, 3, 3), value)
    assert np.array_equal(fill_holes(mask), mask)


def test_largest_component_of_a_mask():
    mask = np.zeros((8, 8, 8), dtype=bool)
    mask[0, 0, 0:2] = True
    mask[4:6, 4:6, 4:6] = True
    mask[6, 6, 6] = True  # touches by a corner only
    kept = largest_component(mask)
    assert kept.sum() == 8
    assert kept[4:6, 4:6, 4:6].all()


def test_largest_component_of_nothing_is_nothing():
    assert not largest_component(np.zeros((3, 3, 3), dtype=bool)).any()
