"""What NiBabies takes from trees made of dictionaries, what it ignores and why."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import nifti, write_tree

from bids_synthseg import console, workbench
from bids_synthseg.bids.nibabies import describe, queries, view_folder, why_ignored
from bids_synthseg.errors import InputMissing

pytestmark = pytest.mark.usefixtures("package_log")

LABELS = np.zeros((5, 6, 4), np.int16)
LABELS[1:3], LABELS[3] = 3, 42
MASK = (LABELS > 0).astype(np.uint8)
SCAN = np.random.default_rng(0).normal(100, 10, LABELS.shape).astype(np.float32)
REFERENCE = {"SpatialReference": "bids:raw:x"}
TISSUES = ("GM", "WM", "CSF")


def space(contrast, **changes):
    """Segmentation and mask of one space with their sidecars; `changes` by kind, None: left out."""
    names = {"aseg": "desc-aseg_dseg", "mask": "desc-brain_mask"}
    content = {"aseg": LABELS, "mask": MASK} | changes
    files = {}
    for kind, name in names.items():
        if content[kind] is not None:
            files[f"space-{contrast}_{name}.nii.gz"] = content[kind]
            files[f"space-{contrast}_{name}.json"] = REFERENCE
    return files


def transforms():
    return {f"from-{a}_to-{b}_mode-image_xfm.txt": "x" for a, b in (("T1w", "T2w"), ("T2w", "T1w"))}


def preproc(*contrasts, image=SCAN):
    return {f"desc-preproc_{contrast}.nii.gz": image for contrast in contrasts}


def tissues(*names, desc=""):
    return {f"space-T1w_label-{name}{desc}_probseg.nii.gz": SCAN / 200 for name in names}


def shifted(data):
    image = nifti(data)
    image.set_sform(image.affine @ np.diag([1, 1, 1.01, 1]))
    return image


@pytest.fixture
def derivatives(tmp_path):
    """derivatives(files of sub-01/anat, more=tree) -> root."""

    def make(files, more=()):
        description = {"Name": "x", "BIDSVersion": "1.10.0", "DatasetType": "derivative",
                       "GeneratedBy": [{"Name": "x"}]}  # fmt: skip
        anat = {f"sub-01_{name}": content for name, content in files.items()}
        tree = {"dataset_description.json": description, "sub-01": {"anat": anat}} | dict(more)
        return write_tree(tmp_path / "out", tree)

    return make


# Name -> files of a session, keys that find something, words of the problem ("": it is used),
# words of a warning.
CASES = {
    "one T1w": (space("T1w"), "t1w_aseg t1w_mask", "", ""),
    "one T2w": (space("T2w"), "t2w_aseg t2w_mask", "", ""),
    "both": (
        space("T1w") | space("T2w") | transforms(),
        "t1w_aseg t1w_mask t2w_aseg t2w_mask t1w2t2w_xfm t2w2t1w_xfm",
        "", "not used without t1w_preproc, t2w_preproc",
    ),
    "several T1w": (space("T1w") | preproc("T1w"), "t1w_aseg t1w_mask t1w_preproc", "", ""),
    "transforms in use": (
        space("T1w") | space("T2w") | transforms() | preproc("T1w", "T2w"),
        "t1w_aseg t1w_mask t1w_preproc t2w_aseg t2w_mask t2w_preproc t1w2t2w_xfm t2w2t1w_xfm",
        "", "",
    ),
    "one transform": (
        space("T1w") | preproc("T1w", "T2w") | {"from-T1w_to-T2w_mode-image_xfm.txt": "x"},
        "t1w_aseg t1w_mask t1w_preproc t2w_preproc t1w2t2w_xfm", "", "not used without t2w2t1w_xfm",
    ),
    "off the grid": (
        space("T1w") | preproc("T1w", image=shifted(SCAN)),
        "t1w_aseg t1w_mask t1w_preproc", "is not on the grid of sub-01_desc-preproc_T1w.nii.gz", "",
    ),
    "two runs": (
        space("T1w") | {"run-2_space-T1w_desc-aseg_dseg.nii.gz": LABELS},
        "t1w_aseg t1w_mask", "t1w_aseg: 2 files where NiBabies needs one", "",
    ),
    "also not zipped": (
        space("T1w") | {"space-T1w_desc-brain_mask.nii": MASK},
        "t1w_aseg t1w_mask", "t1w_mask: 2 files", "",
    ),
    "invisible seg": (
        space("T1w") | {
            "space-T1w_seg-native_dseg.nii.gz": LABELS,
            "space-T1w_seg-native_dseg.json": REFERENCE,
        },
        "t1w_aseg t1w_mask t1w_dseg", "is read as the GM, WM, CSF map but holds labels 0 to 42", "",
    ),
    "a tissue map": (
        space("T1w") | {"space-T1w_dseg.nii.gz": MASK},
        "t1w_aseg t1w_mask t1w_dseg", "", "must be 1 GM, 2 WM, 3 CSF",
    ),
    "all tissues": (
        space("T1w") | tissues(*TISSUES), "t1w_aseg t1w_mask t1w_tpms", "", "read in this order",
    ),
    "two tissues": (
        space("T1w") | tissues("GM", "WM"), "t1w_aseg t1w_mask t1w_tpms", "one each of GM", "",
    ),
    "tissues twice": (
        space("T1w") | tissues(*TISSUES) | tissues("GM", desc="_desc-soft"),
        "t1w_aseg t1w_mask t1w_tpms", "one each of GM, WM, CSF", "",
    ),
    "label 257": (
        space("T1w", aseg=LABELS + 215 * (LABELS == 42).astype(np.int16)),
        "t1w_aseg t1w_mask", "labels outside 0 to 255", "",
    ),
    "negative": (space("T1w", aseg=LABELS - 1), "t1w_aseg t1w_mask", "labels outside 0", ""),
    "fractional": (
        space("T1w", aseg=LABELS + np.float32(0.5)), "t1w_aseg t1w_mask", "not whole numbers", "",
    ),
    "no label": (space("T1w", aseg=0 * LABELS), "t1w_aseg t1w_mask", "", "has no label at all"),
    "surfaces": (
        space("T1w", aseg=LABELS + (LABELS == 3)), "t1w_aseg t1w_mask", "", "",
    ),
    "no surface code": (
        space("T1w", aseg=np.where(LABELS == 3, 80, LABELS)),
        "t1w_aseg t1w_mask", "", "unknown to the M-CRIB-S surfaces: 80",
    ),
    "mask of three values": (
        space("T1w", mask=2 * MASK), "t1w_aseg t1w_mask", "", "is not binary",
    ),
    "aseg alone": (space("T1w", mask=None), "t1w_aseg", "", "there is no t1w_mask"),
    "mask alone": (space("T2w", aseg=None), "t2w_mask", "", "there is no t2w_aseg"),
    "no sidecar": (
        {k: v for k, v in space("T1w").items() if k != "space-T1w_desc-aseg_dseg.json"},
        "t1w_aseg t1w_mask", "", "no JSON sidecar",
    ),
    "poor sidecar": (
        space("T1w") | {"space-T1w_desc-aseg_dseg.json": {"Manual": False}},
        "t1w_aseg t1w_mask", "", "no SpatialReference",
    ),
    "unreadable": (
        space("T1w", aseg=None) | {"space-T1w_desc-aseg_dseg.nii.gz": "no image"},
        "t1w_aseg t1w_mask", "not gzip data", "",
    ),
    "nothing in the right space": (
        {"space-orig_desc-aseg_dseg.nii.gz": LABELS, "desc-brain_mask.nii.gz": MASK},
        "", "neither a segmentation nor a mask", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_session(derivatives, name):
    files, keys, problem, warning = CASES[name]
    [view] = view_folder(derivatives(files))
    assert {one.key for one in view.findings if one.files} == set(keys.split())
    assert [one.key for one in view.findings] == list(queries())
    assert bool(view.problems) is bool(problem)
    assert problem in "; ".join(view.problems)
    warnings = "; ".join(text for one in view.findings for text in one.warnings)
    assert bool(warnings) is bool(warning)
    assert warning in warnings
    taken = {path for one in view.findings for path in one.files}
    images = {name for name in files if not name.endswith(".json")}
    assert {path.name[7:] for path in taken | {path for path, _ in view.ignored}} == images


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("space-T1w_desc-native_dseg.nii.gz", "desc-native is not desc-aseg"),
        ("space-T1w_desc-brainRaw_mask.nii.gz", "desc-brainRaw is not desc-brain"),
        ("space-T1w_mask.nii.gz", "it has no desc-brain"),
        ("space-orig_desc-asegT1w_dseg.nii.gz", "only space-T1w and space-T2w"),
        ("desc-aseg_dseg.nii.gz", "only space-T1w and space-T2w"),
        ("space-T1w_desc-posteriors_probseg.nii.gz", "label-GM"),
        ("space-T1w_desc-preproc_T1w.nii.gz", "without space-"),
        ("desc-brain_T2w.nii.gz", "desc-brain is not desc-preproc"),
        ("T1w.nii.gz", "it has no desc-preproc"),
        ("from-T1w_to-MNI_mode-image_xfm.h5", "between T1w and T2w"),
        ("desc-preproc_FLAIR.nii.gz", "FLAIR is nothing"),
    ],
)
def test_why_a_file_is_ignored(derivatives, name, words):
    assert words in why_ignored(Path(f"sub-01_{name}"))
    [view] = view_folder(derivatives(space("T2w") | {name: None}))
    assert [(path.name, words in reason) for path, reason in view.ignored] == [
        (f"sub-01_{name}", True)
    ]
    assert not view.problems


def in_session(session):
    files = space("T1w").items()
    return {f"sub-02_ses-{session}_{name}": content for name, content in files}


def test_sessions_subjects_and_files_outside(derivatives):
    loose = {f"sub-02_{name}": content for name, content in space("T2w").items()}
    sessions = {f"ses-{name}": {"anat": in_session(name)} for name in ("a", "b")}
    root = derivatives(space("T1w"), {"sub-02": sessions | {"anat": loose}, "sub-03": {"func": {}}})
    views = view_folder(root)
    assert [view.label for view in views] == ["sub-01", "sub-02 ses-a", "sub-02 ses-b", "sub-02"]
    assert [bool(view.problems) for view in views] == [False, False, False, True]
    assert views[-1].problems == ("its images lie outside the sessions of the subject",)
    assert len(views[-1].ignored) == 2
    assert [view.label for view in view_folder(root, ["sub-01"])] == ["sub-01"]
    with pytest.raises(InputMissing, match="no sub-09"):
        view_folder(root, ["01", "09"])
    with pytest.raises(InputMissing, match="no sub-3 "):
        view_folder(root, ["3"])
    with pytest.raises(InputMissing, match="no such folder"):
        view_folder(root / "nowhere")


def test_scratch_copies_count_but_hidden_folders_do_not(derivatives):
    copy = {"anat": {f"sub-01_{name}": content for name, content in space("T1w").items()}}
    root = derivatives(space("T1w"), {".work": {"sub-01": copy}})
    assert not view_folder(root)[0].problems
    write_tree(root, {"work": {"sub-01": copy}})
    assert "t1w_aseg: 2 files" in "; ".join(view_folder(root)[0].problems)


def test_what_is_printed(derivatives):
    root = derivatives(space("T1w", mask=None) | {"space-T1w_desc-native_dseg.nii.gz": None})
    assert describe(view_folder(root)[0]).splitlines() == [
        "sub-01: used",
        "  t1w_aseg     sub-01_space-T1w_desc-aseg_dseg.nii.gz (3 values, 0 to 42)",
        "               warning: there is no t1w_mask",
        "  t1w image    the raw T1w (there is no desc-preproc_T1w): the session must have one only",
        "  ignored      sub-01_space-T1w_desc-native_dseg.nii.gz: desc-native is not desc-aseg",
    ]


def test_command(derivatives, capsys):
    def call(*arguments):
        return console.run(workbench.command, ["check-nibabies", *map(str, arguments)])

    root = derivatives(space("T1w") | preproc("T1w"))
    assert call(root) == 0
    printed = capsys.readouterr().out
    assert "t1w_preproc  sub-01_desc-preproc_T1w.nii.gz" in printed
    assert "the raw T1w" not in printed
    assert printed.endswith("1 of 1 sessions would be used.\n")
    aseg = root / "sub-01/anat/sub-01_space-T1w_desc-aseg_dseg.nii.gz"
    aseg.with_name("sub-01_res-1_space-T1w_desc-aseg_dseg.nii.gz").write_bytes(aseg.read_bytes())
    assert call(root, "--participant-label", "01") == 1
    assert "sub-01: not used: t1w_aseg: 2 files" in capsys.readouterr().out
    assert call(root / "nowhere") == 66
    assert call(root, "--participant-label", "7") == 66
    assert json.loads((root / "dataset_description.json").read_text())["Name"] == "x"
