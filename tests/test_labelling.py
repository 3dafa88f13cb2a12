"""Label maps from a posterior field: folding, cleaning, volumes."""

import numpy as np
import pytest
import torch
from handmade import RADII_MM, SHELLS, grid, head, locator, reader

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.volume import Volume
from bids_synthseg.segmentation.field import GridField, MergedField, SeenField
from bids_synthseg.segmentation.labelling import label_volume
from bids_synthseg.segmentation.predict import segment

TABLE = LabelTable.default()


def field_of(labels, sure=0.8, second=None):
    """Posteriors on a 1 mm grid: `sure` for the label of a voxel, the rest for `second`'s."""
    data = torch.zeros(len(TABLE), *labels.shape)
    channels = np.vectorize(TABLE.channel_of)(labels)
    others = np.vectorize(TABLE.channel_of)(np.zeros_like(labels) if second is None else second)
    for channel in range(len(TABLE)):
        data[channel] += sure * torch.from_numpy(channels == channel)
        data[channel] += (1 - sure) * torch.from_numpy(others == channel)
    return GridField(data, grid(labels.shape, (1.0, 1.0, 1.0)), TABLE)


def folded(native):
    target = dict(zip(TABLE.ids.tolist(), [row.aseg for row in TABLE.rows], strict=True))
    return np.vectorize(target.get)(native)


@pytest.fixture
def cube():
    """(20, 20, 20) left white matter with cortex at low x."""
    labels = np.zeros((20, 20, 20), np.int32)
    labels[4:16, 4:16, 4:16] = 2
    labels[4:7, 4:16, 4:16] = 3
    return labels


def test_labels_volumes_and_mask_of_a_cube(cube):
    field = field_of(cube)
    found = label_volume(field, field.grid)
    np.testing.assert_array_equal(found.aseg, cube)
    np.testing.assert_array_equal(found.native, cube)
    np.testing.assert_array_equal(found.mask, cube > 0)
    assert found.aseg.dtype == found.native.dtype == np.int32
    assert found.islands_mm3.sum() == 0
    assert found.disagreement is None
    assert found.posteriors is None
    hard = dict(zip(found.aseg_table.ids.tolist(), found.hard_mm3, strict=True))
    soft = dict(zip(found.aseg_table.ids.tolist(), found.soft_mm3, strict=True))
    assert {k: v for k, v in hard.items() if v} == {0: 8000 - 1728, 2: 9 * 144, 3: 3 * 144}
    assert soft[2] == pytest.approx(0.8 * 9 * 144, rel=1e-5)
    assert soft[0] == pytest.approx(8000 - 0.8 * 1728, rel=1e-5)
    assert sum(soft.values()) == pytest.approx(8000, rel=1e-5)


def test_posteriors_are_kept_on_request(cube):
    field = field_of(cube)
    found = label_volume(field, field.grid, keep_posteriors=True)
    np.testing.assert_allclose(found.posteriors, field.data, atol=1e-5)


def test_how_sure_the_labels_are(cube):
    """A voxel of the brain has 0.8 of its own label and 0.2 of background."""
    field = field_of(cube)
    found = label_volume(field, field.grid)
    np.testing.assert_allclose(found.confidence, np.where(cube > 0, 0.8, 1.0), atol=1e-5)
    evidence, at = found.evidence, found.aseg_table.channel_of
    # Of white matter: 2 * 0.8 n / (n + 0.8 n).
    assert evidence.predicted_dice[at(2)] == pytest.approx(1.6 / 1.8, rel=1e-5)
    unsure = -(0.8 * np.log(0.8) + 0.2 * np.log(0.2)) / np.log(len(found.aseg_table))
    assert evidence.entropy[at(3)] == pytest.approx(unsure, rel=1e-4)
    assert np.isnan(evidence.predicted_dice[at(10)])
    assert np.isnan(evidence.agreement_dice).all()


def test_two_contrasts_disagree_where_each_alone_has_another_label(cube):
    """A part of what is white matter to one contrast is thalamus to the other, surer one."""
    other = cube.copy()
    other[10:12, 8:12, 8:12] = 10  # 32 voxels
    other[0, 0, 0] = 3  # far from the brain, and lost in cleaning
    first, second = field_of(cube, 0.7), field_of(other, 0.9)
    found = label_volume(MergedField((first, second)), first.grid)
    np.testing.assert_array_equal(found.disagreement, cube != other)
    other[0, 0, 0] = 0
    np.testing.assert_array_equal(found.aseg, other)
    at = found.aseg_table.channel_of
    n_white = int((cube == 2).sum())
    dice = found.evidence.agreement_dice
    assert dice[at(2)] == pytest.approx(2 * (n_white - 32) / (2 * n_white - 32))
    assert dice[at(10)] == 0
    assert dice[at(3)] == pytest.approx(2 * 432 / (2 * 432 + 1))
    assert np.isnan(dice[at(49)])
    # The other way round the surer contrast still decides, and they disagree all the same.
    swapped = label_volume(MergedField((second, first)), first.grid)
    np.testing.assert_array_equal(swapped.aseg, found.aseg)
    np.testing.assert_array_equal(swapped.disagreement, found.disagreement)


def test_parts_are_added_up_before_the_best_label_is_taken(cube):
    """White matter 0.3 and callosum 0.25 beat cortex 0.45; native then is white matter."""
    field = field_of(cube)
    for index, value in ((2, 0.3), (1004, 0.25), (3, 0.45), (0, 0.0)):
        field.data[TABLE.channel_of(index), 8:12, 8:12, 8:12] = value
    found = label_volume(field, field.grid)
    assert (found.aseg[8:12, 8:12, 8:12] == 2).all()
    assert (found.native[8:12, 8:12, 8:12] == 2).all()
    field.data[TABLE.channel_of(1004), 8:12, 8:12, 8:12] = 0.31
    assert (label_volume(field, field.grid).native[8:12, 8:12, 8:12] == 1004).all()


def test_an_island_goes_to_its_best_neighbour_in_both_maps(cube):
    labels, second = cube.copy(), np.where(cube == 2, 1004, cube)
    labels[11:13, 8:10, 8:10] = 3  # 8 mm3 of cortex within white matter
    field = field_of(labels, 0.6, second)
    found = label_volume(field, field.grid)
    np.testing.assert_array_equal(found.aseg, cube)
    assert found.islands_mm3[found.aseg_table.channel_of(3)] == found.islands_mm3.sum() == 8
    # Of what folds to white matter, only the callosum has a probability there.
    assert (found.native[11:13, 8:10, 8:10] == 1004).all()
    np.testing.assert_array_equal(folded(found.native), found.aseg)


def test_what_does_not_hang_together_with_the_brain_is_removed(cube):
    labels = np.pad(cube, ((0, 20), (0, 0), (0, 0)))
    labels[28:34, 8:12, 8:12] = 24  # 96 mm3, larger than an island, the only CSF
    field = field_of(labels)
    found = label_volume(field, field.grid)
    assert (found.aseg[20:] == 0).all()
    assert (found.native[20:] == 0).all()
    assert not found.mask[20:].any()
    np.testing.assert_array_equal(found.aseg[:20], cube)
    assert found.islands_mm3[found.aseg_table.channel_of(24)] == found.islands_mm3.sum() == 96


def test_holes_belong_to_the_mask_but_to_no_label(cube):
    labels = cube.copy()
    labels[9:12, 9:12, 9:12] = 0
    field = field_of(labels)
    found = label_volume(field, field.grid)
    np.testing.assert_array_equal(found.mask, cube > 0)
    assert (found.aseg[9:12, 9:12, 9:12] == 0).all()


def test_nothing_but_background(cube):
    field = field_of(np.zeros_like(cube))
    found = label_volume(field, field.grid)
    assert not found.aseg.any()
    assert not found.mask.any()
    assert found.hard_mm3.sum() == pytest.approx(8000)
    assert found.hard_mm3[1:].sum() == 0


def test_the_native_map_folds_to_aseg_everywhere_after_cleaning():
    """Random blobs of all labels: hundreds of islands."""
    rng = np.random.default_rng(5)
    labels = TABLE.ids[rng.integers(0, len(TABLE), (8, 8, 8))].repeat(2, 0).repeat(2, 1)
    second = TABLE.ids[rng.integers(0, len(TABLE), labels.shape)]
    field = field_of(labels, 0.6, second)
    found = label_volume(field, field.grid)
    assert found.islands_mm3.sum() > 100
    assert 1004 in found.native or 2004 in found.native
    np.testing.assert_array_equal(folded(found.native), found.aseg)


def test_volumes_of_the_phantom_are_those_of_its_ellipsoids():
    place = grid((32, 36, 30), (2.1, 2.2, 2.3))
    result = segment(head(place)[1], reader(), locator())
    found = label_volume(result.field, place)
    ids = found.aseg_table.ids.tolist()
    volume_mm3 = [4 / 3 * np.pi * np.prod(RADII_MM * shell[0]) for shell in SHELLS]
    inner_mm3 = [*volume_mm3[1:], 0.0]
    left_mm3 = {
        left: (outer - inner) / (1 if left == right else 2)
        for (_, left, right, _, _), outer, inner in zip(SHELLS, volume_mm3, inner_mm3, strict=True)
    }
    left_mm3[2] += left_mm3.pop(1004)  # the callosum is white matter in aseg
    for index, expected in left_mm3.items():
        twin = TABLE.rows[TABLE.channel_of(index)].mirror
        for one in {index, twin}:
            assert found.hard_mm3[ids.index(one)] == pytest.approx(expected, rel=0.12), one
            assert found.soft_mm3[ids.index(one)] == pytest.approx(expected, rel=0.12), one
    assert found.mask.sum() * place.voxel_volume_mm3 == pytest.approx(volume_mm3[0], rel=0.03)
    assert {1004, 2004} <= set(np.unique(found.native))
    np.testing.assert_array_equal(folded(found.native), found.aseg)


def test_no_label_lies_where_the_scan_is_empty(cube):
    """Half of what the network sees was cut away: maps, mask, volumes and confidence know of it."""
    field = field_of(cube)
    unseen = np.zeros(cube.shape, bool)
    unseen[10:] = True
    seen = SeenField(field, Volume(unseen, field.grid))
    found = label_volume(seen, field.grid, keep_posteriors=True)
    expected = np.where(unseen, 0, cube)
    np.testing.assert_array_equal(found.aseg, expected)
    np.testing.assert_array_equal(found.native, expected)
    np.testing.assert_array_equal(found.mask, expected > 0)
    np.testing.assert_array_equal(found.posteriors[0][unseen], 1)
    np.testing.assert_allclose(found.confidence[unseen], 1)
    soft = dict(zip(found.aseg_table.ids.tolist(), found.soft_mm3, strict=True))
    assert soft[2] == pytest.approx(0.8 * 3 * 144, rel=1e-5)
    # Another contrast that shows the other half is not contradicted there.
    both = label_volume(MergedField([seen, field_of(cube, 0.6)]), field.grid)
    np.testing.assert_array_equal(both.aseg, cube)
    assert not both.disagreement.any()
