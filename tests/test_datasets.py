"""Label maps as the generator wants them: found, canonical, cropped, boxed; bad ones named."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import RAS_OBLIQUE, nifti
from training_samples import PHANTOM_ROWS, phantom_folder

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.errors import BadData, InputMissing, NothingSelected, UsageProblem
from bids_synthseg.learning.datasets import find_label_maps, load_maps
from bids_synthseg.learning.features import FEATURES
from bids_synthseg.learning.map_files import distance_mm
from bids_synthseg.learning.pack import write_pack
from bids_synthseg.synthesis import head
from bids_synthseg.synthesis.parts import MOST
from bids_synthseg.synthesis.recipe import SynthesisConfig, draw, render
from bids_synthseg.synthesis.shape import ROLE_OF

TABLE = LabelTable.default()
IDS = np.array(list(PHANTOM_ROWS))
MAP = "sub-01_dseg.nii.gz"


@pytest.fixture
def folder(tmp_path, phantom_labels, phantom_image):
    return phantom_folder(tmp_path / "labels", phantom_labels, {"T1w": phantom_image})


def maps_of(folder, **choice):
    maps, table = load_maps([folder], **choice)
    assert table == TABLE
    return maps


def put(folder, data: np.ndarray, affine: np.ndarray = RAS_OBLIQUE, name: str = MAP):
    nifti(data, affine).to_filename(folder / "sub-01" / "anat" / name)


def complaint_of(folder) -> str:
    with pytest.raises(BadData) as caught:
        maps_of(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_map_is_what_the_file_says(folder, phantom_labels):
    (one,) = maps_of(folder)
    source = one.source
    assert (one.name, one.subject, one.dataset) == ("sub-01", "sub-01", "labels")
    assert np.isnan(one.age_weeks) and (one.split, one.licence) == ("", "")
    assert source.labels.tolist() == IDS.tolist()
    roles = ("other", "white", "cortex", "other", "csf", "white", "cortex", "other")
    assert source.roles.tolist() == [ROLE_OF[role] for role in roles]
    volume_ml = np.isin(phantom_labels, (2, 3, 10, 41, 42, 49)).sum() * 1.0 * 1.1 * 1.2 / 1000
    assert one.features[FEATURES.index("brain_volume_ml")] == pytest.approx(volume_ml, rel=1e-3)
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
    (one,) = maps_of(folder)
    (scan,) = one.source.images.float().numpy()
    top = np.percentile(phantom_image[phantom_image > 0], 99.8)
    np.testing.assert_allclose(scan, np.clip(phantom_image / top, 0, 1), atol=1e-3)


def test_storage_order_does_not_matter(folder, phantom_labels, phantom_image):
    (expected,) = maps_of(folder)
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = phantom_labels.shape[0] - 1
    swap = np.eye(4)[[2, 1, 0, 3]]
    put(folder, phantom_labels[::-1].astype(np.int16), RAS_OBLIQUE @ flip)
    put(folder, phantom_image.transpose(2, 1, 0), RAS_OBLIQUE @ swap, "sub-01_T1w.nii.gz")
    (found,) = maps_of(folder)
    assert torch.equal(found.source.classes, expected.source.classes)
    assert torch.equal(found.source.images, expected.source.images)
    np.testing.assert_allclose(found.source.voxel_mm, expected.source.voxel_mm)


def test_crop_and_box_ignore_stray_voxels(tmp_path, phantom_labels):
    wide = np.pad(phantom_labels, 40)
    (clean,) = maps_of(phantom_folder(tmp_path / "a", wide))
    wide[1, 1, 1] = 2
    (stray,) = maps_of(phantom_folder(tmp_path / "b", wide))
    assert stray.source.extent_mm == clean.source.extent_mm
    assert torch.equal(stray.source.classes, clean.source.classes)
    # 18 voxels of brain and 35 % (6.3) on each side, rounded up
    assert clean.source.classes.shape[0] == 18 + 7 + 7
    brain = torch.nonzero(clean.source.classes)
    middle = (brain.min(0).values + brain.max(0).values) / 2
    assert clean.source.centre == tuple(middle.tolist())


def test_outside_grows_from_the_brain(folder):
    (one,) = maps_of(folder)
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
    (before,) = maps_of(folder)
    put(folder, data)
    (one,) = maps_of(folder)
    assert one.source.surrounding.tolist() == [False] * len(IDS) + [True]
    assert one.source.extent_mm == before.source.extent_mm


def test_every_sample_has_a_target(folder):
    (one,) = maps_of(folder)
    config = replace(SynthesisConfig(), real=0.5)
    for seed in range(6):
        drawn = draw(one.source, config, (16, 24, 16), 1.5, np.random.default_rng(seed))
        _, classes = render(one.source, drawn)
        assert one.sets[classes.unique()].any(axis=1).all()


def test_sessions_are_found_and_other_files_are_not(folder):
    session = folder / "sub-02" / "ses-1mo" / "anat"
    session.mkdir(parents=True)
    for name in ("sub-02_ses-1mo_dseg.nii", "sub-02_ses-1mo_dseg.nii.gz.tmp", "._sub-02_dseg.nii"):
        (session / name).touch()
    names = [path.name for path in find_label_maps(folder)]
    assert names == [MAP, "sub-02_ses-1mo_dseg.nii"]


def test_an_empty_data_set(tmp_path):
    with pytest.raises(InputMissing, match=r"nothing: no sub-.* to train on; give"):
        load_maps([tmp_path / "nothing"])


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


def raw_folder(tmp_path, labels, image):
    """A folder of scans whose derivatives hold the label maps."""
    phantom_folder(tmp_path / "raw" / "derivatives" / "manual", labels)
    anat = tmp_path / "raw" / "sub-01" / "anat"
    anat.mkdir(parents=True)
    nifti(image, RAS_OBLIQUE).to_filename(anat / "sub-01_T2w.nii")
    return tmp_path / "raw"


def test_maps_and_scans_of_a_raw_folder(tmp_path, phantom_labels, phantom_image):
    raw = raw_folder(tmp_path, phantom_labels, phantom_image)
    (raw / "participants.tsv").write_text("participant_id\tage_weeks_pma\nsub-01\t40\n")
    for folder, name in ((raw, "raw"), (raw / "derivatives" / "manual", "manual")):
        (one,) = maps_of(folder)
        assert (one.dataset, one.source.contrasts, one.age_weeks) == (name, ("T2w",), 40)
    # A scan beside the map comes first.
    put(raw / "derivatives" / "manual", 2 * phantom_image[:, ::-1], name="sub-01_T2w.nii.gz")
    (beside,) = maps_of(raw)
    assert not torch.equal(beside.source.images, one.source.images)


def test_a_derived_name_finds_its_raw_scan(tmp_path, phantom_labels, phantom_image):
    raw = raw_folder(tmp_path, phantom_labels, phantom_image)
    path = raw / "derivatives" / "manual" / "sub-01" / "anat" / MAP
    path.rename(path.with_name("sub-01_space-T2w_desc-manual_dseg.nii.gz"))
    (one,) = maps_of(raw)
    assert one.name == "sub-01_space-T2w_desc-manual" and one.source.contrasts == ("T2w",)


def test_a_raw_scan_on_another_grid_is_not_used(tmp_path, phantom_labels, phantom_image, caplog):
    raw = raw_folder(tmp_path, phantom_labels, phantom_image[1:])
    (one,) = maps_of(raw)
    assert one.source.contrasts == () and "another grid" in caplog.text


def test_several_derivatives_are_not_guessed_at(tmp_path, phantom_labels, phantom_image):
    raw = raw_folder(tmp_path, phantom_labels, phantom_image)
    phantom_folder(raw / "derivatives" / "auto", phantom_labels)
    with pytest.raises(UsageProblem, match="raw: label maps in derivatives/ of auto, manual; give"):
        load_maps([raw])


PARTICIPANTS = """participant_id\tage_weeks_pma\tsplit
sub-01\t38.5\tTraining
02\tadult\tvalidation
sub-03\tn/a\tn/a
"""


@pytest.fixture
def family(folder):
    """`folder` with three subjects; sub-03 has two sessions."""
    first = folder / "sub-01" / "anat" / MAP
    for name in ("sub-02", "sub-03/ses-a", "sub-03/ses-b"):
        (folder / name / "anat").mkdir(parents=True)
        copy = folder / name / "anat" / f"{name.replace('/', '_')}_dseg.nii.gz"
        copy.write_bytes(first.read_bytes())
    (folder / "participants.tsv").write_text(PARTICIPANTS)
    return folder


def test_participants_are_known_by_their_table(family):
    (family / "dataset_description.json").write_text('{"Name": "x", "License": "CC0"}')
    maps = maps_of(family)
    assert [one.name for one in maps] == ["sub-01", "sub-02", "sub-03_ses-a", "sub-03_ses-b"]
    assert [one.subject for one in maps] == ["sub-01", "sub-02", "sub-03", "sub-03"]
    np.testing.assert_array_equal([m.age_weeks for m in maps], [38.5, np.nan, np.nan, np.nan])
    assert [one.split for one in maps] == ["training", "validation", "", ""]
    assert {one.licence for one in maps} == {"CC0"}


def test_a_broken_table_of_participants_is_named(family):
    (family / "participants.tsv").write_text("participant_id\tsplit\nsub-01\n")
    with pytest.raises(BadData, match=r"participants\.tsv: line 2 has 1 cell"):
        load_maps([family])


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ({"participants": ["02"]}, ["sub-02"]),
        ({"participants": ["sub-02", "01"]}, ["sub-01", "sub-02"]),
        ({"sessions": ["b"]}, ["sub-03_ses-b"]),
        ({"participants": ["03"], "sessions": ["ses-a"]}, ["sub-03_ses-a"]),
    ],
)
def test_choosing(family, tmp_path, choice, names):
    assert [one.name for one in maps_of(family, **choice)] == names
    write_pack(tmp_path / "all.npz", *load_maps([family]))
    assert [one.name for one in maps_of(tmp_path / "all.npz", **choice)] == names


@pytest.mark.parametrize("choice", [{"participants": ["01", "09"]}, {"sessions": ["z"]}])
def test_choosing_what_is_not_there(family, choice):
    with pytest.raises(NothingSelected, match=r"no label map of s(ub-09|es-z);"):
        load_maps([family], **choice)


def test_what_is_not_chosen_is_not_read(family):
    put(family, np.full((4, 4, 4), 0.5, dtype=np.float32))
    assert len(maps_of(family, participants=["02"])) == 1


def test_all_problems_are_told_together(family, tmp_path, phantom_labels):
    put(family, phantom_labels + np.float32(0.25))
    (family / "sub-02" / "anat" / "sub-02_dseg.nii.gz").write_bytes(b"")
    with pytest.raises(BadData) as caught:
        load_maps([family, tmp_path / "nothing"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "not whole numbers" in lines[0] and "empty" in lines[1] and "nothing" in lines[2]


def test_many_problems_are_counted(folder, phantom_labels):
    for number in range(14):
        anat = folder / f"sub-x{number:02}" / "anat"
        anat.mkdir(parents=True)
        (anat / f"sub-x{number:02}_dseg.nii.gz").touch()
    with pytest.raises(BadData) as caught:
        load_maps([folder])
    lines = str(caught.value).splitlines()
    assert len(lines) == 11 and "sub-x09" in lines[9] and lines[10] == "and 4 more"


def test_mixed_voxel_sizes_are_told_of(family, phantom_labels, caplog):
    maps_of(family)
    assert "several sizes" not in caplog.text
    nifti(phantom_labels.astype(np.int16), np.diag([0.5, 0.5, 0.5, 1.0])).to_filename(
        family / "sub-02" / "anat" / "sub-02_dseg.nii.gz"
    )
    maps_of(family)
    assert "labels: voxels of several sizes, 0.5 to 1.2 mm" in caplog.text


def test_two_data_sets_of_one_name(folder, tmp_path, phantom_labels):
    other = phantom_folder(tmp_path / "other" / "labels", phantom_labels)
    with pytest.raises(UsageProblem, match="both hold a data set named 'labels'; rename"):
        load_maps([folder, other])
    assert len(load_maps([folder, phantom_folder(tmp_path / "third", phantom_labels)])[0]) == 2


def test_clusters_are_made_when_asked_for(folder):
    (one,) = maps_of(folder)
    assert one.source.thresholds.shape == (0, 5, MOST, MOST - 1)
    (one,) = maps_of(folder, with_clusters=True)
    assert one.source.thresholds.shape == (1, 5, MOST, MOST - 1)
    assert np.isfinite(one.source.thresholds[0, 1:4, 1, 0]).all()


def test_a_pack_takes_the_place_of_a_folder(folder, tmp_path):
    write_pack(tmp_path / "maps.npz", *load_maps([folder]))
    (one,) = maps_of(tmp_path / "maps.npz", with_clusters=True)
    assert one.name == "sub-01" and len(one.source.thresholds) == 1


def test_a_pack_of_other_labels(folder, tmp_path):
    maps, _ = load_maps([folder])
    other = LabelTable(TABLE.rows[:1])
    write_pack(tmp_path / "maps.npz", [replace(maps[0], sets=maps[0].sets[:, :1])], other)
    with pytest.raises(BadData, match="packed for other labels"):
        load_maps([tmp_path / "maps.npz"])


def test_rows_of_a_subject_that_contradict_each_other_state_nothing(folder, caplog):
    rows = ("participant_id\tage_weeks_pma\tsplit", "sub-01\t40\tTraining", "01\t50\tTraining")
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n")
    [found] = maps_of(folder)
    assert np.isnan(found.age_weeks) and found.split == "training"
    assert "age_weeks_pma of sub-01 is 40 and 50 in several rows" in caplog.text
