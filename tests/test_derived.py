"""Scans out of data sets of derivatives: which count, and what becomes of the raw ones."""

from pathlib import Path

import pytest
from conftest import write_tree

from bids_synthseg.bids.plan import plan_text
from bids_synthseg.bids.query import find_scan_groups
from bids_synthseg.errors import BadData, InputMissing, NothingSelected, UsageProblem

DESCRIPTION = {"Name": "SVR", "BIDSVersion": "1.10.0", "DatasetType": "derivative"}


def anat(*names):
    return {"anat": {f"{name}.nii.gz" if "." not in name else name: None for name in names}}


@pytest.fixture
def raw(bids_tree):
    """Stacks of a fetus, and a subject with two sessions of T1w and T2w."""
    session = {s: anat(f"sub-02_ses-{s}_T1w", f"sub-02_ses-{s}_T2w") for s in ("a", "b")}
    return bids_tree(
        {
            "sub-01": anat("sub-01_run-1_T2w", "sub-01_run-2_T2w", "sub-01_T1w"),
            "sub-02": {f"ses-{s}": tree for s, tree in session.items()},
        }
    )


@pytest.fixture
def other(tmp_path):
    """other("svr", tree) -> a data set of derivatives."""

    def make(name, tree):
        return write_tree(tmp_path / name, {"dataset_description.json": DESCRIPTION, **tree})

    return make


def taken(groups):
    return {g.label: [(s.path.name.split(".")[0], s.data_set) for s in g.scans] for g in groups}


def reasons(group):
    return {path.name.split(".")[0]: reason for path, reason in group.left_out}


def test_a_derived_scan_takes_the_place_of_the_raw_ones(raw, other):
    svr = other("svr", {"sub-01": anat("sub-01_rec-svr_desc-brain_T2w", "sub-01_rec-svr_mask")})
    groups = find_scan_groups(raw, derivatives={"svr": svr})
    assert taken(groups) == {
        "sub-01": [("sub-01_T1w", "raw"), ("sub-01_rec-svr_desc-brain_T2w", "svr")],
        "sub-02_ses-a": [("sub-02_ses-a_T1w", "raw"), ("sub-02_ses-a_T2w", "raw")],
        "sub-02_ses-b": [("sub-02_ses-b_T1w", "raw"), ("sub-02_ses-b_T2w", "raw")],
    }
    why = "sub-01_rec-svr_desc-brain_T2w.nii.gz of --derivatives svr takes its place"
    assert reasons(groups[0]) == {"sub-01_run-1_T2w": why, "sub-01_run-2_T2w": why}
    assert [group.derived for group in groups] == [("T2w",), (), ()]


def test_sessions_that_only_derivatives_have(raw, other):
    tree = {
        "sub-01": {"ses-x": anat("sub-01_ses-x_T2w")},
        "sub-03": anat("sub-03_desc-svr_T2w.nii"),
        "sub-04": anat("sub-04_dseg"),
    }
    svr = other("svr", tree)
    groups = find_scan_groups(raw, derivatives={"svr": svr}, participants=["01", "03"])
    assert taken(groups) == {
        "sub-01": [("sub-01_T1w", "raw"), ("sub-01_run-1_T2w", "raw")],
        "sub-01_ses-x": [("sub-01_ses-x_T2w", "svr")],
        "sub-03": [("sub-03_desc-svr_T2w", "svr")],
    }
    groups = find_scan_groups(raw, derivatives={"svr": svr}, sessions=["x"])
    assert [group.label for group in groups] == ["sub-01_ses-x"]
    with pytest.raises(NothingSelected, match="no sub-03"):
        find_scan_groups(raw, participants=["03"])
    rows = plan_text(groups, raw).splitlines()
    assert rows[1].split("\t")[:4] == ["sub-01", "ses-x", str(groups[0].scans[0].path), "segmented"]


def test_what_is_no_scan_on_a_grid_of_its_own_is_left_out(raw, other):
    """As fMRIPrep writes it: its preprocessed T1w is taken, templates and maps are not."""
    names = ["desc-preproc_T1w", "space-MNI152NLin2009cAsym_res-1_desc-preproc_T1w"]
    names += ["space-T1w_desc-preproc_T2w", "space-T2w_desc-preproc_T2w", "label-GM_T2w"]
    names += ["desc-brain_mask", "label-GM_probseg", "part-phase_T1w"]
    prep = other("prep", {"sub-01": anat(*(f"sub-01_{name}" for name in names), "sub-09_T1w")})
    group, *_ = find_scan_groups(raw, derivatives={"prep": prep})
    assert taken([group])["sub-01"] == [
        ("sub-01_desc-preproc_T1w", "prep"),
        ("sub-01_space-T2w_desc-preproc_T2w", "prep"),
    ]
    assert group.derived == ("T1w", "T2w")
    own = "not the scan on a grid of its own ({} in its name)"
    derived = {name: why for name, why in reasons(group).items() if "takes its place" not in why}
    assert derived == {
        "sub-01_space-MNI152NLin2009cAsym_res-1_desc-preproc_T1w": own.format("res, space"),
        "sub-01_space-T1w_desc-preproc_T2w": own.format("space"),
        "sub-01_label-GM_T2w": own.format("label"),
        "sub-01_part-phase_T1w": "part-phase is not a magnitude image",
        "sub-09_T1w": "its name and its folder disagree about subject or session",
    }


def test_of_several_derived_scans_the_rule_takes_one_unless_all_are_wanted(raw, other):
    names = [f"sub-01_{n}_T2w" for n in ("desc-preproc", "desc-brain", "run-1_desc-preproc")]
    svr = other("svr", {"sub-01": anat(*names, "sub-01_T2w", "sub-01_T2w.nii")})
    for all_scans, expected in ((False, 1), (True, 4)):
        group, *_ = find_scan_groups(
            raw, derivatives={"svr": svr}, all_scans=all_scans, contrasts=["T2w"]
        )
        order = ["desc-preproc_T2w", "T2w", "desc-brain_T2w", "run-1_desc-preproc_T2w"]
        assert taken([group])["sub-01"] == [(f"sub-01_{n}", "svr") for n in order[:expected]]
        assert all(scan.path.suffix == ".gz" for scan in group.scans)
    assert reasons(group)["sub-01_run-1_T2w"].endswith("--derivatives svr takes its place")
    assert reasons(group)["sub-01_T1w"] == "T1w was not asked for"


def test_of_two_data_sets_the_last_named_counts(raw, other):
    one = other("one", {"sub-01": anat("sub-01_T2w", "sub-01_desc-preproc_T1w")})
    two = other("two", {"sub-01": anat("sub-01_rec-x_T2w")})
    for first, last in (("one", "two"), ("two", "one")):
        named = {name: {"one": one, "two": two}[name] for name in (first, last)}
        group, *_ = find_scan_groups(raw, derivatives=named, all_scans=True)
        assert {s.suffix: s.data_set for s in group.scans} == {"T1w": "one", "T2w": last}
        assert sum("--derivatives" in why for why in reasons(group).values()) == 4


def test_filters_and_quality_column_speak_of_raw_scans(raw, other):
    svr = other("svr", {"sub-01": anat("sub-01_rec-svr_T2w")})
    (raw / "sub-01" / "sub-01_scans.tsv").write_text(
        "filename\tlooks\nanat/sub-01_run-1_T2w.nii.gz\tfail\nanat/sub-01_T1w.nii.gz\tfail\n"
    )
    group, *_ = find_scan_groups(
        raw,
        derivatives={"svr": svr},
        filters={"t2w": {"run": 7}},
        quality_column="looks",
        participants=["01"],
    )
    assert taken([group]) == {"sub-01": [("sub-01_rec-svr_T2w", "svr")]}
    assert reasons(group) == {
        "sub-01_T1w": "its quality in scans.tsv is 'fail'",
        "sub-01_run-1_T2w": "excluded by the filter file",
        "sub-01_run-2_T2w": "excluded by the filter file",
    }


def test_bad_data_sets(raw, other, tmp_path):
    svr = other("svr", {})
    for name in ("raw", "a:b", "a/b", ""):
        with pytest.raises(UsageProblem, match="not a name to use"):
            find_scan_groups(raw, derivatives={name: svr})
    with pytest.raises(InputMissing, match=r"nowhere: no such folder"):
        find_scan_groups(raw, derivatives={"x": tmp_path / "nowhere"})
    (svr / "dataset_description.json").write_text("[")
    with pytest.raises(BadData, match=r"svr.dataset_description\.json: not valid JSON"):
        find_scan_groups(raw, derivatives={"svr": svr})
    (svr / "dataset_description.json").unlink()
    with pytest.raises(InputMissing, match="no BIDS data set"):
        find_scan_groups(raw, derivatives={"svr": svr})


def test_a_folder_of_edits_holds_no_scans(raw, tmp_path):
    """Nor need it be a BIDS data set."""
    write_tree(tmp_path / "mine", {"sub-01": anat("sub-01_desc-x_T1w")})
    groups = find_scan_groups(raw, derivatives={"edits": tmp_path / "mine"})
    assert groups == find_scan_groups(raw)


def test_paths_relative_to_where_the_user_is(raw, other, tmp_path, monkeypatch):
    other("svr", {"sub-01": anat("sub-01_T2w")})
    monkeypatch.chdir(tmp_path)
    group, *_ = find_scan_groups(Path("raw"), derivatives={"svr": Path("svr")})
    assert group.scans[1].path == tmp_path / "svr/sub-01/anat/sub-01_T2w.nii.gz"
