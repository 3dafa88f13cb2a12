"""Label maps as the generator wants them: canonical, cropped, boxed; bad ones named."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import RAS_OBLIQUE, nifti
from training_samples import PHANTOM_ROWS, phantom_folder

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.errors import BadData, InputMissing
from bids_synthseg.learning.datasets import (
    BRAIN_TABLE,
    distance_mm,
    find_label_maps,
    load_dataset,
    load_maps,
)
from bids_synthseg.synthesis import head
from bids_synthseg.synthesis.recipe import SynthesisConfig, draw, render

TABLE = LabelTable.default()
IDS = np.array(list(PHANTOM_ROWS))
MAP = "sub-01_dseg.nii.gz"


@pytest.fixture
def folder(tmp_path, phantom_labels, phantom_image):
    return phantom_folder(tmp_path / "labels", phantom_labels, {"T1w": phantom_image})


def put(folder, data: np.ndarray, affine: np.ndarray = RAS_OBLIQUE, name: str = MAP):
    nifti(data, affine).to_filename(folder / "sub-01" / "anat" / name)


def complaint_of(folder) -> str:
    with pytest.raises(BadData) as caught:
        load_dataset(folder, TABLE)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_map_is_what_the_file_says(folder, phantom_labels):
    (one,) = load_dataset(folder, TABLE)
    source = one.source
    assert (one.name, one.dataset) == ("sub-01", "labels")
    # The phantom is an ellipsoid of 18 x 22 x 16 voxels: margins of 35 % reach its borders.
    np.testing.assert_array_equal(IDS[source.classes.numpy()], phantom_labels)
    np.testing.assert_allclose(source.voxel_mm, (1.0, 1.1, 1.2), atol=1e-4)
    np.testing.assert_allclose(source.extent_mm, (18 * 1.0, 22 * 1.1, 16 * 1.2), atol=1e-3)
    assert source.centre == (9.5, 11.5, 8.5)
    assert source.has_csf and not source.surrounding.any()
    assert one.sets.shape == (len(IDS) + head.N_CLASSES, len(TABLE))
    assert [set(TABLE.ids[row]) for row in one.sets[: len(IDS)]] == [{i} for i in IDS]
    assert set(TABLE.ids[one.sets[len(IDS) + head.CSF]]) == {24}
    assert all(set(TABLE.ids[row]) == {0} for row in one.sets[len(IDS) + head.SKULL :])


def test_scan_is_scaled_and_lies_on_the_map(folder, phantom_image):
    (one,) = load_dataset(folder, TABLE)
    (scan,) = one.source.images.float().numpy()
    top = np.percentile(phantom_image[phantom_image > 0], 99.8)
    np.testing.assert_allclose(scan, np.clip(phantom_image / top, 0, 1), atol=1e-3)


def test_storage_order_does_not_matter(folder, phantom_labels, phantom_image):
    (expected,) = load_dataset(folder, TABLE)
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = phantom_labels.shape[0] - 1
    swap = np.eye(4)[[2, 1, 0, 3]]
    put(folder, phantom_labels[::-1].astype(np.int16), RAS_OBLIQUE @ flip)
    put(folder, phantom_image.transpose(2, 1, 0), RAS_OBLIQUE @ swap, "sub-01_T1w.nii.gz")
    (found,) = load_dataset(folder, TABLE)
    assert torch.equal(found.source.classes, expected.source.classes)
    assert torch.equal(found.source.images, expected.source.images)
    np.testing.assert_allclose(found.source.voxel_mm, expected.source.voxel_mm)


def test_crop_and_box_ignore_stray_voxels(tmp_path, phantom_labels):
    wide = np.pad(phantom_labels, 40)
    (clean,) = load_dataset(phantom_folder(tmp_path / "a", wide), TABLE)
    wide[1, 1, 1] = 2
    (stray,) = load_dataset(phantom_folder(tmp_path / "b", wide), TABLE)
    assert stray.source.extent_mm == clean.source.extent_mm
    assert torch.equal(stray.source.classes, clean.source.classes)
    # 18 voxels of brain and 35 % (6.3) on each side, rounded up
    assert clean.source.classes.shape[0] == 18 + 7 + 7
    brain = torch.nonzero(clean.source.classes)
    middle = (brain.min(0).values + brain.max(0).values) / 2
    assert clean.source.centre == tuple(middle.tolist())


def test_outside_grows_from_the_brain(folder):
    (one,) = load_dataset(folder, TABLE)
    outside, brain = one.source.outside, one.source.classes > 0
    assert not outside[brain].any() and (outside[~brain] > 0).all()
    size_mm = np.prod(one.source.extent_mm) ** (1 / 3)
    corner_mm = outside[0, 0, 0] * size_mm * head.OUTSIDE_UNIT
    places = torch.nonzero(brain).numpy() * one.source.voxel_mm
    assert float(corner_mm) == pytest.approx(np.linalg.norm(places, axis=1).min(), abs=0.15)


def test_distance_by_hand():
    mask = np.zeros((3, 4, 1), dtype=bool)
    mask[0, 0] = True
    found = distance_mm(mask, np.array([2.0, 1.0, 1.0]))
    np.testing.assert_allclose(found[2, 3, 0], 5)
    np.testing.assert_allclose(found[:, 0, 0], [0, 2, 4])


def test_labels_that_are_no_brain_are_surroundings(folder, phantom_labels):
    table = (folder / "dseg.tsv").read_text() + "99\tSkull\t0\n"
    (folder / "dseg.tsv").write_text(table)
    data = phantom_labels.astype(np.int16)
    data[:, :, -1] = 99
    (before,) = load_dataset(folder, TABLE)
    put(folder, data)
    (one,) = load_dataset(folder, TABLE)
    assert one.source.surrounding.tolist() == [False] * len(IDS) + [True]
    assert one.source.extent_mm == before.source.extent_mm


def test_every_sample_has_a_target(folder):
    (one,) = load_dataset(folder, TABLE)
    config = replace(SynthesisConfig(), real=0.5)
    for seed in range(6):
        drawn = draw(one.source, config, (16, 24, 16), 0.7, np.random.default_rng(seed))
        _, classes = render(one.source, drawn)
        assert one.sets[classes.unique()].any(axis=1).all()


def test_brain_target_has_two_labels(folder):
    maps, table = load_maps([folder], "brain")
    assert table is BRAIN_TABLE
    rows = {i: tuple(row) for i, row in zip(IDS.tolist(), maps[0].sets, strict=False)}
    assert rows[0] == (True, False) and rows[2] == rows[24] == (False, True)
    maps, table = load_maps([folder, folder], "labels")
    assert len(maps) == 2 and table is LabelTable.default()


def test_sessions_are_found_and_other_files_are_not(folder):
    session = folder / "sub-02" / "ses-1mo" / "anat"
    session.mkdir(parents=True)
    for name in ("sub-02_ses-1mo_dseg.nii", "sub-02_ses-1mo_dseg.nii.gz.tmp", "._sub-02_dseg.nii"):
        (session / name).touch()
    names = [path.name for path in find_label_maps(folder)]
    assert names == [MAP, "sub-02_ses-1mo_dseg.nii"]


def test_an_empty_data_set(tmp_path):
    with pytest.raises(InputMissing, match=r"nothing: no sub-.* to train on; give"):
        load_dataset(tmp_path / "nothing", TABLE)


def test_float_labels(folder, phantom_labels):
    put(folder, phantom_labels + np.float32(0.25))
    assert MAP in complaint_of(folder) and "not whole numbers" in complaint_of(folder)


@pytest.mark.parametrize("unknown", [77, -3, 30_000])
def test_ids_that_are_not_in_the_table(folder, phantom_labels, unknown):
    data = phantom_labels.astype(np.int16)
    data[3, 3, 3] = unknown
    put(folder, data)
    assert f"{MAP}: ids {unknown} are not in the dseg.tsv" in complaint_of(folder)


@pytest.mark.parametrize("content", [0, 99])
def test_no_foreground(folder, phantom_labels, content):
    (folder / "dseg.tsv").write_text((folder / "dseg.tsv").read_text() + "99\tSkull\t0\n")
    put(folder, np.where(phantom_labels == 2, content, 0).astype(np.int16))
    assert f"{MAP}: no voxel carries a label of the brain" in complaint_of(folder)


@pytest.mark.parametrize("kind", ["shape", "shift"])
def test_a_scan_on_another_grid(folder, phantom_image, kind):
    affine = RAS_OBLIQUE.copy()
    if kind == "shift":
        affine[0, 3] += 2
    put(
        folder, phantom_image[1:] if kind == "shape" else phantom_image, affine, "sub-01_T1w.nii.gz"
    )
    assert "sub-01_T1w.nii.gz: lies on another grid" in complaint_of(folder)


def test_a_scan_that_is_black_in_the_brain(folder, phantom_image):
    put(folder, -1 - phantom_image, name="sub-01_T1w.nii.gz")
    assert "sub-01_T1w.nii.gz: black where" in complaint_of(folder)


def test_a_side_without_its_twin(folder):
    table = (folder / "dseg.tsv").read_text().replace("49\tRight-Thalamus\t49\n", "")
    (folder / "dseg.tsv").write_text(table)
    assert "dseg.tsv: label 10 (Left-Thalamus) lies on one side" in complaint_of(folder)


def test_too_many_labels(folder):
    rows = "".join(f"{i}\tMore-{i}\t0\n" for i in range(5000, 5300))
    (folder / "dseg.tsv").write_text((folder / "dseg.tsv").read_text() + rows)
    assert "at most 256" in complaint_of(folder)
