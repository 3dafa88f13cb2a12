"""The report of a session: what its page tells, and that nothing else is needed to read it."""

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest
from conftest import RAS_OBLIQUE, nifti
from finished_session import ASEG, LOG_LINE, finish_session

from bids_synthseg.anatomy.volume import Grid, Volume
from bids_synthseg.bids import report_viewer
from bids_synthseg.bids.derivatives import SessionPaths
from bids_synthseg.bids.quality import Quality
from bids_synthseg.bids.report import write_report
from bids_synthseg.bids.report_growth import draw_growth
from bids_synthseg.bids.report_viewer import View
from bids_synthseg.errors import BadData, InputMissing, UsageProblem
from bids_synthseg.nifti import read_labels

MEASURES = {"predicted_dice": 0.874, "brain_ml": 431.0, "age_weeks_pma": 41.3, "entropy": None}
JUDGED = {
    "Quality": Quality("check", ("One <b>is</b> odd.", "So is two."), MEASURES).record(),
    "Warnings": ["the sform is odd & old"],
    "LeftOut": {"bids:raw:sub-01/anat/sub-01_run-2_T1w.nii.gz": "a worse <run>"},
}


class Page(HTMLParser):
    """Elements and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self._within = [], [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._within.append(tag)

    def handle_endtag(self, tag):
        if tag in self._within:
            while self._within.pop() != tag:
                pass

    def handle_data(self, data):
        if not {"script", "style", "pre"} & set(self._within):
            self.words.append(data)

    def all(self, tag, **wanted):
        return [a for t, a in self.elements if t == tag and wanted.items() <= a.items()]


@pytest.fixture
def raw(bids_tree, phantom_image):
    scans = {
        f"sub-01_{contrast}.nii.gz": nifti(data, RAS_OBLIQUE)
        for contrast, data in (("T1w", phantom_image), ("T2w", 200 - phantom_image))
    }
    return bids_tree({"sub-01": {"anat": scans}})


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def read(raw, out, **options):
    text = write_report(raw, out, ("01", None), **options).read_text(encoding="utf-8")
    return Page(text), text


def test_the_page_tells_what_the_session_holds(raw, out, phantom_labels):
    finish_session(raw, out, phantom_labels, details=JUDGED)
    page, text = read(raw, out, viewer="none")
    assert page.all("div", id="verdict") == [{"class": "verdict check", "id": "verdict"}]
    for words in (
        "Check One <b>is</b> odd. So is two.",
        "2 scans used 431 mL brain volume 41.3 weeks postmenstrual age 0.87 predicted Dice",
        "sub-01/anat/sub-01_T1w.nii.gz segmented sub-01/anat/sub-01_T2w.nii.gz segmented",
        "sub-01/anat/sub-01_run-2_T1w.nii.gz left out: a worse <run>",
        "sub-01_T1w.nii.gz: voxels of 1 x 1.1 x 1.2 mm, 20 x 24 x 18.",
        "Merged from sub-01_T1w.nii.gz and sub-01_T2w.nii.gz.",
        "the sform is odd & old",
        "By SynthSeg Billot et al. 2023 , it was.",
        "Billot, Benjamin; Greve, Douglas N.; Puonti, Oula; and others. SynthSeg: Segmentation of",
        "weights, SHA-256 " + "w" * 64,
        "entropy n/a",
    ):
        assert words in page.text, words
    assert '<pre id="command">bids_synthseg &#39;in put&#39; out</pre>' in text


def test_every_label_has_its_row(raw, out, phantom_labels):
    paths = finish_session(raw, out, phantom_labels)
    page, _ = read(raw, out, viewer="none")
    rows = [int(row["data-label"]) for row in page.all("tr") if "data-label" in row]
    assert rows == sorted(row.index for row in ASEG.rows[1:])
    voxel_mm3 = read_labels(paths.file("dseg", space="T1w", desc="aseg")).volume.grid
    ml = (phantom_labels == 10).sum() * voxel_mm3.voxel_volume_mm3 / 1000
    share = 100 * (phantom_labels == 10).sum() / (phantom_labels != 0).sum()
    assert f"Left-Thalamus 10 {ml:.2f} {ml:.2f} {share:.2f} 0.91" in page.text
    assert "Vermis 172 0.00 0.00 0.00 n/a" in page.text
    # Columns that nobody measured are not shown.
    assert "predicted Dice" in page.text and "mirror Dice" not in page.text


def test_pictures_of_every_space(raw, out, phantom_labels):
    finish_session(raw, out, phantom_labels)
    page, _ = read(raw, out, viewer="none")
    sheets = [svg["data-sheet"] for svg in page.all("svg") if "data-sheet" in svg]
    # On one grid the maps of T2w are those of T1w.
    assert sheets == ["outlines-T1w", "confidence-T1w", "disagreement-T1w", "outlines-T2w"]
    assert "T2w and T1w lie on one grid" in page.text
    drawn = {int(path["data-label"]) for path in page.all("path")}
    assert drawn == {0, *np.unique(phantom_labels).tolist()}
    # Three planes, six slices each, and three in the pictures of maps.
    assert len(page.all("image")) == 2 * 18 + 2 * 9
    assert page.text.count(" L R ") + page.text.count(" P A ") == 2 * 18 + 2 * 9


def test_nothing_is_asked_of_the_network(raw, out, phantom_labels):
    finish_session(raw, out, phantom_labels, details=JUDGED)
    page, text = read(raw, out)
    [policy] = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none';") and "http" not in policy
    named = [v for _, a in page.elements for k, v in a.items() if k in ("src", "href", "srcdoc")]
    assert named and all(value.startswith(("data:image/png;", "#")) for value in named)
    targets = {a["id"] for _, a in page.elements if "id" in a}
    assert {value[1:] for value in named if value.startswith("#")} <= targets
    assert "url(" not in text and "@import" not in text


def test_what_the_viewer_gets(raw, out, phantom_labels, tmp_path):
    paths = finish_session(raw, out, phantom_labels)
    _, text = read(raw, out)

    def content(name):
        [found] = re.findall(rf'<script type="[a-z/]+" id="{name}">(.*?)</script>', text, re.DOTALL)
        return found

    data = json.loads(content("viewer-data"))
    assert [view["name"] for view in data["views"]] == ["T1w", "T2w"]
    assert {"index": 49, "name": "Right-Thalamus", "color": "#00760e"} in data["labels"]
    (tmp_path / "labels.nii.gz").write_bytes(base64.b64decode(data["views"][0]["labels"]))
    got = read_labels(tmp_path / "labels.nii.gz").volume
    whole = read_labels(paths.file("dseg", space="T1w", desc="aseg")).volume
    for index in (10, 49, 24):
        places = [v.grid.to_world(np.argwhere(v.data == index)).mean(0) for v in (got, whole)]
        assert np.allclose(*places, atol=1e-3) and (got.data == index).sum() > 0
    shipped = (files("bids_synthseg") / "data" / "viewer" / "niivue.umd.js").read_bytes()
    assert gzip.decompress(base64.b64decode(content("viewer-script"))) == shipped
    assert "BSD 2-Clause License" in text and "gl-matrix" in text


def test_the_script_is_the_one_whose_source_is_named():
    folder = files("bids_synthseg") / "data" / "viewer"
    checksum = hashlib.sha256((folder / "niivue.umd.js").read_bytes()).hexdigest()
    assert checksum in (folder / "README.md").read_text(encoding="utf-8")


def test_large_images_are_made_coarser_in_their_place(monkeypatch):
    grid = Grid((40, 50, 30), RAS_OBLIQUE)
    scan = np.zeros(grid.shape, np.uint8)
    scan[10:20, 30:40, 8:20] = 250
    view = View("T1w", Volume(scan, grid), Volume((scan > 0).astype(np.uint8), grid))
    assert view.reduced() is view
    monkeypatch.setattr(report_viewer, "MOST_VOXELS", 8000)
    small = view.reduced()
    assert np.prod(small.scan.grid.shape) <= 8000 and small.scan.data.dtype == np.uint8
    assert set(np.unique(small.labels.data)) == {0, 1} and small.labels.data.dtype == np.uint8
    middles = [
        volume.grid.to_world(np.argwhere(volume.data)).mean(0)
        for volume in (view.labels, small.labels)
    ]
    assert np.allclose(*middles, atol=1.0)


def test_older_outputs_have_no_maps_and_no_measures(raw, out, phantom_labels):
    paths = finish_session(raw, out, phantom_labels, ("01", None), ("T2w",), maps=False)
    for name in ("CITATION.md", "CITATION.bib", "config.toml"):
        (out / "logs" / name).unlink()
    paths.log.unlink()
    page, _ = read(raw, out, viewer="none")
    for words in (
        "Not judged",
        "No map of confidence was written",
        "Age unknown: not checked",
        "This output holds no measures",
        "logs/CITATION.md is missing",
    ):
        assert words in page.text, words
    assert "space-T1w" not in {a.get("id") for _, a in page.elements}


def test_a_session_that_failed_says_why(raw, out, phantom_labels):
    paths = finish_session(raw, out, phantom_labels)
    paths.record.write_text('{"Signature": null, "Outputs": {}}')
    with paths.log.open("a") as stream:
        stream.write(LOG_LINE.format("ERROR", "of an earlier run"))
        stream.write(LOG_LINE.format("DEBUG", "bids_synthseg 0.1.0, Python 3.11"))
        stream.write(LOG_LINE.format("ERROR", "sub-01: <the disk> is full"))
    page, _ = read(raw, out)
    assert "Not finished sub-01: <the disk> is full" in page.text
    assert "of an earlier run" not in page.text and "mL" not in page.text
    assert page.all("section", id="viewer") == [] and page.all("image") == []
    paths.record.unlink()
    assert "Not finished" in read(raw, out)[0].text


def test_edited_labels_are_named_so(raw, out, phantom_labels):
    paths = finish_session(raw, out, phantom_labels)
    sidecar = paths.file("dseg", ".json", space="T1w", desc="aseg")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"Manual": True}))
    page, _ = read(raw, out, viewer="none")
    assert page.text.count("The labels were edited by hand.") == 1


def test_a_scan_of_another_data_set(raw, out, phantom_labels, tmp_path):
    paths = finish_session(raw, out, phantom_labels)
    sidecar = paths.file("dseg", ".json", space="T1w", desc="aseg")
    about = json.loads(sidecar.read_text())
    about["SpatialReference"] = "bids:super:sub-01/anat/sub-01_T1w.nii.gz"
    sidecar.write_text(json.dumps(about))
    with pytest.raises(BadData, match="super"):
        write_report(raw, out, ("01", None))
    read(raw, out, viewer="none", table_of_links={"super": raw})


@pytest.mark.parametrize(
    ("harm", "error", "words"),
    [
        (lambda raw, paths: (raw / "sub-01/anat/sub-01_T1w.nii.gz").unlink(), InputMissing, "T1w"),
        (
            lambda raw, paths: nifti(np.ones((4, 5, 6), np.uint8)).to_filename(
                paths.file("dseg", space="T1w", desc="aseg")
            ),
            BadData,
            "another grid",
        ),
        (
            lambda raw, paths: nifti(np.zeros((20, 24, 18), np.uint8), RAS_OBLIQUE).to_filename(
                paths.file("dseg", space="T1w", desc="aseg")
            ),
            BadData,
            "aseg_dseg.nii.gz: holds no label",
        ),
        (
            lambda raw, paths: nifti(np.ones((4, 5, 6), np.uint8)).to_filename(
                paths.file("mask", space="T2w", desc="disagreement")
            ),
            BadData,
            "disagreement_mask.nii.gz: lies on another grid",
        ),
        (
            lambda raw, paths: paths.file("dseg", ".json", space="T1w", desc="aseg").unlink(),
            BadData,
            "SpatialReference",
        ),
        (
            lambda raw, paths: paths.file(
                "volumes", ".tsv", space="T1w", desc="aseg"
            ).write_text("index\tname\tvolume_mm3\nx\ty\tz\n"),
            BadData,
            "desc-aseg_volumes.tsv: not a table",
        ),
        (
            lambda raw, paths: (paths.output_dir / "logs/config.toml").write_text("= ="),
            BadData,
            "config.toml: not valid TOML",
        ),
    ],
)  # fmt: skip
def test_a_fault_is_one_line_that_names_the_file(raw, out, phantom_labels, harm, error, words):
    paths = finish_session(raw, out, phantom_labels)
    harm(raw, paths)
    with pytest.raises(error, match=words) as caught:
        write_report(raw, out, ("01", None), viewer="none")
    assert "\n" not in str(caught.value) and not paths.report.exists()


def test_nothing_known_of_the_session(raw, out):
    with pytest.raises(InputMissing, match=r"sub-09\.json"):
        write_report(raw, out, ("09", None))


def test_no_such_viewer(raw, out):
    with pytest.raises(UsageProblem, match="niivue, nilearn, none"):
        write_report(raw, out, ("01", None), viewer="fsleyes")


def test_the_same_input_gives_the_same_page(raw, out, phantom_labels):
    finish_session(raw, out, phantom_labels, details=JUDGED)
    assert read(raw, out)[1] == read(raw, out)[1]


def test_sessions_have_pages_of_their_own(bids_tree, phantom_image, phantom_labels, out):
    name = "sub-01_ses-1mo_T1w.nii.gz"
    raw = bids_tree({"sub-01": {"ses-1mo": {"anat": {name: nifti(phantom_image, RAS_OBLIQUE)}}}})
    finish_session(raw, out, phantom_labels, ("01", "1mo"), ("T1w",))
    path = write_report(raw, out, ("01", "1mo"), viewer="none")
    assert path == SessionPaths(out, "01", "1mo").report == out / "sub-01_ses-1mo.html"


@pytest.mark.parametrize("known", [(None, 400.0), (41.0, None), (41.0, 0.0), (5000.0, 1300.0)])
def test_no_curve_without_age_or_volume_or_beyond_it(known):
    assert draw_growth(*known) is None


def test_the_dot_lies_where_the_curve_says():
    picture = draw_growth(40.0, 300.0)
    assert picture.z < 0 and picture.expected_ml > 300
    corners = np.array([pair.split(",") for pair in picture.middle.split()], float)
    on_curve = np.interp(picture.x, corners[:, 0], corners[:, 1])
    assert picture.y > on_curve  # lower on the page
    above = draw_growth(40.0, 2 * picture.expected_ml)
    assert above.z > 0 and above.up.high > 2 * picture.expected_ml
    # A newborn is not lost in the corner of a curve that goes on to two years.
    assert picture.across.high < 70 < draw_growth(120.0, 1000.0).across.high
