"""One session end to end with hand-made networks, and many through the command itself."""

import gzip
import json
import logging
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import nifti, write_tree
from handmade import grid, head, interior, locator, reader, segmenter
from scipy.spatial.transform import Rotation

from bids_synthseg import __version__, cli, console, pipeline, spaces, work
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.volume import Grid
from bids_synthseg.bids import report
from bids_synthseg.bids.derivatives import SessionPaths
from bids_synthseg.bids.growth import BrainGrowth
from bids_synthseg.bids.nibabies import view_folder
from bids_synthseg.bids.quality import MEASURES, Quality
from bids_synthseg.bids.query import find_scan_groups
from bids_synthseg.bids.status import read_status
from bids_synthseg.errors import BadData, InputMissing, StorageProblem, UsageProblem
from bids_synthseg.models.checkpoint import save_model
from bids_synthseg.models.heads import Head
from bids_synthseg.models.unet import NetworkConfig, UNet
from bids_synthseg.pipeline import Options, Segmenter, choose_device, devices, run_session
from bids_synthseg.segmentation import predict
from bids_synthseg.storage import file_sha256

pytestmark = pytest.mark.usefixtures("package_log")

TURN = Rotation.from_euler("xyz", [5, -7, 9], degrees=True).as_matrix()
T1W_PLACE = grid((38, 42, 36), (1.7, 1.8, 1.9), TURN)
T2W_PLACE = grid((34, 40, 28), (2.0, 1.9, 2.6), TURN)
OUTPUTS = [
    "desc-aseg_dseg.json", "desc-aseg_dseg.nii.gz", "desc-aseg_volumes.json",
    "desc-aseg_volumes.tsv", "desc-brain_mask.json", "desc-brain_mask.nii.gz",
    "desc-confidence_probseg.json", "desc-confidence_probseg.nii.gz", "desc-native_dseg.json",
    "desc-native_dseg.nii.gz", "desc-qc_volumes.json", "desc-qc_volumes.tsv",
]  # fmt: skip
DISAGREEMENT = ["desc-disagreement_mask.json", "desc-disagreement_mask.nii.gz"]
XFMS = [f"from-{a}_to-{b}_mode-image_xfm.txt" for a, b in (("T1w", "T2w"), ("T2w", "T1w"))]


def scan(place, gain=1.0):
    return nifti(gain * head(place)[1].data, place.affine)


def at(transform, place):
    return Grid(place.shape, transform @ place.affine)


def shift(x, y=0.0, z=0.0):
    transform = np.eye(4)
    transform[:3, 3] = x, y, z
    return transform


@pytest.fixture(autouse=True)
def pages(monkeypatch):
    """Reports are no part of these tests: pages of a line, and the calls that wrote them."""
    calls = []

    def write(bids_dir, output_dir, key, **options):
        calls.append((key, options))
        path = SessionPaths(output_dir, *key).report
        path.write_text("a page", encoding="utf-8")
        return path

    monkeypatch.setattr(report, "write_report", write)
    return calls


@pytest.fixture
def session(bids_tree, tmp_path):
    """session({"T1w": image, "acq-x_T1w": ...}, **options) -> (result, output folder)."""

    def run(images, networks=None, fresh=True, **options):
        options = Options(**{"redo_changed": fresh, **options})
        if fresh:
            bids_tree({"sub-01": {"anat": {f"sub-01_{n}.nii.gz": i for n, i in images.items()}}})
        raw = tmp_path / "raw"
        (group,) = find_scan_groups(raw, all_scans=options.all_scans)
        out = tmp_path / "out"
        return run_session(group, raw, out, networks or segmenter(), options), out

    return run


def anat(out, subject="sub-01"):
    folder = out / subject / "anat"
    return sorted(p.name.removeprefix(f"{subject}_") for p in folder.iterdir())


def load(out, name):
    return nib.load(out / "sub-01" / "anat" / f"sub-01_{name}.nii.gz")


def in_space(*contrasts, merged=None):
    names = sorted([*OUTPUTS, *(DISAGREEMENT if len(contrasts) == 2 else [])])
    names = OUTPUTS if merged is False else names
    return [f"space-{contrast}_{name}" for contrast in contrasts for name in names]


def record(out, label="sub-01"):
    return json.loads((out / "logs" / f"{label}.json").read_text())


def right_inside(found, labels):
    """All labels right where there is no partial volume."""
    inner = interior(labels)
    expected = labels.copy()
    expected[labels == 1004], expected[labels == 2004] = 2, 41
    return np.array_equal(found[inner], expected[inner])


def test_two_contrasts_on_two_oblique_grids(session, tmp_path):
    images = {"T1w": scan(T1W_PLACE), "T2w": scan(T2W_PLACE, 3.0)}
    result, out = session(images)
    assert result.status == "done"
    assert result.message == ""
    assert anat(out) == sorted([*in_space("T1w", "T2w"), *XFMS])
    raw = "bids:raw:sub-01/anat/sub-01_{}.nii.gz"
    for contrast, place in (("T1w", T1W_PLACE), ("T2w", T2W_PLACE)):
        source = nib.load(tmp_path / f"raw/sub-01/anat/sub-01_{contrast}.nii.gz")
        for name in ("desc-aseg_dseg", "desc-native_dseg", "desc-brain_mask"):
            image = load(out, f"space-{contrast}_{name}")
            assert image.shape == source.shape
            assert image.affine.tobytes() == source.affine.tobytes()
            assert image.header.get_qform().tobytes() == source.header.get_qform().tobytes()
            path = out / f"sub-01/anat/sub-01_space-{contrast}_{name}.json"
            sidecar = json.loads(path.read_text())
            assert sidecar["Sources"] == [raw.format("T1w"), raw.format("T2w")]
            assert sidecar["SpatialReference"] == raw.format(contrast)
            assert sidecar["WeightsSHA256"] == "0" * 64
        labels = head(place)[0].data
        aseg = np.asarray(load(out, f"space-{contrast}_desc-aseg_dseg").dataobj)
        native = np.asarray(load(out, f"space-{contrast}_desc-native_dseg").dataobj)
        mask = np.asarray(load(out, f"space-{contrast}_desc-brain_mask").dataobj)
        assert right_inside(aseg, labels)
        assert set(np.unique(aseg)) == {0, 2, 3, 10, 24, 41, 42, 49}
        assert set(np.unique(native)) == {0, 2, 3, 10, 24, 41, 42, 49, 1004, 2004}
        table = {row.index: row.aseg for row in LabelTable.default().rows}
        np.testing.assert_array_equal(np.vectorize(table.get)(native), aseg)
        np.testing.assert_array_equal(mask, aseg > 0)
        tsv = (out / f"sub-01/anat/sub-01_space-{contrast}_desc-aseg_volumes.tsv").read_text()
        volume = {line.split("\t")[0]: line.split("\t")[2] for line in tsv.splitlines()}
        voxel_mm3 = abs(np.linalg.det(source.affine[:3, :3]))
        assert float(volume["42"]) == pytest.approx((aseg == 42).sum() * voxel_mm3, abs=1e-3)
    for name in XFMS:
        transform = sitk.ReadTransform(str(out / "sub-01/anat" / f"sub-01_{name}"))
        assert transform.TransformPoint((1.0, 2.0, 3.0)) == (1.0, 2.0, 3.0)
    assert record(out)["Warnings"] == []


@pytest.mark.parametrize("contrast", ["T1w", "T2w"])
def test_one_contrast_alone(session, contrast):
    result, out = session({contrast: scan(T1W_PLACE)}, mirror=False)
    assert result.status == "done"
    assert anat(out) == in_space(contrast)
    aseg = np.asarray(load(out, f"space-{contrast}_desc-aseg_dseg").dataobj)
    assert right_inside(aseg, head(T1W_PLACE)[0].data)


def test_contrasts_on_one_grid_are_labelled_once(session, monkeypatch):
    calls = []
    label_volume = spaces.label_volume
    monkeypatch.setattr(
        spaces, "label_volume", lambda *args: calls.append(args) or label_volume(*args)
    )
    _, out = session({"T1w": scan(T1W_PLACE), "T2w": scan(T1W_PLACE, 2.0)})
    assert len(calls) == 1
    first, second = (load(out, f"space-{c}_desc-aseg_dseg").get_fdata() for c in ("T1w", "T2w"))
    np.testing.assert_array_equal(first, second)
    assert anat(out) == sorted([*in_space("T1w", "T2w"), *XFMS])


def test_a_subject_that_moved_between_the_scans(session):
    """The transform brings the T2w onto the T1w; either space holds the labels of its own scan."""
    motion = shift(5, -4, 6)
    _, out = session({"T1w": scan(T1W_PLACE), "T2w": scan(at(motion, T2W_PLACE), 2.0)})
    for contrast, place in (("T1w", T1W_PLACE), ("T2w", T2W_PLACE)):
        aseg = np.asarray(load(out, f"space-{contrast}_desc-aseg_dseg").dataobj)
        labels = head(place)[0].data
        assert ((aseg > 0) == (labels > 0)).mean() > 0.97
        inner = interior(labels) & (labels > 0)
        assert (aseg == labels)[inner & (labels < 1000)].mean() > 0.98
    folder = out / "sub-01/anat"
    to_t1w, to_t2w = (
        sitk.ReadTransform(str(folder / f"sub-01_from-{a}_to-{b}_mode-image_xfm.txt"))
        for a, b in (("T2w", "T1w"), ("T1w", "T2w"))
    )
    # A point of the T1w (LPS: x and y with the other sign) is mapped to where the T2w shows it.
    point = (3.0, 12.0, 5.0)
    np.testing.assert_allclose(to_t1w.TransformPoint(point), (-2.0, 16.0, 11.0), atol=0.8)
    np.testing.assert_allclose(
        to_t2w.TransformPoint(to_t1w.TransformPoint(point)), point, atol=1e-6
    )


def test_brains_of_different_size_are_not_merged(session, caplog):
    small = grid((34, 38, 34), (1.3, 1.3, 1.3))
    images = {"T1w": scan(T1W_PLACE), "T2w": nifti(head(small, scale=0.65)[1].data, small.affine)}
    with caplog.at_level(logging.WARNING):
        result, out = session(images)
    assert "sub-01_T2w.nii.gz: not merged" in result.message
    assert "not merged" in caplog.text
    assert record(out)["Warnings"] == [result.message]
    # No transforms, and nothing to disagree on.
    assert anat(out) == sorted(in_space("T1w", "T2w", merged=False))
    for contrast, place, scale in (("T1w", T1W_PLACE, 1.0), ("T2w", small, 0.65)):
        path = out / f"sub-01/anat/sub-01_space-{contrast}_desc-aseg_dseg.json"
        assert len(json.loads(path.read_text())["Sources"]) == 1
        aseg = np.asarray(load(out, f"space-{contrast}_desc-aseg_dseg").dataobj)
        assert right_inside(aseg, head(place, scale=scale)[0].data)


def test_one_scan_under_two_names_counts_once(session):
    """Also where its voxels are stored in another order."""
    image = scan(T1W_PLACE)
    again = image.as_reoriented([[0, -1], [2, 1], [1, 1]])
    result, out = session({"T1w": image, "T2w": again})
    assert "sub-01_T2w.nii.gz: has the same voxels as sub-01_T1w.nii.gz" in result.message
    assert not [name for name in anat(out) if "disagreement" in name]
    found = Quality.of(record(out)["Quality"])
    assert found.measures["agreement_dice"] is found.measures["alignment_dice"] is None
    assert found.reasons.count(result.message) == 1
    sidecar = out / "sub-01/anat/sub-01_space-T2w_desc-aseg_dseg.json"
    assert [name[-15:] for name in json.loads(sidecar.read_text())["Sources"]] == [
        "sub-01_T1w.nii.gz"[-15:]
    ]


def test_half_of_a_brain_has_half_of_the_labels(session):
    labels, image = head(T1W_PLACE)
    there = (labels.data > 0) & (np.arange(labels.data.shape[0]) > 18)[:, None, None]
    data = np.where(there, image.data, 0).astype(np.float32)
    result, out = session({"T1w": nifti(data, T1W_PLACE.affine)})
    assert result.message == ""  # the hand-made network reads nothing into what is empty
    for name in ("desc-aseg_dseg", "desc-native_dseg", "desc-brain_mask"):
        assert not np.asarray(load(out, f"space-T1w_{name}").dataobj)[~there].any()
    assert Quality.of(record(out)["Quality"]).measures["empty_tissue_ml"] < 1


def test_what_is_missing_is_named(session, monkeypatch):
    expected = {"Right-Cerebral-Cortex": 7.4, "Right-Thalamus": 1.2, "Right-Hippocampus": 0.3}
    monkeypatch.setattr(predict.Segmented, "unseen_tissue_ml", expected)
    result, out = session({"T1w": scan(T1W_PLACE)})
    assert result.message.endswith("Right-Cerebral-Cortex (7 ml), Right-Thalamus (1 ml)")
    found = Quality.of(record(out)["Quality"])
    assert found.measures["empty_tissue_ml"] == pytest.approx(8.9)
    assert found.reasons[0] == result.message


def test_what_is_too_large_for_a_brain_is_a_failure(session, monkeypatch):
    monkeypatch.setattr(pipeline, "LARGEST_BRAIN_ML", 40.0)
    with pytest.raises(BadData, match=r"no brain found \(what was taken for one has 6\d ml\)"):
        session({"T1w": scan(T1W_PLACE)})
    monkeypatch.undo()
    monkeypatch.setattr(predict, "brain_box", lambda field: None)
    with pytest.raises(BadData, match="no brain found"):
        session({"T1w": scan(T1W_PLACE)}, fresh=False)


def test_the_surer_contrast_decides(session):
    """A stripe of the T1w has a grey between cortex and white matter; the T2w has none."""
    labels, image = head(T1W_PLACE)
    stripe = np.isin(labels.data, (2, 3, 41, 42))
    stripe[:, :, :16] = stripe[:, :, 19:] = False
    spoiled = image.data.copy()
    spoiled[stripe] = 82.0
    inner = interior(labels.data) & stripe
    assert inner.sum() > 100
    agreement = {}
    for name, more in (("alone", {}), ("merged", {"T2w": scan(T1W_PLACE, 2.0)})):
        _, out = session({"T1w": nifti(spoiled, T1W_PLACE.affine)} | more)
        aseg = np.asarray(load(out, "space-T1w_desc-aseg_dseg").dataobj)
        agreement[name] = (aseg == labels.data)[inner].mean()
    assert agreement["alone"] < 0.85
    assert agreement["merged"] > 0.97


def test_all_scans_of_a_contrast_are_merged(session):
    runs = {f"run-{n}_T1w": scan(T1W_PLACE, n) for n in (1, 2)}
    _, out = session(runs | {"T2w": scan(T2W_PLACE)}, all_scans=True, save_per_image=True)
    sidecar = out / "sub-01/anat/sub-01_space-T2w_desc-aseg_dseg.json"
    names = [source.split("/")[-1] for source in json.loads(sidecar.read_text())["Sources"]]
    assert names == ["sub-01_run-1_T1w.nii.gz", "sub-01_run-2_T1w.nii.gz", "sub-01_T2w.nii.gz"]
    alone = [name for name in anat(out) if "space-orig" in name and name.endswith(".nii.gz")]
    assert alone == [
        "run-1_space-orig_desc-asegT1w_dseg.nii.gz",
        "run-1_space-orig_desc-nativeT1w_dseg.nii.gz",
        "run-2_space-orig_desc-asegT1w_dseg.nii.gz",
        "run-2_space-orig_desc-nativeT1w_dseg.nii.gz",
        "space-orig_desc-asegT2w_dseg.nii.gz",
        "space-orig_desc-nativeT2w_dseg.nii.gz",
    ]
    single = load(out, "space-orig_desc-asegT2w_dseg")
    assert single.affine.tobytes() == load(out, "space-T2w_desc-aseg_dseg").affine.tobytes()
    assert right_inside(np.asarray(single.dataobj), head(T2W_PLACE)[0].data)


def test_of_several_runs_one_is_used_and_nibabies_gets_the_image(session, tmp_path):
    """NiBabies would else average the runs and put our labels on the mean, unregistered."""
    labels, image = head(T1W_PLACE)
    bias = np.linspace(0.8, 1.2, T1W_PLACE.shape[0], dtype=np.float32).reshape(-1, 1, 1)
    biased = nifti(bias * image.data, T1W_PLACE.affine)
    images = {
        "run-1_T1w": biased,
        "run-2_T1w": scan(at(shift(9), T1W_PLACE)),
        "T2w": scan(T2W_PLACE),
    }
    _, out = session(images)
    assert anat(out) == sorted(
        [*in_space("T1w", "T2w"), *XFMS, "desc-preproc_T1w.json", "desc-preproc_T1w.nii.gz"]
    )
    found = record(out)
    raw = "bids:raw:sub-01/anat/sub-01_{}.nii.gz"
    assert found["Scans"] == [raw.format("run-1_T1w"), raw.format("T2w")]
    assert list(found["LeftOut"]) == [raw.format("run-2_T1w")]
    assert "sub-01_run-1_T1w.nii.gz was taken" in found["LeftOut"][raw.format("run-2_T1w")]
    # On the very grid of the run, with its bias taken out of the brain.
    source = nib.load(tmp_path / "raw/sub-01/anat/sub-01_run-1_T1w.nii.gz")
    written, aseg = load(out, "desc-preproc_T1w"), load(out, "space-T1w_desc-aseg_dseg")
    for image in (written, aseg):
        assert image.shape == source.shape
        assert image.affine.tobytes() == source.affine.tobytes()
    white = np.isin(labels.data, (2, 41))
    before, after = source.get_fdata()[white], written.get_fdata()[white]
    assert after.std() / after.mean() < 0.7 * before.std() / before.mean()
    sidecar = json.loads((out / "sub-01/anat/sub-01_desc-preproc_T1w.json").read_text())
    assert sidecar["SkullStripped"] is False
    assert sidecar["Sources"] == [raw.format("run-1_T1w")]
    assert "N4" in sidecar["Description"]
    reference = "bids::sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"
    for name in ("desc-aseg_dseg", "desc-brain_mask"):
        about = json.loads((out / f"sub-01/anat/sub-01_space-T1w_{name}.json").read_text())
        assert about["SpatialReference"] == reference
    [view] = view_folder(out)
    assert not view.problems
    assert "t1w_preproc" in [one.key for one in view.findings if one.files]


def test_when_the_image_is_written_too(session, tmp_path):
    """A run that is excluded by a filter counts: NiBabies sees it all the same."""
    images = {"T1w": scan(T1W_PLACE), "part-phase_T1w": scan(T1W_PLACE), "T2w": scan(T1W_PLACE)}
    _, out = session(images)
    assert not any("preproc" in name for name in anat(out))
    _, out = session(images, write_preproc="always")
    assert {"desc-preproc_T1w.nii.gz", "desc-preproc_T2w.nii.gz"} < set(anat(out))
    # A second T1w changes what is needed, though not what is segmented.
    assert session({}, fresh=False, redo_changed=True)[0].status == "done"
    assert session({}, fresh=False)[0].status == "skipped"
    scan(T1W_PLACE).to_filename(tmp_path / "raw/sub-01/anat/sub-01_run-1_T1w.nii.gz")
    result, out = session({}, fresh=False, redo_changed=True)
    assert result.status == "done"
    assert [name for name in anat(out) if "preproc" in name] == [
        "desc-preproc_T1w.json", "desc-preproc_T1w.nii.gz"
    ]  # fmt: skip
    [group] = find_scan_groups(tmp_path / "raw", filters={"t1w": {"run": None}})
    assert group.repeated == ("T1w",)
    [group] = find_scan_groups(tmp_path / "raw", contrasts=["T2w"])
    assert Options().preproc(group) == ()
    assert Options(write_preproc="always").preproc(group) == ("T2w",)


def rows(out, name):
    text = (out / f"sub-01/anat/sub-01_{name}.tsv").read_text()
    header, *lines = [line.split("\t") for line in text.splitlines()]
    return {line[0]: dict(zip(header, line, strict=True)) for line in lines}


def test_the_quality_of_a_session_is_told(session):
    """The T2w takes a stripe of cortex for white matter; both scans agree elsewhere."""
    labels, image = head(T1W_PLACE)
    stripe = np.isin(labels.data, (3, 42))
    stripe[:, :, :16] = stripe[:, :, 22:] = False
    spoiled = image.data.copy()
    spoiled[stripe] = 95.0
    images = {"T1w": scan(T1W_PLACE), "T2w": nifti(spoiled, T1W_PLACE.affine)}
    # Fine voxels: the reader tells sides by the middle of its grid, of which there are two.
    _, out = session(images, replace(segmenter(), model=reader((64, 80, 64))))
    disagreement = np.asarray(load(out, "space-T1w_desc-disagreement_mask").dataobj) > 0
    assert disagreement[stripe & interior(labels.data)].mean() > 0.95
    assert disagreement[~stripe].mean() < 0.01
    confidence = load(out, "space-T1w_desc-confidence_probseg")
    assert confidence.get_data_dtype() == np.uint8
    inner = interior(labels.data) & ~stripe
    assert confidence.get_fdata()[inner].min() > 0.9
    assert confidence.get_fdata().max() == pytest.approx(1)

    structures = rows(out, "space-T1w_desc-qc_volumes")
    assert structures.keys() == rows(out, "space-T1w_desc-aseg_volumes").keys()
    agreement = {index: row["agreement_dice"] for index, row in structures.items()}
    assert float(agreement["10"]) > 0.98 > 0.9 > float(agreement["3"])
    assert agreement["11"] == "n/a"  # the head has no caudate
    assert float(structures["10"]["predicted_dice"]) > 0.9
    about = json.loads((out / "sub-01/anat/sub-01_space-T1w_desc-qc_volumes.json").read_text())
    assert about["islands_mm3"]["Units"] == "mm^3"

    quality = Quality.of(record(out)["Quality"])
    assert list(quality.measures) == list(MEASURES)
    known = [float(value) for value in agreement.values() if value != "n/a"]
    assert quality.measures["agreement_dice"] == pytest.approx(np.median(known), abs=1e-3)
    assert quality.measures["slice_mm"] == pytest.approx(1.9)
    assert quality.measures["age_weeks_pma"] is None
    assert quality.verdict == "fail"  # most structures are missing
    assert any("missing" in reason for reason in quality.reasons)


def test_the_age_is_that_of_the_tables(session, tmp_path):
    table = "participant_id\tage_weeks_pma\nsub-01\t30\n"
    write_tree(tmp_path / "raw", {"participants.tsv": table})
    _, out = session({"T1w": scan(T1W_PLACE)}, mirror=False)
    measures = Quality.of(record(out)["Quality"]).measures
    assert measures["age_weeks_pma"] == 30
    ratio = measures["brain_ml"] / BrainGrowth.default().expected_ml(30)  # 66 ml to some 240
    assert measures["volume_z"] == pytest.approx(np.log(ratio) / 0.123, rel=1e-3)
    assert measures["volume_z"] < -9
    assert measures["mirror_dice"] is None
    assert measures["agreement_dice"] is measures["alignment_dice"] is None


def test_warnings_are_reasons(session):
    data = scan(T1W_PLACE).get_fdata()
    data[0, 0, 0] = np.nan
    result, out = session({"T1w": nifti(data, T1W_PLACE.affine)})
    assert result.message in record(out)["Quality"]["Reasons"]


def test_a_page_is_written_after_the_session(session, pages, tmp_path):
    images = {"T1w": scan(T1W_PLACE)}
    _, out = session(images, viewer="none")
    assert pages == [(("01", None), {"viewer": "none", "table_of_links": {}})]
    assert (out / "sub-01.html").is_file()
    # The viewer is not part of what was asked for.
    assert session(images, fresh=False)[0].status == "skipped"
    assert len(pages) == 1
    (out / "sub-01.html").unlink()
    assert session(images, fresh=False)[0].status == "skipped"
    assert len(pages) == 2


@pytest.mark.parametrize(
    "problem",
    [
        StorageProblem("sub-01.html: the disk is full"),
        OSError("no cache"),
        KeyError(1),
    ],
)
def test_a_page_that_cannot_be_made_is_a_warning_and_made_by_the_next_run(
    session, problem, monkeypatch
):
    def write(*_, **__):
        raise problem

    images = {"T1w": scan(T1W_PLACE)}
    with monkeypatch.context() as patch:
        patch.setattr(report, "write_report", write)
        result, out = session(images)
        again, _ = session(images, fresh=False)
    assert (result.status, again.status) == ("done", "skipped")
    for message in (result.message, again.message):
        assert "no report: " in message and str(problem) in message
    assert record(out)["Signature"] and not (out / "sub-01.html").exists()
    assert session(images, fresh=False)[0].message == "already done"
    assert (out / "sub-01.html").is_file()


def test_a_session_without_a_page_is_done(session, monkeypatch, caplog):
    def fails(*_, **__):
        raise BadData("sub-01_T1w.nii.gz: gone; bring it back")

    monkeypatch.setattr(report, "write_report", fails)
    with caplog.at_level(logging.WARNING):
        result, out = session({"T1w": scan(T1W_PLACE)})
    assert result.status == "done"
    assert record(out)["Signature"]
    assert "sub-01: no report: sub-01_T1w.nii.gz: gone" in caplog.text


def test_a_scan_out_of_derivatives_is_written_for_nibabies(bids_tree, tmp_path):
    """NiBabies would find no image, or another one, that belongs to the labels."""
    raw = bids_tree({"sub-01": {"anat": {"sub-01_T2w.nii.gz": scan(T1W_PLACE)}}})
    better = bids_tree({"sub-01": {"anat": {"sub-01_rec-sr_T2w.nii.gz": scan(T2W_PLACE)}}}, "sr")
    (group,) = find_scan_groups(raw, derivatives={"sr": better})
    options = Options(derivatives={"sr": better})
    out = tmp_path / "out"
    assert run_session(group, raw, out, segmenter(), options).status == "done"
    assert "desc-preproc_T2w.nii.gz" in anat(out)
    assert load(out, "space-T2w_desc-aseg_dseg").shape == T2W_PLACE.shape
    assert record(out)["Scans"] == ["bids:sr:sub-01/anat/sub-01_rec-sr_T2w.nii.gz"]
    assert list(record(out)["LeftOut"]) == ["bids:raw:sub-01/anat/sub-01_T2w.nii.gz"]


def test_posteriors_are_saved_on_request(session):
    images = {"T1w": scan(T1W_PLACE)}
    _, out = session(images)
    assert [name for name in anat(out) if "probseg" in name] == [
        "space-T1w_desc-confidence_probseg.json", "space-T1w_desc-confidence_probseg.nii.gz"
    ]  # fmt: skip

    _, out = session(images, save_posteriors="tissue")
    tissues = {t: load(out, f"space-T1w_label-{t}_probseg") for t in ("GM", "WM", "CSF")}
    aseg = np.asarray(load(out, "space-T1w_desc-aseg_dseg").dataobj)
    inner = interior(aseg)
    for tissue, ids in (("GM", (3, 10, 42, 49)), ("WM", (2, 41)), ("CSF", (24,))):
        data = tissues[tissue].get_fdata()
        assert (
            tissues[tissue].affine.tobytes()
            == nib.load(out.parent / "raw/sub-01/anat/sub-01_T1w.nii.gz").affine.tobytes()
        )
        np.testing.assert_allclose(data[inner], np.isin(aseg, ids)[inner], atol=0.51)
        assert data[inner & np.isin(aseg, ids)].mean() > 0.95

    _, out = session(images, save_posteriors="all")
    assert not any("label-GM" in name for name in anat(out))  # those of the run before are gone
    image = load(out, "space-T1w_desc-posteriors_probseg")
    table = LabelTable.default()
    assert image.shape == (*T1W_PLACE.shape, len(table))
    data = image.get_fdata()
    np.testing.assert_allclose(data.sum(-1), 1, atol=0.03)
    native = np.asarray(load(out, "space-T1w_desc-native_dseg").dataobj)
    best = table.ids[data.argmax(-1)]
    assert (best == native).mean() > 0.99


def test_what_is_finished_is_skipped(session):
    images = {"T1w": scan(T1W_PLACE)}
    _, out = session(images)
    output = out / "sub-01/anat/sub-01_space-T1w_desc-aseg_dseg.nii.gz"
    written = output.stat().st_mtime_ns
    result, _ = session(images, fresh=False)
    assert result.status == "skipped"
    assert output.stat().st_mtime_ns == written


def everything(out):
    """Content of all results, their records and pages."""
    files = (path for path in out.rglob("*") if path.is_file() and path.suffix != ".log")
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("option", "done before with mirror True; now False"),
        ("weights", "done before with weights 000000000000; now 111111111111"),
        ("input", "done before with another sub-01_T1w.nii.gz"),
        ("scans", "done before with no sub-01_T2w.nii.gz"),
        ("version", f"done before with version {__version__}; now 99"),
    ],
)
def test_what_has_changed_is_done_again_when_that_is_wanted(
    session, tmp_path, monkeypatch, caplog, change, words
):
    images = {"T1w": scan(T1W_PLACE)}
    _, out = session(images, segmenter("0" * 64))
    before, options, networks = everything(out), {}, segmenter("0" * 64)
    raw = tmp_path / "raw/sub-01/anat"
    if change == "option":
        options = {"mirror": False}
    elif change == "weights":
        networks = segmenter("1" * 64)
    elif change == "input":
        moved = head(T1W_PLACE, T1W_PLACE.centre_mm + 3)[1].data
        nifti(moved, T1W_PLACE.affine).to_filename(raw / "sub-01_T1w.nii.gz")
    elif change == "scans":
        scan(T2W_PLACE).to_filename(raw / "sub-01_T2w.nii.gz")
    else:
        monkeypatch.setattr(pipeline, "__version__", "99")
    result, _ = session(images, networks, fresh=False, **options)
    assert result.status == "skipped" and words in result.message
    assert words in caplog.text and "--redo-changed" in caplog.text
    assert everything(out) == before
    result, _ = session(images, networks, fresh=False, redo_changed=True, **options)
    assert result.status == "done"
    assert everything(out) != before
    again, _ = session(images, networks, fresh=False, redo_changed=True, **options)
    assert again.message == "already done"


@pytest.mark.parametrize("change", ["overwrite", "missing", "damaged", "record"])
def test_what_is_done_again_unasked(session, caplog, change):
    images = {"T1w": scan(T1W_PLACE)}
    _, out = session(images)
    output = out / "sub-01/anat/sub-01_space-T1w_desc-aseg_dseg.nii.gz"
    content, words = output.read_bytes(), "gone, or not as it was written"
    if change == "missing":
        output.unlink()
    elif change == "damaged":
        output.write_bytes(content[:-9] + bytes(9))
    elif change == "record":
        (out / "logs/sub-01.json").write_text(json.dumps(record(out) | {"Outputs": [1]}))
        words = "no record (Outputs is of another type)"
    result, _ = session(images, fresh=False, overwrite=change == "overwrite")
    assert result.status == "done" and output.read_bytes() == content
    assert (words in caplog.text) == (change != "overwrite")
    assert session(images, fresh=False)[0].message == "already done"


@pytest.mark.parametrize("words", [{"overwrite": True}, {"redo_changed": True}])
def test_a_redo_that_fails_leaves_what_was_there(session, tmp_path, words):
    _, out = session({"T1w": scan(T1W_PLACE)})
    before = everything(out)
    (tmp_path / "raw/sub-01/anat/sub-01_T1w.nii.gz").write_bytes(b"")
    with pytest.raises(BadData, match=r"sub-01_T1w.nii.gz: the file is empty"):
        session({}, fresh=False, **words)
    assert everything(out) == before


def test_warnings_name_their_file_once(session):
    image = scan(T1W_PLACE)
    data = image.get_fdata()
    data[0, 0, 0] = np.nan
    result, out = session({"T1w": nifti(data - 30, T1W_PLACE.affine)})
    [warning], [note] = record(out)["Warnings"], record(out)["Notes"]
    assert "NaN" in warning and "negative" in note
    for said in (warning, note):
        assert said.count("sub-01_T1w.nii.gz") == 1
        assert said in result.message
    # Only what asks for a look is a reason of the verdict.
    reasons = record(out)["Quality"]["Reasons"]
    assert warning in reasons and note not in reasons


# Through the command: every bad input beside a good one.


def broken():
    """Subject -> (content of its T1w, words of its one line)."""
    good = scan(T1W_PLACE)
    packed = gzip.compress(good.to_bytes())
    data = good.get_fdata().astype(np.float32)
    affine = good.affine
    lost = nifti(data, affine, sform=0, qform=0)
    singular = nifti(data, affine, qform=0)
    singular.header["srow_x"] = singular.header["srow_y"]
    flat = nib.Nifti1Image(data, None, singular.header)
    speck = np.full_like(data, 20) + 0.3 * np.random.default_rng(0).random(data.shape)
    speck[15:25, 15:25, 15:25] += 70  # 6 ml
    return {
        "empty": (b"", "0 bytes"),
        "truncated": (packed[: len(packed) // 2], "truncated or damaged"),
        "nozip": (good.to_bytes(), "not gzip data"),
        "text": (b"\x1f\x8bno image at all", "truncated or damaged"),
        "4d": (nifti(np.stack([data, data], -1), affine), "4D with 2 volumes"),
        "2d": (nifti(data[:, :, :1], affine), "2D"),
        "zero": (nifti(np.zeros_like(data), affine), "all voxels are 0"),
        "constant": (nifti(np.full_like(data, 7), affine), "the same value (7)"),
        "nan": (nifti(np.full_like(data, np.nan), affine), "no voxel is a finite number"),
        "lost": (lost, "qform and sform are both 0"),
        "singular": (flat, "singular"),
        "labels": (nifti(head(T1W_PLACE)[0].data, affine), "label map"),
        "nobrain": (nifti(speck.astype(np.float32), affine), "no brain found"),
    }


def usable():
    """Subject -> (content of its T1w, words of the warning that it is used with)."""
    good = scan(T1W_PLACE)
    data, affine = good.get_fdata().astype(np.float32), good.affine
    spotted = data.copy()
    spotted[0, 0, :3] = np.nan, np.inf, -np.inf
    conflict = nifti(data, affine)
    conflict.set_qform(affine @ np.diag([-1, 1, 1, 1]), code=1)
    metres, unset = nifti(data, affine / 1000 * [[1], [1], [1], [1000]]), nifti(data, affine)
    metres.header.set_xyzt_units("meter")
    unset.header.set_xyzt_units("unknown")
    return {
        "ok4d": (nifti(data[..., None], affine), "4D with one volume"),
        "oknan": (nifti(spotted, affine), "3 voxels are NaN or infinite"),
        "okconflict": (conflict, "the sform was used"),
        "okmetres": (metres, "converted to mm"),
        "okunset": (unset, "mm assumed"),
        "oknegative": (nifti(data - 60, affine), "negative intensities"),
    }


def call(*arguments):
    return console.run(cli.command, [str(argument) for argument in arguments])


@pytest.fixture
def hand_made(monkeypatch):
    """The command finds the hand-made networks where it would load weights."""
    work._load.cache_clear()
    monkeypatch.setattr(Segmenter, "load", staticmethod(lambda options: segmenter()))
    yield
    work._load.cache_clear()


def write_raw(root, contents):
    description = {"Name": "x", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    write_tree(root, {"dataset_description.json": description})
    for subject, content in contents.items():
        path = root / f"sub-{subject}" / "anat" / f"sub-{subject}_T1w.nii.gz"
        if isinstance(content, bytes):
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
        else:
            write_tree(root, {path.relative_to(root).as_posix(): content})
    return root


def test_bad_input_fails_alone_and_odd_input_is_used_with_a_warning(tmp_path, capsys, hand_made):
    bad, odd = broken(), usable()
    contents = {"good": scan(T1W_PLACE)} | {k: v for k, (v, _) in (bad | odd).items()}
    raw, out = write_raw(tmp_path / "raw", contents), tmp_path / "out"
    # A derivative that lies in the input is no scan.
    derived = raw / "sub-good/anat/sub-good_space-MNI_desc-preproc_T1w.nii.gz"
    scan(T2W_PLACE).to_filename(derived)
    assert call(raw, out, "participant") == 1
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    rows = read_status(out / "logs/status.tsv")
    rows = {row["subject"].removeprefix("sub-"): row for row in rows}
    assert {name for name, row in rows.items() if row["status"] == "failed"} == set(bad)
    assert {name for name, row in rows.items() if row["status"] == "done"} == {"good", *odd}
    for name, (_, words) in bad.items():
        message = rows[name]["message"]
        assert words in message, name
        assert f"sub-{name}_T1w.nii.gz: " in message
        assert ";" in message  # the cure
        assert errors.count(f"sub-{name}: {message}\n") == 1
        assert not list((out / f"sub-{name}").rglob("*.nii.gz"))
    expected = head(T1W_PLACE)[0].data
    for name in ("good", *odd):
        path = out / f"sub-{name}/anat/sub-{name}_space-T1w_desc-aseg_dseg.nii.gz"
        image, source = nib.load(path), nib.load(raw / f"sub-{name}/anat/sub-{name}_T1w.nii.gz")
        assert image.affine.tobytes() == source.affine.tobytes()
        assert right_inside(np.asarray(image.dataobj), expected), name
        found = record(out, f"sub-{name}")
        said = [*found["Warnings"], *found["Notes"]]
        assert len(said) == (name != "good")
        assert name == "good" or odd[name][1] in said[0]
    # Once more: what is done is skipped, what failed fails again.
    assert call(raw, out, "participant", "-q") == 1
    rows = read_status(out / "logs/status.tsv")
    assert {row["status"] for row in rows} == {"failed", "skipped"}


def test_output_folders_that_are_refused(tmp_path, capsys, hand_made):
    raw = write_raw(tmp_path / "raw", {"01": scan(T1W_PLACE)})
    (tmp_path / "file").touch()
    before = sorted(raw.rglob("*"))
    for out, code in ((raw, 64), (raw / "sub-01", 64), (tmp_path / "file", 73)):
        assert call(raw, out, "participant") == code
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert sorted(raw.rglob("*")) == before
    inside = raw / "derivatives" / "bids_synthseg"
    assert call(raw, inside, "participant", "-q") == 0
    assert anat(inside) == in_space("T1w")


# Loading.


def test_weights_are_loaded_with_their_checksum(tmp_path, monkeypatch):
    table = LabelTable.default()
    small = NetworkConfig((4, 4), channels_out=Head(table).n_channels, convs=(1, 1))
    for seed, name in enumerate(("segmentation", "locator", "other")):
        torch.manual_seed(seed)
        model = replace(reader(), network=UNet(small))
        save_model(tmp_path / f"{name}.safetensors", model)
    monkeypatch.setattr(pipeline, "shipped_folder", lambda: tmp_path)
    with pytest.raises(InputMissing, match=r"SHA256SUMS: names no checksum of segm.*install"):
        Segmenter.load(Options(device="cpu"))
    names = ("segmentation.safetensors", "locator.safetensors")
    lines = [f"{file_sha256(tmp_path / name)}  {name}\n" for name in names]
    (tmp_path / "SHA256SUMS").write_text("".join(lines))
    first = Segmenter.load(Options(device="cpu"))
    again = Segmenter.load(Options(device="cpu"))
    other = Segmenter.load(Options(device="cpu", model=tmp_path / "other.safetensors"))
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert len(first.weights_sha256) == 64
    assert first.table == table
    assert not first.model.network.training
    assert not any(p.requires_grad and p.grad is not None for p in first.model.network.parameters())
    (tmp_path / "other.safetensors").write_bytes(b"")
    with pytest.raises(BadData, match=r"other\.safetensors"):
        Segmenter.load(Options(device="cpu", model=tmp_path / "other.safetensors"))


def test_devices(monkeypatch):
    assert devices("cpu") == ["cpu"]
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UsageProblem, match="--device cuda:99"):
        choose_device("cuda:99")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert devices("auto") == devices("cuda") == ["cuda:0", "cuda:1", "cuda:2"]
    assert devices("cuda:2") == ["cuda:2"]


def test_the_hand_made_locator_is_what_the_pipeline_expects():
    networks = segmenter()
    assert networks.table == LabelTable.default()
    assert locator().head.n_channels == 2


# Another file under the same name, while the session runs.


def replaced(path, image):
    """As a download does: written beside, then renamed."""
    beside = path.with_name("new.nii.gz")
    image.to_filename(beside)
    beside.replace(path)


def test_a_scan_that_changes_while_it_is_read_fails(session, tmp_path, monkeypatch):
    path = tmp_path / "raw/sub-01/anat/sub-01_T1w.nii.gz"
    read = pipeline.nifti.read_scan

    def slow_read(scan_path):
        image = read(scan_path)
        replaced(path, scan(T2W_PLACE))
        return image

    monkeypatch.setattr("bids_synthseg.nifti.read_scan", slow_read)
    with pytest.raises(BadData, match=r"sub-01_T1w\.nii\.gz: has changed while it was read; run"):
        session({"T1w": scan(T1W_PLACE)})


def test_a_scan_that_changes_before_the_end_is_said(session, tmp_path, monkeypatch):
    path = tmp_path / "raw/sub-01/anat/sub-01_T1w.nii.gz"
    merge = pipeline.write_spaces

    def write_and_replace(*arguments):
        replaced(path, scan(T2W_PLACE))
        return merge(*arguments)

    monkeypatch.setattr(pipeline, "write_spaces", write_and_replace)
    result, out = session({"T1w": scan(T1W_PLACE)})
    [warning] = record(out)["Warnings"]
    assert warning.startswith(f"{path}: has changed since it was read")
    assert warning in result.message
    monkeypatch.setattr(pipeline, "write_spaces", merge)
    # The record is of what was read: the new file is done anew.
    result, _ = session({}, fresh=False)
    assert result.status == "skipped" and "another sub-01_T1w.nii.gz" in result.message
