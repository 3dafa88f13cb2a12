"""Trees of empty files, in the ways that real data sets name their scans, and what is picked.

After the BIDS example data sets (bids-standard/bids-examples), which hold names but no images.
"""

import json
import logging

import pytest
from conftest import write_tree

from bids_synthseg import cli, console
from bids_synthseg.bids.query import find_scan_groups

pytestmark = pytest.mark.usefixtures("package_log")

NO_SUFFIX = "suffix {} is not T1w or T2w"
DERIVATIVE = "a derivative ({} in its name), not a raw scan"

# Tree: paths below the root, without "sub-01_" or "sub-01_ses-a_" in the names and .nii.gz at the
# end; expected: path -> "" where it is segmented, else the reason why not.
TREES = {
    "sessions, of which one has a T2w alone": {
        "sub-01/ses-a/anat/T1w": "",
        "sub-01/ses-a/anat/T2w": "",
        "sub-01/ses-b/anat/T2w": "",
        "sub-02/anat/T1w": "",
    },
    "runs": {
        "sub-01/anat/run-01_T1w": "",
        "sub-01/anat/run-02_T1w": "sub-01_run-01_T1w.nii.gz was taken: no run",
        "sub-01/anat/run-10_T1w": "sub-01_run-01_T1w.nii.gz was taken: no run",
        "sub-01/anat/run-2_T2w": "",
    },
    "acquisitions and reconstructions": {
        "sub-01/anat/acq-highres_T1w": "sub-01_acq-highres_rec-norm_T1w.nii.gz was taken: rec-norm",
        "sub-01/anat/acq-highres_rec-norm_T1w": "",
        "sub-01/anat/rec-dis2d_T1w": "sub-01_acq-highres_rec-norm_T1w.nii.gz was taken: rec-norm",
        "sub-01/anat/acq-haste_T2w": "",
        "sub-01/anat/acq-tse_T2w": "sub-01_acq-haste_T2w.nii.gz was taken: no acq",
    },
    "multi-echo MPRAGE with its mean": {
        "sub-01/anat/echo-1_T1w": "sub-01_T1w.nii.gz was taken: no echo",
        "sub-01/anat/echo-2_T1w": "sub-01_T1w.nii.gz was taken: no echo",
        "sub-01/anat/T1w": "",
        "sub-01/anat/echo-2_T2w": "",
        "sub-01/anat/echo-10_T2w": "sub-01_echo-2_T2w.nii.gz was taken: no echo",
    },
    "magnitude, phase, real and imaginary parts": {
        "sub-01/anat/part-mag_T1w": "",
        "sub-01/anat/part-phase_T1w": "part-phase is not a magnitude image",
        "sub-01/anat/part-real_T2w": "part-real is not a magnitude image",
        "sub-01/anat/part-imag_T2w": "part-imag is not a magnitude image",
    },
    "chunks of one body and contrast agents": {
        "sub-01/anat/chunk-1_T1w": "sub-01_T1w.nii.gz was taken: fewer entities",
        "sub-01/anat/chunk-2_T1w": "sub-01_T1w.nii.gz was taken: fewer entities",
        "sub-01/anat/T1w": "",
        "sub-01/anat/ce-gadolinium_T2w": "sub-01_acq-late_T2w.nii.gz was taken: an image without",
        "sub-01/anat/acq-late_T2w": "",
    },
    "chunks alone: the first by name": {
        "sub-01/anat/chunk-1_T2w": "",
        "sub-01/anat/chunk-2_T2w": "sub-01_chunk-1_T2w.nii.gz was taken: fewer entities",
    },
    "MP2RAGE: the flat image with its inversions and maps": {
        "sub-01/anat/inv-1_MP2RAGE": NO_SUFFIX.format("MP2RAGE"),
        "sub-01/anat/inv-2_part-phase_MP2RAGE": NO_SUFFIX.format("MP2RAGE"),
        "sub-01/anat/UNIT1": NO_SUFFIX.format("UNIT1"),
        "sub-01/anat/T1map": NO_SUFFIX.format("T1map"),
        "sub-01/anat/acq-uni_T1w": "",
    },
    "other images of a clinical session": {
        "sub-01/anat/inplaneT2": NO_SUFFIX.format("inplaneT2"),
        "sub-01/anat/inplaneT1": NO_SUFFIX.format("inplaneT1"),
        "sub-01/anat/FLAIR": NO_SUFFIX.format("FLAIR"),
        "sub-01/anat/T2starw": NO_SUFFIX.format("T2starw"),
        "sub-01/anat/PDT2": NO_SUFFIX.format("PDT2"),
        "sub-01/anat/mod-T1w_defacemask": NO_SUFFIX.format("defacemask"),
        "sub-01/anat/T2w": "",
    },
    "derivatives in a raw anat folder": {
        "sub-01/anat/T1w": "",
        "sub-01/anat/desc-preproc_T1w": DERIVATIVE.format("desc"),
        "sub-01/anat/space-MNI152NLin6Asym_res-1_T1w": DERIVATIVE.format("res, space"),
        "sub-01/anat/desc-aseg_dseg": NO_SUFFIX.format("dseg"),
        "sub-01/anat/label-GM_probseg": NO_SUFFIX.format("probseg"),
    },
    "compressed beside uncompressed": {
        "sub-01/anat/T1w": "",
        "sub-01/anat/T1w.nii": "the same name exists as .nii.gz",
        "sub-01/anat/T2w.nii": "",
        "sub-01/anat/run-2_T2w": "sub-01_T2w.nii was taken: no run",
    },
    "names that belong elsewhere": {
        "sub-01/ses-a/anat/T1w": "",
        "sub-01/ses-a/anat/sub-01_ses-b_T1w": "its name and its folder disagree",
        "sub-01/ses-a/anat/sub-02_ses-a_T2w": "its name and its folder disagree",
    },
    "a fetus: stacks, of which the scanner's own reconstruction is taken": {
        "sub-01/anat/acq-haste_run-1_T2w": "sub-01_rec-norm_run-3_T2w.nii.gz was taken: rec-norm",
        "sub-01/anat/acq-haste_run-2_T2w": "sub-01_rec-norm_run-3_T2w.nii.gz was taken: rec-norm",
        "sub-01/anat/rec-norm_run-3_T2w": "",
    },
}
# In every tree, and never listed: not in an anat folder of a subject.
ELSEWHERE = [
    "sub-01/func/sub-01_task-rest_bold.nii.gz",
    "sub-01/fmap/sub-01_T1w.nii.gz",
    "sub-01/anat/sub-01_T1w.json",
    "sub-01/anat/more/sub-01_T1w.nii.gz",
    "sub-03/dwi/sub-03_dwi.nii.gz",
    "derivatives/fmriprep/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
    "sourcedata/sub-01/anat/sub-01_T1w.nii.gz",
    "code/sub-01_T1w.nii.gz",
    "participants.tsv",
]


def full(path):
    """The path with all that TREES leaves out."""
    *folders, name = path.split("/")
    if not name.startswith("sub-"):
        name = "_".join([*folders[:-1], name])
    return "/".join([*folders, name if name.endswith(".nii") else f"{name}.nii.gz"])


def make(bids_tree, paths):
    root = bids_tree({})
    for path in paths:
        write_tree(root, {path: None})
    return root


def plan(root, **options):
    """Path -> "" where it is segmented, else the reason."""
    found = {}
    for group in find_scan_groups(root, **options):
        for path, reason in [*((s.path, "") for s in group.scans), *group.left_out]:
            assert path.relative_to(root).as_posix() not in found
            found[path.relative_to(root).as_posix()] = reason
    return found


@pytest.mark.parametrize("name", TREES)
def test_the_plan_picks_what_the_rule_says(bids_tree, name):
    expected = {full(path): reason for path, reason in TREES[name].items()}
    found = plan(make(bids_tree, [*expected, *ELSEWHERE]))
    assert found.keys() == expected.keys()
    for path, reason in expected.items():
        assert found[path].startswith(reason) and bool(found[path]) == bool(reason), path


def test_all_scans_leaves_out_only_what_nobody_can_segment(bids_tree):
    for name in ("runs", "multi-echo MPRAGE with its mean", "derivatives in a raw anat folder"):
        root = make(bids_tree, map(full, TREES[name]))
    found = plan(root, all_scans=True)
    # Three trees in one: only derivatives and other suffixes stay out.
    assert {path.rpartition("_")[2] for path, reason in found.items() if reason} == {
        "T1w.nii.gz", "dseg.nii.gz", "probseg.nii.gz",
    }  # fmt: skip
    assert sum(not reason for reason in found.values()) == 9


def call(*arguments):
    return console.run(cli.command, console.spread([str(a) for a in arguments], cli.MANY))


def test_a_filter_that_selects_nothing(bids_tree, tmp_path, capsys, names_only):
    root = make(bids_tree, map(full, TREES["runs"]))
    filters = tmp_path / "filters.json"
    arguments = [root, tmp_path / "out", "participant", "--dry-run", "--bids-filter-file", filters]
    filters.write_text(json.dumps({"t1w": {"run": [2, 10]}, "t2w": {"run": None}}))
    assert call(*arguments) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    used = [row[2] for row in rows if row[3] == "segmented"]
    assert used == ["sub-01/anat/sub-01_run-02_T1w.nii.gz"]
    filters.write_text(json.dumps({"t1w": {"run": 7}, "t2w": {"acquisition": "*"}}))
    assert call(*arguments) == 18
    assert "leave no scan; loosen them" in capsys.readouterr().err
    filters.write_text("{'t1w': {}}")
    assert call(*arguments) in (64, 65)
    (line,) = capsys.readouterr().err.splitlines()
    assert "filters.json: not valid JSON" in line


@pytest.mark.parametrize(
    ("selection", "code", "words"),
    [
        (["--participant-label", "02"], 18, "there is no sub-02; there is: sub-01, sub-03"),
        (["--session-label", "a"], 18, "there is no ses-a; there is: none"),
        (["--contrast", "T2w", "--participant-label", "05"], 18, "leave no scan"),
        # A subject that is there, but has no anatomical scan.
        (["--participant-label", "03"], 66, "no T1w or T2w image in sub-03/anat"),
    ],
)
def test_labels_that_select_nothing(bids_tree, tmp_path, capsys, selection, code, words):
    root = make(bids_tree, [*map(full, TREES["chunks alone: the first by name"]), *ELSEWHERE])
    if "05" in selection:
        write_tree(root, {"sub-05/anat/sub-05_T1w.nii.gz": None})
    assert call(root, tmp_path / "out", "participant", "--dry-run", *selection) == code
    assert words in capsys.readouterr().err


def test_subjects_without_anatomical_scans_are_named(bids_tree, caplog):
    others = [f"sub-{label}/func/sub-{label}_bold.nii.gz" for label in "fbcdeag"]
    root = make(bids_tree, ["sub-01/anat/sub-01_T1w.nii.gz", *others])
    with caplog.at_level(logging.INFO):
        assert len(find_scan_groups(root)) == 1
    (line,) = caplog.messages
    assert line.endswith("left out: sub-a, sub-b, sub-c, sub-d, sub-e and 2 more")
