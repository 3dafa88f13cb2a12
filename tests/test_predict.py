"""From a scan to posteriors: exact on a phantom, whatever its orientation, place and size."""

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
import torch
from handmade import RADII_MM, GreyReader, grid, head, interior, locator, reader
from scipy.spatial.transform import Rotation

from bids_synthseg.anatomy.intensity import standardised
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.posteriors import label_ids, mirror
from bids_synthseg.anatomy.volume import Grid, Volume, resample
from bids_synthseg.segmentation import predict
from bids_synthseg.segmentation.field import slabs
from bids_synthseg.segmentation.locate import BrainBox, Location
from bids_synthseg.segmentation.predict import (
    at_temperature,
    brain_box,
    posteriors_of,
    segment,
    twin_of,
    working_volume,
)
from bids_synthseg.segmentation.quality import aseg_agreement

TURN = Rotation.from_euler("xyz", [8, -6, 10], degrees=True).as_matrix()


def labels_on(field, place):
    data = np.concatenate([part for _, part in slabs(field, place)], axis=1)
    return label_ids(data, field.table)


def oriented(scan, axes, flips):
    """The same scan with its voxels stored in another order."""
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
        change[old, new] = -1 if flip else 1
        change[old, 3] = scan.grid.shape[old] - 1 if flip else 0
    data = np.flip(scan.data.transpose(axes), [a for a in range(3) if flips[a]])
    return Volume(data, Grid(data.shape, scan.grid.affine @ change))


@pytest.fixture(scope="module")
def oblique():
    """Labels and image on an oblique anisotropic grid."""
    return head(grid((40, 46, 32), (1.6, 1.7, 2.2), TURN))


@pytest.mark.parametrize("mirrored", [False, True])
def test_labels_are_exact_where_there_is_no_partial_volume(oblique, mirrored):
    labels, image = oblique
    result = segment(image, reader(), locator(), mirrored)
    found = labels_on(result.field, image.grid)
    inner = interior(labels.data)
    assert set(np.unique(labels.data[inner])) >= {0, 2, 3, 10, 41, 42, 49}
    np.testing.assert_array_equal(found[inner], labels.data[inner])
    assert (found == labels.data).mean() > 0.95
    assert result.passes == 2  # the hand-made locator sees all of a brain: a margin is too much
    assert result.warnings == ()
    np.testing.assert_allclose(result.field.data.sum(0), 1, atol=1e-5)


def test_all_48_orientations_give_the_same_labels():
    image = head(grid((26, 30, 18), (2.4, 2.5, 3.5), TURN))[1]
    expected = labels_on(segment(image, reader((32, 36, 32)), locator()).field, image.grid)
    assert len(np.unique(expected)) > 8
    for axes in permutations(range(3)):
        for flips in product((False, True), repeat=3):
            turned = oriented(image, axes, flips)
            found = labels_on(segment(turned, reader((32, 36, 32)), locator()).field, turned.grid)
            back = oriented(Volume(expected, image.grid), axes, flips).data
            assert (found == back).mean() >= 0.9999, (axes, flips)


def test_with_the_mirrored_pass_the_mirror_image_gives_the_mirrored_posteriors(oblique):
    image = oblique[1].canonical()[0]
    table = LabelTable.default()
    # By itself the network takes a part of the left for right.
    model = replace(reader(), network=GreyReader(table, middle=-0.1))
    box = BrainBox(image.grid.centre_mm, 2 * RADII_MM)
    here = working_volume(image, image.grid, box, model)
    there = Volume(here.data[::-1].copy(), here.grid)
    plain, mirrored = (
        [posteriors_of(working, model, m).data.numpy() for working in (here, there)]
        for m in (False, True)
    )
    assert np.abs(mirror(plain[0], table) - plain[1]).max() > 0.9
    both = [(one + other) / 2 for one, other in zip(plain, mirrored, strict=True)]
    np.testing.assert_allclose(mirror(both[0], table), both[1], atol=1e-6)


def test_segment_averages_with_the_mirrored_pass(oblique):
    model = replace(reader(), network=GreyReader(LabelTable.default(), middle=-0.1))
    plain, both = (segment(oblique[1], model, locator(), m) for m in (False, True))
    scan = standardised(oblique[1].canonical()[0])
    twin = twin_of(scan, scan.grid, plain.box, plain.field, model)
    mean = at_temperature((plain.field.data + twin.data) / 2, predict.TEMPERATURE)
    np.testing.assert_allclose(both.field.data, mean, atol=1e-6)
    assert (both.field.data - plain.field.data).abs().max() > 0.4
    assert both.field.grid == plain.field.grid == plain.image.grid
    assert plain.mirror_dice is None
    np.testing.assert_array_equal(both.mirror_dice, aseg_agreement(plain.field, twin))
    assert np.nanmin(both.mirror_dice) < 0.9


class Corners(GreyReader):
    """Says what it says at the first voxel of every cube of two for all of the cube."""

    def forward(self, image):
        first = super().forward(image)[:, :, ::2, ::2, ::2]
        return torch.nn.functional.interpolate(first, scale_factor=2, mode="nearest")


def test_the_mirrored_pass_sees_other_cubes_and_its_answer_comes_back_in_place(oblique):
    """Cubes answer for their first corner: the mean of two grids errs to both sides alike."""
    image = standardised(oblique[1].canonical()[0])
    exact, coarse = reader(), replace(reader(), network=Corners(LabelTable.default()))
    truth = segment(image, exact, locator(), mirror=False)
    twin = twin_of(image, image.grid, truth.box, truth.field, exact)
    # The middle of its grid, by which the network tells the sides, is elsewhere for the twin.
    assert (twin.brain == truth.field.brain).mean() > 0.999
    field = posteriors_of(truth.image, coarse)
    same = posteriors_of(truth.image, coarse, mirrored=True)
    moved = twin_of(image, image.grid, truth.box, field, coarse)
    means = [replace(field, data=(field.data + other.data) / 2) for other in (same, moved)]
    wrong = [(mean.brain != truth.field.brain).mean() for mean in means]
    assert wrong[1] < wrong[0]


def test_the_planes_that_the_mirrored_pass_lacks_are_those_of_the_plain_one(oblique):
    image = standardised(oblique[1].canonical()[0])
    plain = segment(image, reader(), locator(), mirror=False)
    marked = replace(plain.field, data=torch.full_like(plain.field.data, -1.0))
    twin = twin_of(image, image.grid, plain.box, marked, reader()).data
    assert (twin[:, 0] == -1).all() and (twin[:, :, 0] == -1).all() and (twin[..., 0] == -1).all()
    assert (twin[:, 1:, 1:, 1:] >= 0).all()


def test_a_temperature_sharpens_and_keeps_sums_order_and_zeros():
    posteriors = torch.tensor([[0.6, 1.0, 0.5], [0.3, 0.0, 0.5], [0.1, 0.0, 0.0]])
    kept = posteriors.clone()
    sharp, same = at_temperature(posteriors, 0.5), at_temperature(posteriors, 1.0)
    np.testing.assert_allclose(sharp[:, 0], np.array([0.36, 0.09, 0.01]) / 0.46, rtol=1e-5)
    np.testing.assert_allclose(sharp[:, 1:], posteriors[:, 1:], atol=1e-6)
    np.testing.assert_allclose(same, posteriors, atol=1e-6)
    assert torch.equal(posteriors, kept)


def test_the_working_grid_is_filled_by_the_box():
    place = grid((30, 34, 20), (2.2, 2.1, 3.4), TURN)
    box = BrainBox(place.centre_mm + 3, np.array([51.0, 40.0, 30.0]))
    working = working_volume(head(place)[1], place, box, reader((40, 48, 40), 0.85))
    np.testing.assert_allclose(working.grid.voxel_size_mm, 51 / (0.85 * 40))
    np.testing.assert_allclose(working.grid.centre_mm, box.centre_mm)
    turned = working.grid.affine[:3, :3] / working.grid.voxel_size_mm
    np.testing.assert_allclose(turned, TURN, atol=1e-12)


@pytest.mark.parametrize(
    ("extent_mm", "shape"),
    [
        # 0.85 of 48 x 64 x 48 voxels of 2 mm is 81.6 x 108.8 x 81.6 mm: up to this the model's own.
        ((51.0, 40.0, 30.0), (48, 64, 48)),
        ((81.0, 108.0, 81.0), (48, 64, 48)),
        # 120 mm take 70.6 voxels, and with them a multiple of 16 that five levels can halve.
        ((51.0, 120.0, 30.0), (48, 80, 48)),
        ((90.0, 40.0, 110.0), (64, 64, 80)),
    ],
)
def test_a_fixed_grid_has_its_voxels_and_holds_the_box(extent_mm, shape):
    place = grid((30, 34, 20), (2.2, 2.1, 3.4), TURN)
    box = BrainBox(place.centre_mm + 3, np.array(extent_mm))
    model = replace(reader((48, 64, 48), 0.85), voxel_mm=2.0)
    working = working_volume(head(place)[1], place, box, model)
    assert working.data.shape == working.grid.shape == shape
    np.testing.assert_allclose(working.grid.voxel_size_mm, 2.0)
    np.testing.assert_allclose(working.grid.centre_mm, box.centre_mm)


def test_a_model_of_a_fixed_grid_segments(oblique):
    labels, image = oblique
    model = replace(reader(), voxel_mm=1.6)
    result = segment(image, model, locator())
    np.testing.assert_allclose(result.field.grid.voxel_size_mm, 1.6)
    found = labels_on(result.field, image.grid)
    inner = interior(labels.data)
    np.testing.assert_array_equal(found[inner], labels.data[inner])
    assert result.passes == 2 and result.warnings == ()


def wrong_box(monkeypatch, factor, shift_mm=0.0, found=True):
    def locate(scan, frame, locator):
        box = BrainBox(scan.grid.centre_mm + shift_mm, 2 * RADII_MM * factor, found)
        return Location(box, scan)

    monkeypatch.setattr(predict, "locate", locate)


@pytest.mark.parametrize(("factor", "shift_mm"), [(1.3, 0.0), (1.0, 5.0), (0.93, 0.0), (0.6, 0.0)])
def test_a_wrong_box_is_mended(oblique, monkeypatch, factor, shift_mm):
    labels, image = oblique
    wrong_box(monkeypatch, factor, shift_mm)
    result = segment(image, reader(), locator())
    assert 2 <= result.passes <= predict.MAX_PASSES
    assert result.warnings == ()
    np.testing.assert_allclose(result.box.centre_mm, image.grid.centre_mm, atol=2)
    np.testing.assert_allclose(result.box.extent_mm, 2 * RADII_MM, atol=4)
    found = labels_on(result.field, image.grid)
    inner = interior(labels.data)
    np.testing.assert_array_equal(found[inner], labels.data[inner])


def test_a_box_that_is_right_costs_no_second_pass(oblique, monkeypatch):
    wrong_box(monkeypatch, 1.02)
    assert segment(oblique[1], reader(), locator()).passes == 1


def test_a_box_that_does_not_settle_is_reported(oblique, monkeypatch):
    wrong_box(monkeypatch, 0.6)
    monkeypatch.setattr(predict, "MAX_PASSES", 2)
    result = segment(oblique[1], reader(), locator())
    assert result.passes == predict.MAX_PASSES
    assert result.warnings == ("the size of the brain did not settle: check the result",)


class Crowded(GreyReader):
    """The GPU it is on has no room for it; its copies are elsewhere."""

    def __init__(self):
        super().__init__(LabelTable.default())
        self.home = id(self)
        self.crowded = True
        self.asked = 0

    def forward(self, image):
        self.asked += 1
        if self.crowded and id(self) == self.home:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return super().forward(image)


def test_a_scan_that_the_gpu_has_no_room_for(oblique, caplog):
    caplog.set_level("INFO", "bids_synthseg")
    expected = segment(oblique[1], reader(), locator())
    model = replace(reader(), network=Crowded())
    model.network.levels.requires_grad_(False)
    result = segment(oblique[1], model, locator())
    assert torch.equal(result.field.data, expected.field.data)
    assert result.warnings == ()  # nothing is wrong with the result
    assert caplog.messages == ["cpu: out of memory; this scan is segmented on the CPU"]
    # The next scan is tried where the network is.
    model.network.crowded = False
    before = model.network.asked
    assert before == 1
    segment(oblique[1], model, locator())
    assert model.network.asked > before
    assert len(caplog.messages) == 1


def test_where_the_locator_sees_nothing_the_network_still_may(oblique):
    labels, image = oblique
    result = segment(image, reader(), locator(level=2.0))
    assert "whole field of view" in result.warnings[0]
    assert result.box.found  # in the end by the network itself
    inner = interior(labels.data)
    found = labels_on(result.field, image.grid)
    np.testing.assert_array_equal(found[inner], labels.data[inner])


def test_no_brain_at_all_is_reported():
    place = grid()
    empty = np.full(place.shape, 20, np.float32)
    empty[::2] += 0.1
    empty[15:18, 15:18, 15:18] = 60
    network = reader()
    with torch.no_grad():
        network.network.levels[:, 1:] += 100
    result = segment(Volume(empty, place), network, locator(level=2.0))
    assert len(result.warnings) == 2
    assert "no brain was segmented" in result.warnings[1]
    assert brain_box(result.field) is None
    assert result.passes == 1


def test_grey_values_may_have_any_scale_and_offset():
    """Also where the working grid reaches beyond the scan and 0 is as bright as tissue."""
    image = head(grid((27, 30, 18), (2.0, 2.1, 2.6), TURN))[1]
    expected = labels_on(segment(image, reader(), locator()).field, image.grid)
    for gain, offset in ((1e-3, 0), (40, 500), (1, -5), (1, -90)):
        scan = replace(image, data=(gain * image.data + offset).astype(np.float32))
        found = labels_on(segment(scan, reader(), locator()).field, image.grid)
        assert (found == expected).mean() > 0.995, (gain, offset)


def one_sided(place):
    """(X, Y, Z) logarithm of a field that rises threefold across a grid's first axis."""
    rise = np.linspace(0, np.log(3), place.shape[0])[:, None, None]
    return np.broadcast_to(rise, place.shape)


def test_the_bias_field_comes_off_for_both_passes(oblique, monkeypatch):
    """Fields are found, however coarse the mask: the network looks again where they differ."""
    labels, image = oblique
    # Intensities of 0 for air, as the field multiplies what lies above it.
    image = Volume(image.data - 20, image.grid)
    strength = one_sided(image.grid)
    biased = Volume((image.data * np.exp(strength)).astype(np.float32), image.grid)
    looks: list[np.ndarray] = []

    def field_of(working, mask):
        looks.append(mask)
        log_field = Volume(strength.astype(np.float32), image.grid).canonical()[0]
        return resample(log_field, working.grid).data - (0.5 if len(looks) == 1 else 0.0)

    monkeypatch.setattr(predict, "bias_field", field_of)
    inner = interior(labels.data) & (labels.data > 0)
    corrected = replace(reader(), correct_bias=True)
    plain = labels_on(segment(biased, reader(), locator()).field, image.grid)
    assert (plain != labels.data)[inner].mean() > 0.1
    for mirrored in (False, True):
        looks.clear()
        result = segment(biased, corrected, locator(), mirrored)
        found = labels_on(result.field, image.grid)
        assert (found != labels.data)[inner].mean() < 0.005
        # The brain takes some 60 % of the axis along which it rises threefold.
        assert 1.8 < result.bias_range < 2.2
    # Fluid is no tissue to seek a field in.
    fluid = labels.data == 24
    sought = resample(Volume(looks[-1].astype(np.float32), result.image.grid), image.grid).data
    assert sought[inner & fluid].mean() < 0.02 < 0.95 < sought[inner & (labels.data == 2)].mean()


def test_a_field_that_differs_from_the_one_taken_off_costs_another_look(oblique, monkeypatch):
    wrong_box(monkeypatch, 1.02)
    fields = []

    def field_of(working, mask):
        ramp = np.linspace(-1, 1, mask.shape[0], dtype=np.float32)[:, None, None]
        fields.append(ramp * (0.0 if len(fields) == 0 else 1.0) * np.ones(mask.shape, np.float32))
        return fields[-1]

    monkeypatch.setattr(predict, "bias_field", field_of)
    corrected = replace(reader(), correct_bias=True)
    assert segment(oblique[1], corrected, locator(), mirror=False).passes > 1
    fields[:] = [None]
    monkeypatch.setattr(predict, "bias_field", lambda working, mask: None)
    result = segment(oblique[1], corrected, locator(), mirror=False)
    assert result.passes == 1 and result.bias_range is None


STRAIGHT = Rotation.from_euler("xyz", [5, -3, 4], degrees=True).as_matrix()
FAR = Rotation.from_euler("xyz", [25, -12, 18], degrees=True).as_matrix()


def test_of_two_frames_the_surer_is_kept(monkeypatch):
    """The head lies along the scan's axes, or along the world's: only the network can tell."""
    turned = head(grid((40, 46, 36), (1.7, 1.8, 2.0), FAR))[1]
    surest = {}
    for axes, wanted in (("own", FAR), ("world", np.eye(3))):

        def sureness(look, wanted=wanted):
            found = look.frame.affine[:3, :3] / look.frame.voxel_size_mm
            return float(np.allclose(found, wanted))

        monkeypatch.setattr(predict._Look, "sureness", property(sureness))
        result = segment(turned, reader(), locator())
        surest[axes] = result.field.grid.affine[:3, :3] / result.field.grid.voxel_size_mm
        np.testing.assert_allclose(surest[axes], wanted, atol=1e-9)
        np.testing.assert_allclose(result.box.centre_mm, turned.grid.centre_mm, atol=2)
    near = head(grid((40, 46, 36), (1.7, 1.8, 2.0), STRAIGHT))[1]
    own = segment(near, reader(), locator()).field.grid  # no other frame is tried
    np.testing.assert_allclose(own.affine[:3, :3] / own.voxel_size_mm, STRAIGHT, atol=1e-9)


def test_a_head_that_is_straight_in_the_world_is_labelled_in_a_turned_scan():
    upright = grid((44, 52, 44), (1.4, 1.4, 1.4))
    labels, image = head(upright)
    expected = labels_on(segment(image, reader(), locator()).field, upright)
    turned = grid((52, 60, 52), (1.2, 1.2, 1.2), FAR)
    result = segment(resample(image, turned, fill=20.0), reader(), locator())
    np.testing.assert_allclose(result.field.grid.affine[:3, :3] / result.field.grid.voxel_size_mm,
                               np.eye(3), atol=1e-9)  # fmt: skip
    found = labels_on(result.field, upright)
    inner = interior(labels.data) & (labels.data > 0)
    assert (found == expected)[inner].mean() > 0.97


def test_air_around_the_same_voxels_moves_no_label():
    labels, image = head(grid((36, 42, 34), (1.8, 1.8, 1.8)))
    data = np.where(labels.data > 0, image.data, 0).astype(np.float32)
    expected = segment(Volume(data, image.grid), reader(), locator())
    offset = np.eye(4)
    offset[:3, 3] = -31, -12, -31
    place = Grid((36 + 62, 42 + 40, 34 + 62), image.grid.affine @ offset)
    padded = Volume(np.pad(data, [(31, 31), (12, 28), (31, 31)]), place)
    result = segment(padded, reader(), locator())
    for name in ("field", "answer"):
        found, before = (labels_on(getattr(one, name), image.grid) for one in (result, expected))
        assert (found == before).mean() > 0.9999
    lost, before = (sum(one.unseen_tissue_ml.values()) for one in (result, expected))
    assert lost == pytest.approx(before, abs=0.1)


def test_tissue_where_nothing_was_measured_is_told():
    labels, image = head(grid((36, 42, 34), (1.8, 1.8, 1.8)))
    result = segment(image, reader(), locator())
    assert result.unseen_tissue_ml == {}
    unseen = np.zeros(labels.data.shape, bool)
    unseen[:18] = True
    half = replace(result, unseen=Volume(unseen, image.grid))
    found = half.unseen_tissue_ml
    for name, ids in (("Left-Cerebral-Cortex", (3,)), ("Left-Cerebral-White-Matter", (2, 1004))):
        size_ml = (np.isin(labels.data, ids) & unseen).sum() * 1.8**3 / 1000
        assert found[name] == pytest.approx(size_ml, rel=0.05)
    assert list(found) == sorted(found, key=lambda name: -found[name])
    assert not [name for name in found if "CSF" in name]
