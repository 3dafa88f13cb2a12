"""The quality column of scans.tsv: numbers rank, some words drop, all else says nothing."""

import math
import re
from pathlib import Path

import pytest

from bids_synthseg.bids.quality_column import excludes, quality_rank, quality_score, read_quality
from bids_synthseg.bids.query import find_scan_groups
from bids_synthseg.errors import UsageProblem


@pytest.mark.parametrize(
    ("text", "score", "dropped"),
    [
        ("3", 3.0, False),
        (" -0.5 ", -0.5, False),
        ("pass", None, False),
        ("n/a", None, False),
        ("nan", None, False),
        ("inf", None, False),
        ("", None, False),
        (None, None, False),
        ("fail", None, True),
        ("Exclude ", None, True),
        ("REJECTED", None, True),
        ("failsafe", None, False),
    ],
)
def test_cells(text, score, dropped):
    assert quality_score(text) == score
    assert excludes(text) is dropped


def test_rank():
    one, two, three = map(Path, "abc")
    quality = {one: "1", two: "2", three: "fine"}
    assert quality_rank(two, quality) < quality_rank(one, quality) < quality_rank(three, quality)
    assert quality_rank(three, quality) == quality_rank(Path("none"), quality) == math.inf


def runs(*qualities, contrast="T1w"):
    """An anat folder of runs 1, 2, ... and the table that rates them; None: no row."""
    names = [f"sub-1_run-{n}_{contrast}.nii.gz" for n in range(1, len(qualities) + 1)]
    rows = [f"anat/{name}\t{text}" for name, text in zip(names, qualities, strict=True) if text]
    table = "\n".join(["filename\tqc", *rows, ""])
    return {"sub-1": {"anat": dict.fromkeys(names), "sub-1_scans.tsv": table}}


@pytest.mark.parametrize(
    ("qualities", "taken"),
    [
        (("1", "3", "2"), "2"),
        (("3", "3", "2"), "1"),  # equal: the names decide
        (("n/a", "-1", "n/a"), "2"),  # rated before unrated
        (("fail", "pass", "pass"), "2"),
        ((None, "fail", None), "1"),
        (("9", "10", "8"), "2"),  # numbers, not words
    ],
)
def test_choice(bids_tree, qualities, taken):
    [group] = find_scan_groups(bids_tree(runs(*qualities)), quality_column="qc")
    assert [scan.entities["run"] for scan in group.scans] == [taken]
    assert len(group.left_out) == 2
    reasons = {path.name[6:11]: reason for path, reason in group.left_out}
    for number, text in enumerate(qualities, start=1):
        if text == "fail":
            assert reasons[f"run-{number}"] == "its quality in scans.tsv is 'fail'"


def test_without_the_option_the_table_is_not_read(bids_tree):
    [group] = find_scan_groups(bids_tree(runs("1", "3")))
    assert [scan.entities["run"] for scan in group.scans] == ["1"]


def test_reason_and_order(bids_tree):
    root = bids_tree(runs("1", "3", "fail"))
    [group] = find_scan_groups(root, quality_column="qc")
    assert dict(group.left_out)[root / "sub-1/anat/sub-1_run-1_T1w.nii.gz"] == (
        "sub-1_run-2_T1w.nii.gz was taken: its quality in scans.tsv is 3, against 1"
    )
    [group] = find_scan_groups(root, quality_column="qc", all_scans=True)
    assert [scan.entities["run"] for scan in group.scans] == ["2", "1"]


def test_sessions_have_tables_of_their_own(bids_tree):
    table = "filename\tqc\nanat/sub-1_ses-{0}_run-2_T1w.nii\t5\n"
    root = bids_tree(
        {
            "sub-1": {
                f"ses-{name}": {
                    "anat": dict.fromkeys(f"sub-1_ses-{name}_run-{n}_T1w.nii" for n in (1, 2)),
                    **({f"sub-1_ses-{name}_scans.tsv": table.format(name)} if name == "a" else {}),
                }
                for name in ("a", "b")
            }
        }
    )
    groups = find_scan_groups(root, quality_column="qc")
    assert [group.scans[0].entities["run"] for group in groups] == ["2", "1"]


def check_problem(root, words):
    """A table that cannot be read fails its own session."""
    assert re.search(words, read_quality(root, [("1", None)], "qc")[1]["1", None])
    [group] = find_scan_groups(root, quality_column="qc")
    assert re.search(words, group.problem) and not group.scans


def test_rows_that_contradict_each_other_do_not_count(bids_tree, caplog):
    tree = runs("1", "1")
    name = "anat/sub-1_run-2_T1w.nii.gz"
    tree["sub-1"]["sub-1_scans.tsv"] += f"{name}\t5\n"
    [group] = find_scan_groups(bids_tree(tree), quality_column="qc")
    assert [scan.entities["run"] for scan in group.scans] == ["1"]
    assert "its rows for sub-1_run-2_T1w.nii.gz contradict each other (1, 5)" in caplog.text


def test_capitals_in_the_name_of_the_column(bids_tree):
    tree = runs("1", "3")
    tree["sub-1"]["sub-1_scans.tsv"] = tree["sub-1"]["sub-1_scans.tsv"].replace("qc", "QC")
    for column in ("qc", "QC"):
        [group] = find_scan_groups(bids_tree(tree), quality_column=column)
        assert [scan.entities["run"] for scan in group.scans] == ["2"]


def test_tables_that_cannot_be_used(bids_tree):
    root = bids_tree(runs("1"))
    with pytest.raises(UsageProblem, match=r"--quality-column stars: .* columns are: qc"):
        find_scan_groups(root, quality_column="stars")
    (root / "sub-1/sub-1_scans.tsv").write_text("file\tqc\n")
    check_problem(root, r"sub-1_scans\.tsv: has no column 'filename'")
    (root / "sub-1/sub-1_scans.tsv").write_text("filename\tqc\nanat/a.nii\n")
    check_problem(root, r"sub-1_scans\.tsv: line 2 has 1 cell")
    (root / "sub-1/sub-1_scans.tsv").write_bytes(b"\xff\xfe\xff")
    check_problem(root, r"sub-1_scans\.tsv: cannot be read")
    (root / "sub-1/sub-1_scans.tsv").unlink()
    with pytest.raises(UsageProblem, match="columns are: none"):
        read_quality(root, [("1", None)], "qc")
