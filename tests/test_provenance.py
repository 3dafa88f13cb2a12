"""Names of files across data sets, and what a session's record keeps of an earlier run."""

import json

import pytest

from bids_synthseg.bids.provenance import SessionRecord, bids_uri, differences, resolve_uri
from bids_synthseg.errors import BadData
from bids_synthseg.storage import file_sha256


@pytest.fixture
def places(tmp_path):
    """Input, output nested in it, and two more data sets, of which one lies in the output."""
    raw = tmp_path / "raw"
    out = raw / "derivatives" / "x"
    return raw, out, {"svr": tmp_path / "svr", "own": out / "own", "all": raw / "derivatives"}


@pytest.mark.parametrize(
    ("name", "uri"),
    [
        ("raw/sub-01/a.nii", "bids:raw:sub-01/a.nii"),
        ("raw/derivatives/x/sub-01/a.nii", "bids::sub-01/a.nii"),
        ("raw/derivatives/x/own/a.nii", "bids:own:a.nii"),
        ("raw/derivatives/y/a.nii", "bids:all:y/a.nii"),
        ("raw/derivatives2/a.nii", "bids:raw:derivatives2/a.nii"),
        ("svr/sub-01/../sub-02/a.nii", "bids:svr:sub-02/a.nii"),
    ],
)
def test_the_innermost_data_set_names_a_file(tmp_path, places, name, uri):
    assert bids_uri(tmp_path / name, *places) == uri
    assert resolve_uri(uri, *places) == (tmp_path / name.replace("sub-01/../", ""))


def test_the_output_goes_before_a_link_to_itself(tmp_path):
    out = tmp_path / "out"
    assert bids_uri(out / "a.nii", tmp_path / "raw", out, {"again": out}) == "bids::a.nii"


def test_a_file_of_no_data_set(tmp_path, places):
    with pytest.raises(ValueError, match="neither"):
        bids_uri(tmp_path / "svr2" / "a.nii", *places)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("sub-01/a.nii", "no BIDS URI"),
        ("bids:sub-01/a.nii", "no BIDS URI"),
        ("https://example.org/a:b", "no BIDS URI"),
        ("bids:other:a.nii", "add --derivatives other=PATH"),
        ("bids:raw:../a.nii", "leads out"),
        ("bids:raw:/etc/passwd", "leads out"),
    ],
)
def test_what_leads_nowhere(places, uri, words):
    with pytest.raises(BadData, match=words) as caught:
        resolve_uri(uri, *places)
    assert "\n" not in str(caught.value) and uri in str(caught.value)


@pytest.fixture
def record(tmp_path):
    """The record of a finished session with outputs a and b."""
    outputs = {}
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        outputs[name] = file_sha256(tmp_path / name)
    path = tmp_path / "sub-01.json"
    path.write_text(json.dumps({"Signature": "one", "Outputs": outputs}))
    return SessionRecord(path, tmp_path)


def test_finished_with(record, tmp_path):
    assert record.finished_with() == "one"
    assert record.is_finished("one") and not record.is_finished("two")
    (tmp_path / "b").write_text("c")  # of equal size
    assert record.damaged(record.read()) == ["b"]
    assert record.finished_with() is None and not record.is_finished("one")
    assert SessionRecord(tmp_path / "sub-02.json", tmp_path).finished_with() is None


@pytest.mark.parametrize(
    "change",
    [
        {"Outputs": 5}, {"Outputs": ["a"]}, {"Outputs": {"a": 1}}, {"Outputs": None},
        {"Signature": 3}, {"MadeWith": []}, {"MadeWith": {"Inputs": 1}}, {"Warnings": "none"},
        {"Scans": 1}, {"LeftOut": [1]}, {"Edited": ""},
    ],
)  # fmt: skip
def test_what_this_app_did_not_write_is_no_record(record, change, caplog):
    record.path.write_text(json.dumps(record.read() | change))
    assert record.read() == {}
    assert f"no record ({next(iter(change))} " in caplog.text
    assert record.reason_to_skip({}, overwrite=False, redo_changed=False) is None


@pytest.mark.parametrize("text", ["[]", "{", "\x00", "[" * 100_000])
def test_damaged_json_is_no_record(record, text, caplog):
    record.path.write_text(text)
    assert record.read() == {} and "no record" in caplog.text


BASIS = {
    "Inputs": [["sub-01_T1w.nii", "1"], ["sub-01_T2w.nii", "2"]],
    "Version": "1.0",
    "WeightsSHA256": "0" * 64,
    "Options": {"write_preproc": "several", "preproc": ["T1w"]},
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"Options": BASIS["Options"] | {"write_preproc": "always"}},
         "write_preproc always; now several"),
        ({"Options": {}}, "write_preproc unknown, preproc unknown; now several, T1w"),
        ({"Options": {**BASIS["Options"], "edited": ["T1w", "T2w"]}}, "edited T1w+T2w; now not so"),
        ({"Version": "0.9", "WeightsSHA256": "ab" * 32},
         "version 0.9, weights abababababab; now 1.0, 000000000000"),
        ({"Inputs": [["sub-01_T1w.nii", "3"]]}, "another sub-01_T1w.nii; with no sub-01_T2w.nii"),
        ({"Inputs": [*BASIS["Inputs"], ["x.nii", "4"]]}, "x.nii as well"),
        ({"Inputs": BASIS["Inputs"][::-1]}, "scans in another order"),
        ({"Inputs": 3, "Options": 3}, "write_preproc unknown, preproc unknown; now several, T1w; "
         "with no sub-01_T1w.nii; with no sub-01_T2w.nii"),
    ],
)  # fmt: skip
def test_what_differs_from_the_run_before(change, words):
    assert differences(BASIS | change, BASIS) == f"done before with {words}"
