"""Measures of hand-made segmentations, per structure and per session."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from handmade import GreyReader, grid, head, locator, reader

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.volume import Volume
from bids_synthseg.bids.quality import MEASURES
from bids_synthseg.segmentation.field import GridField
from bids_synthseg.segmentation.labelling import label_volume
from bids_synthseg.segmentation.predict import segment
from bids_synthseg.segmentation.quality import aseg_agreement, lowest, space_measures, worst

TABLE = LabelTable.default()
ASEG = TABLE.fold("aseg")[0]


def field(ids):
    data = torch.zeros(len(TABLE), *ids.shape)
    for channel, index in enumerate(TABLE.ids.tolist()):
        data[channel][torch.from_numpy(ids == index)] = 1
    return GridField(data, grid(ids.shape), TABLE)


def test_agreement_is_that_of_folded_labels():
    first = np.array([2, 1004, 2, 3, 3, 0, 0, 0]).reshape(2, 2, 2)
    second = np.array([2, 2, 1004, 3, 0, 0, 10, 0]).reshape(2, 2, 2)
    found = aseg_agreement(field(first), field(second))
    assert found.shape == (len(ASEG),)
    assert found[ASEG.channel_of(2)] == 1  # the callosum is white matter
    assert found[ASEG.channel_of(3)] == pytest.approx(2 * 1 / 3)
    assert found[ASEG.channel_of(10)] == 0
    assert np.isnan(found[ASEG.channel_of(49)])


def test_the_lowest_of_several_scans():
    nan = np.nan
    found = lowest([np.array([0.5, nan, 0.9]), None, np.array([0.7, nan, 0.8])], 3)
    np.testing.assert_array_equal(found, [0.5, nan, 0.8])
    assert np.isnan(lowest([None], 3)).all()


@pytest.fixture(scope="module")
def whole():
    """A head that is segmented exactly."""
    image = head(grid((40, 46, 40), (1.7, 1.8, 1.7)))[1]
    result = segment(image, reader((64, 80, 64)), locator())
    return result, label_volume(result.field, image.grid), image


def test_a_good_segmentation_has_good_measures(whole):
    result, labelled, image = whole
    found = space_measures(labelled, [image], result.mirror_dice)
    assert set(found) <= set(MEASURES)
    assert found["predicted_dice"] > 0.9
    assert found["mirror_dice"] > 0.9
    assert np.isnan(found["agreement_dice"])
    assert found["entropy"] < 0.1
    assert found["edge_fraction"] == 0
    assert found["asymmetry"] < 0.02
    assert found["brain_ml"] == pytest.approx(4 / 3 * np.pi * 24 * 30 * 22 / 1000, rel=0.05)
    # The head has cortex, white matter and thalamus on either side, and CSF.
    n_solid = sum(row.mapping != 3 for row in ASEG.rows[1:])
    assert found["missing_structures"] == n_solid - 6


def test_a_swapped_side_shows_in_the_mirror_alone(whole):
    """A network that takes a part of the left for right does so in the mirror image too."""
    image = whole[2]
    model = replace(reader(), network=GreyReader(TABLE, middle=-0.15))
    result = segment(image, model, locator())
    labelled = label_volume(result.field, image.grid)
    found = space_measures(labelled, [image], result.mirror_dice)
    assert found["mirror_dice"] < 0.9
    assert found["edge_fraction"] == 0
    plain = segment(image, model, locator(), mirror=False)
    assert plain.mirror_dice is None
    labelled = label_volume(plain.field, image.grid)
    found = space_measures(labelled, [image], lowest([None], len(ASEG)))
    assert np.isnan(found["mirror_dice"])
    assert found["asymmetry"] > 0.1


def test_a_cut_and_an_uncertain_brain(whole):
    result, labelled, image = whole
    padded = image.data.copy()
    padded[:16] = 0
    cut = space_measures(labelled, [image, Volume(padded, image.grid)], result.mirror_dice)
    assert cut["edge_fraction"] > 0.1
    data = 0.6 * result.field.data
    data[0] += 0.1  # the rest goes to background and cortex of both sides
    data[TABLE.channel_of(3)] += 0.15
    data[TABLE.channel_of(42)] += 0.15
    vague = label_volume(GridField(data, result.field.grid, TABLE), image.grid)
    found = space_measures(vague, [image], result.mirror_dice)
    sure = space_measures(labelled, [image], result.mirror_dice)
    assert found["entropy"] > sure["entropy"] + 0.1
    assert found["predicted_dice"] < sure["predicted_dice"] - 0.1


def test_nothing_segmented_has_no_measures(whole):
    image = whole[2]
    empty = field(np.zeros((6, 6, 6), int))
    empty = GridField(empty.data, grid((6, 6, 6), (1.0, 1.0, 1.0), centre_mm=(0, 0, 0)), TABLE)
    labelled = label_volume(empty, image.grid)
    found = space_measures(labelled, [image], aseg_agreement(empty, empty))
    for name in ("predicted_dice", "mirror_dice", "entropy", "edge_fraction", "asymmetry"):
        assert np.isnan(found[name]), name
    assert found["brain_ml"] == 0


def test_of_two_spaces_the_worst_counts():
    names = ("predicted_dice", "mirror_dice", "agreement_dice", "entropy", "edge_fraction",
             "asymmetry", "missing_structures", "islands_ml", "brain_ml")  # fmt: skip
    first = dict.fromkeys(names, 0.5) | {"agreement_dice": np.nan, "islands_ml": np.nan}
    second = dict.fromkeys(names, 0.6) | {"agreement_dice": np.nan}
    found = worst([first, second])
    assert found["predicted_dice"] == found["mirror_dice"] == 0.5
    assert found["entropy"] == found["edge_fraction"] == found["asymmetry"] == 0.6
    assert found["islands_ml"] == 0.6
    assert np.isnan(found["agreement_dice"])
    assert found["brain_ml"] == 0.5
