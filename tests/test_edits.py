"""Label maps corrected by hand: what follows from them, what goes, what stays, what is refused."""

import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import nifti, write_tree
from handmade import grid, head, segmenter
from scipy.spatial.transform import Rotation

from bids_synthseg import edits
from bids_synthseg.anatomy.volume import Grid
from bids_synthseg.bids.derived import EDITS
from bids_synthseg.bids.nibabies import view_folder
from bids_synthseg.bids.quality import Quality
from bids_synthseg.bids.scans import Scan, ScanGroup
from bids_synthseg.edits import find_edits, run_edited
from bids_synthseg.errors import BadData, InputMissing, NothingSelected, UsageProblem
from bids_synthseg.pipeline import Options, run_session
from bids_synthseg.segmentation.align import itk_text

pytestmark = pytest.mark.usefixtures("package_log")

TURN = Rotation.from_euler("xyz", [6, -9, 12], degrees=True).as_matrix()
T1W_PLACE = grid((38, 42, 36), (1.7, 1.8, 1.9), TURN)
T2W_PLACE = grid((34, 40, 28), (2.0, 1.9, 2.6), TURN)
MOTION = np.eye(4)
MOTION[:3, 3] = 5, -4, 6
ASEG = "space-{}_desc-aseg_dseg"


def scan(place):
    return nifti(head(place)[1].data, place.affine)


def group_of(raw):
    """Without an index, which takes longer than all that follows."""
    return ScanGroup("01", None, tuple(map(Scan.from_path, sorted(raw.glob("sub-01/anat/*")))))


@pytest.fixture(scope="module")
def segmented(tmp_path_factory):
    """Input and output of sub-01, which moved between T1w and T2w; the session was segmented."""
    root = tmp_path_factory.mktemp("edits")
    moved = Grid(T2W_PLACE.shape, MOTION @ T2W_PLACE.affine)
    images = {"sub-01_T1w.nii.gz": scan(T1W_PLACE), "sub-01_T2w.nii.gz": scan(moved)}
    description = {"Name": "phantom", "BIDSVersion": "1.10.0"}
    tree = {"dataset_description.json": description, "sub-01": {"anat": images}}
    raw = write_tree(root / "raw", tree)
    options = Options(save_per_image=True, save_posteriors="tissue", viewer="none")
    run_session(group_of(raw), raw, root / "out", segmenter(), options)
    return root


class Session:
    """A copy of the segmented session, and a folder of edits that is still empty.

    It runs without networks unless it is given some: they are not asked.
    """

    def __init__(self, root):
        self.raw, self.out, self.mine = root / "raw", root / "out", root / "mine"
        self.anat = self.out / "sub-01" / "anat"
        self.edited = self.mine / "sub-01" / "anat"
        self.edited.mkdir(parents=True)

    @property
    def group(self):
        return group_of(self.raw)

    def edit(self, contrast, change, name=None):
        """Write an edited map: `change` takes the labels of the output's own."""
        image = nib.load(self.anat / f"sub-01_{ASEG.format(contrast)}.nii.gz")
        data = change(np.asarray(image.dataobj).astype(np.int32))
        path = self.edited / f"sub-01_{name or ASEG.format(contrast)}.nii.gz"
        nifti(data, image.affine).to_filename(path)
        return path

    def run(self, networks=None, **options):
        found = find_edits(self.mine, [self.group], self.out)
        options = Options(derivatives={EDITS: self.mine}, viewer="none", **options)
        files = found[self.group.key]
        return run_edited(self.group, files, self.raw, self.out, networks, options)

    def load(self, name):
        return np.asarray(nib.load(self.anat / f"sub-01_{name}.nii.gz").dataobj)

    def json(self, name):
        return json.loads((self.anat / f"sub-01_{name}.json").read_text())

    def names(self):
        return {path.name.removeprefix("sub-01_") for path in self.anat.iterdir()}

    @property
    def record(self):
        return json.loads((self.out / "logs" / "sub-01.json").read_text())


@pytest.fixture
def session(segmented, tmp_path, monkeypatch):
    for name in ("raw", "out"):
        shutil.copytree(segmented / name, tmp_path / name)
    session = Session(tmp_path)
    session.pages = []

    def write_page(group, bids_dir, output_dir, options):
        session.pages.append(group.label)
        (output_dir / f"{group.label}.html").touch()
        return []

    monkeypatch.setattr(edits, "write_page", write_page)
    return session


def thalamus_to_putamen(labels):
    return np.where(labels == 10, 12, np.where(labels == 49, 51, labels))


def test_an_edit_of_one_space_reaches_the_other(session):
    before = {name: session.load(ASEG.format(name)) for name in ("T1w", "T2w")}
    there = session.names()
    path = session.edit("T1w", thalamus_to_putamen)
    kept = [n for n in there if n.startswith(("from-", "space-orig"))]
    stamps = {name: (session.anat / f"sub-01_{name}").stat().st_mtime_ns for name in kept}
    result = session.run()
    assert result.status == "done" and result.message == ""

    np.testing.assert_array_equal(
        session.load(ASEG.format("T1w")), thalamus_to_putamen(before["T1w"])
    )
    carried = session.load(ASEG.format("T2w"))
    assert set(np.unique(carried)) == {0, 2, 3, 12, 24, 41, 42, 51}
    expected = thalamus_to_putamen(before["T2w"])
    for index in (2, 3, 12, 24, 41, 42, 51):
        one, other = carried == index, expected == index
        assert 2 * (one & other).sum() / (one.sum() + other.sum()) > 0.85, index

    for name in ("T1w", "T2w"):
        np.testing.assert_array_equal(
            session.load(f"space-{name}_desc-brain_mask"), session.load(ASEG.format(name)) > 0
        )
        sidecar = session.json(ASEG.format(name))
        assert sidecar["Manual"] is True
        assert sidecar["SpatialReference"] == f"bids:raw:sub-01/anat/sub-01_{name}.nii.gz"
        assert sidecar["WeightsSHA256"] == "0" * 64
    edit = f"bids:edits:sub-01/anat/{path.name}"
    assert session.json(ASEG.format("T1w"))["Sources"] == [edit]
    xfm = "bids::sub-01/anat/sub-01_from-T1w_to-T2w_mode-image_xfm.txt"
    assert session.json(ASEG.format("T2w"))["Sources"] == [edit, xfm]

    gone = there - session.names()
    assert {name.split("_", 1)[1].split(".")[0] for name in gone} >= {
        "desc-native_dseg", "desc-confidence_probseg", "desc-disagreement_mask", "label-GM_probseg",
        "desc-qc_volumes",
    }  # fmt: skip
    assert all(name.startswith(("space-T1w", "space-T2w")) for name in gone)
    assert stamps == {name: (session.anat / f"sub-01_{name}").stat().st_mtime_ns for name in kept}
    assert session.names() < there
    assert [view.problems for view in view_folder(session.out)] == [()]
    assert len(session.pages) == 1


def test_volumes_and_record_of_an_edit(session):
    session.edit("T1w", thalamus_to_putamen)
    session.run()
    lines = (session.anat / f"sub-01_{ASEG.format('T1w')[:-5]}_volumes.tsv").read_text()
    rows = {line.split("\t")[0]: line.split("\t") for line in lines.splitlines()}
    voxels = (session.load(ASEG.format("T1w")) == 12).sum()
    assert float(rows["12"][2]) == pytest.approx(voxels * 1.7 * 1.8 * 1.9, rel=1e-4)
    assert rows["10"][2] == "0" and {row[3] for row in rows.values()} == {"volume_soft_mm3", "n/a"}
    record = session.record
    assert record["Edited"] == {"T1w": f"bids:edits:sub-01/anat/sub-01_{ASEG.format('T1w')}.nii.gz"}
    assert record["Scans"] == [f"bids:raw:sub-01/anat/sub-01_{c}.nii.gz" for c in ("T1w", "T2w")]
    measures = Quality.of(record["Quality"]).measures
    mask = session.load("space-T1w_desc-brain_mask")
    assert measures["brain_ml"] == pytest.approx(mask.sum() * 1.7 * 1.8 * 1.9 / 1000, rel=1e-4)
    assert measures["slice_mm"] == pytest.approx(2.6, rel=1e-5)
    assert measures["alignment_dice"] > 0.8
    # Putamen came, thalamus went.
    missing = measures["missing_structures"]
    session.edit("T1w", lambda labels: np.where(labels == 2, 41, labels))
    session.run()
    assert Quality.of(session.record["Quality"]).measures["missing_structures"] == missing + 1
    assert measures["predicted_dice"] is None and measures["entropy"] is None


def test_a_second_run_does_nothing_until_the_edit_changes(session):
    session.edit("T1w", thalamus_to_putamen)
    assert session.run().status == "done"
    before = session.record
    assert session.run().status == "skipped"
    assert session.record == before and len(session.pages) == 1
    (session.out / "sub-01.html").unlink()
    assert session.run().status == "skipped" and len(session.pages) == 2
    assert session.run(overwrite=True).status == "done"
    session.edit("T1w", lambda labels: np.where(labels == 12, 13, labels))
    assert session.run().status == "done"
    assert set(np.unique(session.load(ASEG.format("T2w")))) == {0, 2, 3, 13, 24, 41, 42, 51}
    assert session.run().status == "skipped"


def test_another_version_takes_the_same_edit_over_when_that_is_wanted(session, monkeypatch):
    session.edit("T1w", thalamus_to_putamen)
    session.run()
    before = session.record
    monkeypatch.setattr(edits, "__version__", "99")
    result = session.run()
    assert result.status == "skipped" and "now 99" in result.message
    assert session.record == before
    assert session.run(redo_changed=True).status == "done"
    assert session.record["MadeWith"]["Version"] == "99"


def test_each_edit_holds_for_its_own_space(session):
    session.edit("T1w", thalamus_to_putamen)
    session.edit("T2w", lambda labels: np.where(labels == 2, 41, labels))
    session.run()
    assert set(np.unique(session.load(ASEG.format("T1w")))) == {0, 2, 3, 12, 24, 41, 42, 51}
    assert set(np.unique(session.load(ASEG.format("T2w")))) == {0, 3, 10, 24, 41, 42, 49}
    for name in ("T1w", "T2w"):
        (source,) = session.json(ASEG.format(name))["Sources"]
        assert source.endswith(f"{ASEG.format(name)}.nii.gz")
    assert list(session.record["Edited"]) == ["T1w", "T2w"]


def test_from_t2w_to_t1w(session):
    session.edit("T2w", thalamus_to_putamen)
    session.run()
    assert set(np.unique(session.load(ASEG.format("T1w")))) == {0, 2, 3, 12, 24, 41, 42, 51}


def test_a_space_that_was_not_merged_stays_as_it_is(session):
    for path in session.anat.glob("*_xfm.txt"):
        path.unlink()
    content = session.record
    content["Outputs"] = {n: s for n, s in content["Outputs"].items() if "_xfm" not in n}
    (session.out / "logs" / "sub-01.json").write_text(json.dumps(content))
    there = {name for name in session.names() if name.startswith("space-T2w")}
    session.edit("T1w", thalamus_to_putamen)
    result = session.run()
    assert result.message == "T2w was not merged with T1w: its labels are not edited"
    assert session.record["Warnings"] == [result.message]
    assert {name for name in session.names() if name.startswith("space-T2w")} == there
    assert session.json(ASEG.format("T2w"))["Manual"] is False
    assert session.run().status == "skipped"
    session.edit("T1w", lambda labels: np.where(labels == 2, 41, labels))
    session.run()
    assert {name for name in session.names() if name.startswith("space-T2w")} == there


def test_a_session_that_is_not_there_yet_is_segmented_first(session):
    session.edit("T1w", thalamus_to_putamen)
    shutil.rmtree(session.out)
    assert session.run(segmenter()).status == "done"
    assert 12 in session.load(ASEG.format("T1w")) and 10 not in session.load(ASEG.format("T1w"))


def fractional(labels):
    return np.where(labels == 10, 10.5, labels).astype(np.float32)


@pytest.mark.parametrize(
    ("contrast", "change", "name", "words"),
    [
        ("T1w", lambda x: x[1:], None, "not on the grid of the scan"),
        ("T1w", lambda x: np.where(x == 10, 257, x), None, "label 257 is not between 0 and 255"),
        ("T1w", lambda x: np.where(x == 10, -1, x), None, "label -1 is not between"),
        ("T1w", lambda x: np.where(x == 10, 99, x), None, "label 99 is not in desc-aseg_dseg.tsv"),
        ("T1w", fractional, None, "not whole numbers"),
        ("T1w", np.zeros_like, None, "no voxel is labelled"),
        ("T2w", thalamus_to_putamen, ASEG.format("T1w"), "not on the grid of the scan"),
        ("T1w", thalamus_to_putamen, "desc-aseg_dseg", "no segmentation in space none"),
        ("T1w", thalamus_to_putamen, ASEG.format("MNI"), "in space MNI of this session, only in"),
    ],
)
def test_edits_that_cannot_be_used(session, contrast, change, name, words):
    path = session.edit(contrast, change, name)
    record, there = session.record, session.names()
    with pytest.raises(BadData, match=words) as caught:
        session.run()
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    # Nothing was touched.
    assert session.record == record and session.names() == there


def test_two_edits_of_one_space(session):
    session.edit("T1w", thalamus_to_putamen)
    session.edit("T1w", thalamus_to_putamen, f"run-1_{ASEG.format('T1w')}")
    with pytest.raises(BadData, match="is of the same space; keep one"):
        session.run()


def test_an_edit_in_the_folder_of_another_session(session):
    path = session.edit("T1w", thalamus_to_putamen)
    path.rename(path.with_name(path.name.replace("sub-01", "sub-010")))
    with pytest.raises(BadData, match="lies in the folder of sub-01"):
        session.run()


def test_folders_without_edits(session, tmp_path):
    with pytest.raises(InputMissing, match="nowhere: no such folder"):
        find_edits(tmp_path / "nowhere", [session.group], session.out)
    with pytest.raises(NothingSelected, match="no edited segmentation"):
        find_edits(session.mine, [session.group], session.out)
    for folder in (session.out, session.out / "sub-01"):
        with pytest.raises(UsageProblem, match="lies in the output"):
            find_edits(folder, [session.group], session.out)


def test_edits_are_found_by_session(session):
    path = session.edit("T1w", thalamus_to_putamen)
    other = replace(session.group, subject="02")
    assert find_edits(session.mine, [session.group, other], session.out) == {("01", None): (path,)}


def test_the_transform_is_read_as_it_was_written(tmp_path):
    transform = np.eye(4)
    transform[:3, :3] = TURN
    transform[:3, 3] = 1.5, -2.25, 3.0
    path = tmp_path / "xfm.txt"
    path.write_text(itk_text(transform))
    np.testing.assert_allclose(edits._read_itk(path), transform, atol=1e-12)
    # As ITK itself reads it: points with x and y of the other sign.
    point = sitk.ReadTransform(str(path)).TransformPoint((-4.0, -5.0, 6.0))
    expected = transform @ (4.0, 5.0, 6.0, 1.0)
    np.testing.assert_allclose(point, expected[:3] * (-1, -1, 1), atol=1e-9)
    path.write_text("Parameters: 1 2 3")
    with pytest.raises(BadData, match="not the transform"):
        edits._read_itk(path)
