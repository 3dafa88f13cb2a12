"""Which scan represents a contrast, why others are left out, and what is said when none is left."""

import json
import logging
import os
import re
from pathlib import Path

import pytest
from conftest import write_tree

from bids_synthseg.bids.query import find_scan_groups
from bids_synthseg.bids.scans import Scan, ScanGroup, choose_scans
from bids_synthseg.errors import BadData, InputMissing, NothingSelected, UsageProblem


def anat(*names):
    return {"anat": {f"{name}.nii.gz" if "." not in name else name: None for name in names}}


def names(groups):
    return {group.label: [scan.path.name.split(".")[0] for scan in group.scans] for group in groups}


@pytest.fixture
def dataset(bids_tree):
    return bids_tree(
        {
            "sub-01": {
                "ses-1mo": anat("sub-01_ses-1mo_T1w", "sub-01_ses-1mo_T2w"),
                "ses-2mo": anat("sub-01_ses-2mo_run-1_T1w", "sub-01_ses-2mo_run-2_T1w"),
            },
            "sub-02": anat("sub-02_T2w.nii"),
            "sub-03": {
                **anat("sub-03_acq-a_T1w"),
                "func": {"sub-03_task-rest_bold.nii.gz": None, "sub-03_T1w.nii.gz": None},
            },
            "derivatives": {"x": {"sub-02": anat("sub-02_desc-preproc_T2w")}},
            "sourcedata": {"sub-02": anat("sub-02_T1w")},
        }
    )


def test_sessions_and_subjects_without_sessions(dataset):
    groups = find_scan_groups(dataset)
    assert names(groups) == {
        "sub-01_ses-1mo": ["sub-01_ses-1mo_T1w", "sub-01_ses-1mo_T2w"],
        "sub-01_ses-2mo": ["sub-01_ses-2mo_run-1_T1w"],
        "sub-02": ["sub-02_T2w"],
        "sub-03": ["sub-03_acq-a_T1w"],
    }
    assert groups[2] == ScanGroup(
        "02", None, (Scan(dataset / "sub-02/anat/sub-02_T2w.nii", "T2w", {"sub": "02"}),)
    )
    assert list(groups[0].by_contrast) == ["T1w", "T2w"]
    assert list(groups[2].by_contrast) == ["T2w"]
    [(path, reason)] = groups[1].left_out
    assert path.name == "sub-01_ses-2mo_run-2_T1w.nii.gz"
    assert reason.startswith("sub-01_ses-2mo_run-1_T1w.nii.gz was taken: no run is preferred")


def test_labels_with_and_without_prefix(dataset):
    for participants in (["01"], ["sub-01"]):
        for sessions in (["2mo"], ["ses-2mo"]):
            groups = find_scan_groups(dataset, participants=participants, sessions=sessions)
            assert [group.label for group in groups] == ["sub-01_ses-2mo"]


def test_both_loose_files_and_sessions_of_a_subject(bids_tree):
    tree = {"sub-01": {**anat("sub-01_T1w"), "ses-a": anat("sub-01_ses-a_T1w")}}
    groups = find_scan_groups(bids_tree(tree))
    assert [group.session for group in groups] == [None, "a"]


def chosen(*scans, **options):
    """The choice of an anat folder that holds these T1w, given as their middle entities."""
    paths = [Path(f"sub-1{middle and '_'}{middle}_T1w.nii.gz") for middle in scans]
    group = choose_scans("1", None, paths, **options)
    assert {scan.path for scan in group.scans} | {path for path, _ in group.left_out} == set(paths)
    return group


@pytest.mark.parametrize(
    ("better", "worse", "words"),
    [
        ("rec-norm", "", "rec-norm"),
        ("", "rec-a", "no rec"),
        ("rec-a", "rec-b", "no rec"),
        ("rec-norm_run-2", "run-1", "rec-norm"),
        ("", "part-mag", "without part"),
        ("", "ce-gadolinium", "contrast agent"),
        ("", "echo-1", "no echo"),
        ("echo-2", "echo-10", "lowest"),
        ("acq-z", "echo-1", "no echo"),
        ("", "acq-mprage", "no acq"),
        ("acq-mprage_run-2", "acq-space_run-1", "first by name"),
        ("", "run-1", "no run"),
        ("run-2", "run-10", "lowest"),
        ("run-02", "run-3", "lowest"),
        ("run-1", "inv-2_run-1", "fewer entities"),
    ],
)
def test_rule(better, worse, words):
    for scans in ((better, worse), (worse, better)):
        group = chosen(*scans)
        assert [scan.path for scan in group.scans] == [
            Path(f"sub-1{better and '_'}{better}_T1w.nii.gz")
        ]
        assert words in group.left_out[0][1]


def test_all_scans_puts_the_representative_first():
    group = chosen("run-2", "part-phase_run-1", "acq-a_run-1", "run-1", all_scans=True)
    assert [scan.path.name[6:-11] for scan in group.scans] == ["run-1", "run-2", "acq-a_run-1"]
    assert [reason for _, reason in group.left_out] == ["part-phase is not a magnitude image"]


def test_derivatives_and_other_images_in_anat_are_left_out(bids_tree):
    root = bids_tree(
        {
            "sub-01": anat(
                "sub-01_T1w",
                "sub-01_T1w.nii",
                "sub-01_desc-preproc_T1w",
                "sub-01_space-MNI152NLin6Asym_T1w",
                "sub-01_res-2_T1w",
                "sub-01_FLAIR",
                "sub-01_desc-aseg_dseg",
                "sub-01_part-real_T2w",
                "sub-02_T2w",
                "sub-01_T1w.json",
            )
        }
    )
    [group] = find_scan_groups(root, all_scans=True)
    assert [scan.path.name for scan in group.scans] == ["sub-01_T1w.nii.gz"]
    assert {path.name.removesuffix(".gz"): reason for path, reason in group.left_out} == {
        "sub-01_T1w.nii": "the same name exists as .nii.gz",
        "sub-01_desc-preproc_T1w.nii": "a derivative (desc in its name), not a raw scan",
        "sub-01_space-MNI152NLin6Asym_T1w.nii": "a derivative (space in its name), not a raw scan",
        "sub-01_res-2_T1w.nii": "a derivative (res in its name), not a raw scan",
        "sub-01_FLAIR.nii": "suffix FLAIR is not T1w or T2w",
        "sub-01_desc-aseg_dseg.nii": "suffix dseg is not T1w or T2w",
        "sub-01_part-real_T2w.nii": "part-real is not a magnitude image",
        "sub-02_T2w.nii": "its name and its folder disagree about subject or session",
    }


def test_filters_have_the_meaning_of_pybids(bids_tree):
    scans = ("sub-01_acq-a_run-1_T1w", "sub-01_acq-a_run-02_T1w", "sub-01_acq-b_T1w", "sub-01_T1w")
    root = bids_tree({"sub-01": anat(*scans, "sub-01_T2w")})

    def taken(**t1w):
        [group] = find_scan_groups(root, filters={"t1w": t1w, "bold": {"task": "rest"}})
        assert group.by_contrast["T2w"]
        assert all(reason.startswith(("excluded", "sub-01")) for _, reason in group.left_out)
        return [scan.path.name[7:-7] for scan in group.by_contrast.get("T1w", [])]

    assert taken() == ["T1w"]
    assert taken(acquisition="a") == ["acq-a_run-1_T1w"]
    assert taken(acquisition=["b", "c"]) == ["acq-b_T1w"]
    assert taken(run=2) == ["acq-a_run-02_T1w"]
    assert taken(acquisition="*", run=None) == ["acq-b_T1w"]
    assert taken(acquisition=[None, "b"]) == ["T1w"]
    assert taken(acquisition="none-such") == []


def test_contrast_not_asked_for(dataset):
    [group] = find_scan_groups(dataset, participants=["01"], sessions=["1mo"], contrasts=["T2w"])
    assert [scan.suffix for scan in group.scans] == ["T2w"]
    assert group.left_out[0][1] == "T1w was not asked for"


def test_session_with_nothing_to_segment_is_said(bids_tree, caplog):
    root = bids_tree({"sub-01": anat("sub-01_FLAIR"), "sub-02": anat("sub-02_T1w")})
    with caplog.at_level(logging.WARNING):
        assert list(names(find_scan_groups(root))) == ["sub-02"]
    assert "sub-01: nothing to segment (sub-01_FLAIR.nii.gz: suffix FLAIR" in caplog.text


def test_nothing_found(dataset, bids_tree, tmp_path):
    def fails(kind, words, root=dataset, **options):
        with pytest.raises(kind, match=re.escape(words)) as caught:
            find_scan_groups(root, **options)
        assert str(root.name) in str(caught.value) and "\n" not in str(caught.value)

    fails(InputMissing, "no such folder", tmp_path / "nowhere")
    fails(NothingSelected, "no sub-09; there is: sub-01, sub-02, sub-03", participants=["01", "09"])
    fails(NothingSelected, "no ses-9; there is: ses-1mo, ses-2mo", sessions=["1mo", "9"])
    fails(NothingSelected, "loosen them", participants=["02"], contrasts=["T1w"])
    fails(NothingSelected, "loosen them", filters={k: {"run": 7} for k in ("t1w", "t2w")})
    empty = bids_tree({"sub-01": {"func": {}}, "sub-02": anat("sub-02_FLAIR")}, name="empty")
    fails(InputMissing, "no T1w or T2w", empty)
    fails(InputMissing, "no T1w or T2w", bids_tree({}, name="no-subjects"))
    (empty / "dataset_description.json").write_text("{")
    fails(BadData, "not valid JSON", empty)
    (empty / "dataset_description.json").unlink()
    fails(InputMissing, "BIDSVersion", empty)


def test_filters_that_make_no_sense(dataset):
    for filters in ({"t1w": {"acq": "a"}}, {"t1w": "sub-01"}):
        with pytest.raises(UsageProblem, match="t1w"):
            find_scan_groups(dataset, filters=filters)
    with pytest.raises(UsageProblem, match="FLAIR"):
        find_scan_groups(dataset, contrasts=["FLAIR"])


def test_prebuilt_index(dataset, tmp_path):
    from bids import BIDSLayout

    with pytest.raises(InputMissing, match=r"layout_index\.sqlite"):
        find_scan_groups(dataset, database_dir=tmp_path)
    BIDSLayout(dataset, validate=False, database_path=tmp_path / "index")
    (dataset / "sub-02/anat/sub-02_T1w.nii.gz").touch()
    indexed = find_scan_groups(dataset, database_dir=tmp_path / "index", participants=["02"])
    assert names(indexed) == {"sub-02": ["sub-02_T2w"]}
    moved = dataset.rename(tmp_path / "moved")
    dataset.mkdir()
    with pytest.raises(InputMissing, match="another folder"):
        find_scan_groups(moved, database_dir=tmp_path / "index")


def test_only_the_anat_folders_of_wanted_subjects_are_looked_at(dataset, monkeypatch):
    """What makes a data set of 24,000 files answer at once for one subject, also with filters."""
    from bids.layout.index import BIDSLayoutIndexer

    indexed, listed = [], []
    index_file, scandir = BIDSLayoutIndexer._index_file, os.scandir

    def spy(self, path, entities):
        indexed.append(Path(str(path)).relative_to(dataset).as_posix())
        return index_file(self, path, entities)

    def spy_folder(folder):
        if isinstance(folder, Path):  # pybids lists by other means
            listed.append(folder.relative_to(dataset).as_posix())
        return scandir(folder)

    monkeypatch.setattr(BIDSLayoutIndexer, "_index_file", spy)
    monkeypatch.setattr("os.scandir", spy_folder)
    find_scan_groups(dataset, participants=["03"])
    assert (listed, indexed) == ([".", "sub-03", "sub-03/anat"], [])
    find_scan_groups(dataset, participants=["03"], filters={"t1w": {"acquisition": "a"}})
    assert indexed == ["sub-03/anat/sub-03_acq-a_T1w.nii.gz"]


def test_hidden_files_and_odd_folders_do_not_matter(bids_tree):
    tree = {"sub-01": anat("sub-01_T1w", ".sub-01_T2w", "sub-01_T2w.nii.gz.part", "notes.txt")}
    root = bids_tree({**tree, "sub-02": None, "sub-03": {"anat": None, "ses-a": None}})
    for filters in (None, {"t1w": {"run": None}}):
        assert names(find_scan_groups(root, filters=filters)) == {"sub-01": ["sub-01_T1w"]}


def test_broken_json_elsewhere_does_not_matter(dataset):
    (dataset / "sub-02/anat/sub-02_T2w.json").write_text("{broken")
    (dataset / "participants.json").write_text(json.dumps([]))
    assert names(find_scan_groups(dataset, participants=["02"])) == {"sub-02": ["sub-02_T2w"]}


# Folders that cannot be listed: each is a problem of its own session, in words that name it.


@pytest.fixture
def many(bids_tree):
    """sub-01 without sessions, sub-02 with sessions a and b."""
    sessions = {f"ses-{name}": anat(f"sub-02_ses-{name}_T1w") for name in "ab"}
    return bids_tree({"sub-01": anat("sub-01_T1w"), "sub-02": sessions})


def problems(groups):
    return {group.label: group.problem for group in groups if group.problem}


@pytest.mark.parametrize(
    ("folder", "label"),
    [
        ("sub-01", "sub-01"),
        ("sub-01/anat", "sub-01"),
        ("sub-02", "sub-02"),
        ("sub-02/ses-a/anat", "sub-02_ses-a"),
    ],
)
@pytest.mark.parametrize(
    ("number", "words"),
    [(13, "no permission to read it"), (40, "leads back to itself"), (5, "cannot be read")],
)
def test_a_folder_that_cannot_be_listed(many, monkeypatch, folder, label, number, words):
    scandir = os.scandir

    def refuse(path):
        if Path(path) == many / folder:
            raise OSError(number, os.strerror(number))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    groups = find_scan_groups(many)
    assert list(problems(groups)) == [label]
    assert words in problems(groups)[label]
    assert problems(groups)[label].startswith(f"{many / folder}: ")
    others = {"sub-01": ["sub-01_T1w"]} | {
        f"sub-02_ses-{name}": [f"sub-02_ses-{name}_T1w"] for name in "ab"
    }
    done = {group.label: names([group])[group.label] for group in groups if not group.problem}
    assert done == {key: value for key, value in others.items() if not key.startswith(label)}


def test_links_of_folders_that_lead_nowhere(many):
    (many / "sub-03").symlink_to("gone")
    (many / "sub-04").symlink_to("sub-04")
    (many / "sub-05_notes.txt").symlink_to("gone")
    found = problems(find_scan_groups(many))
    assert found == {
        "sub-03": f"{many}/sub-03: the link leads nowhere; fetch the data ('datalad get')",
        "sub-04": f"{many}/sub-04: a link that leads back to itself; replace it",
    }
    assert problems(find_scan_groups(many, participants=["01"])) == {}


def test_a_broken_folder_of_derivatives_fails_its_own_subject(many, tmp_path, monkeypatch):
    """The raw scan in place of the one that was asked for would be wrong in silence."""
    root = write_tree(
        tmp_path / "svr",
        {"dataset_description.json": {"Name": "SVR"}, "sub-02": {"ses-a": {"anat": {}}}},
    )
    (root / "sub-02/ses-a/anat").rmdir()
    (root / "sub-02/ses-a/anat").symlink_to("anat")
    found = problems(find_scan_groups(many, derivatives={"svr": root}))
    assert list(found) == ["sub-02_ses-a"] and "leads back to itself" in found["sub-02_ses-a"]


@pytest.mark.parametrize("name", ["sub-0\t1", "sub-0\n1", b"sub-0\xe41", "sub-0\x1b1"])
def test_names_that_cannot_stand_in_a_table_are_left_out_and_said(many, name, caplog):
    folder = os.fsencode(many) + b"/" + os.fsencode(name)
    os.makedirs(folder + b"/anat")
    Path(os.fsdecode(folder + b"/anat/" + os.fsencode(name) + b"_T1w.nii")).touch()
    assert len(find_scan_groups(many)) == 3
    [message] = caplog.messages
    assert "left out, as its name holds" in message and message.isprintable()
    assert "sub-0\\" in message
