"""Names of files across data sets, and what a session's record keeps of an earlier run."""

import json

import pytest

from bids_synthseg.bids.provenance import SessionRecord, bids_uri, resolve_uri
from bids_synthseg.errors import BadData


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
    record = SessionRecord(tmp_path / "logs" / "sub-01.json", tmp_path)
    record.start()
    for name in ("a", "b"):
        record.add(tmp_path / name)
        (tmp_path / name).write_text(name)
    record.finish("one", {"Warnings": []})
    return record


def test_a_new_start_keeps_what_it_is_told_to(record, tmp_path):
    record.start(keep=[tmp_path / "a", tmp_path / "none of its own"])
    assert (tmp_path / "a").is_file() and not (tmp_path / "b").exists()
    assert record.finished_with() is None
    record.add(tmp_path / "c")
    (tmp_path / "c").write_text("ccc")
    record.finish("two")
    assert json.loads(record.path.read_text())["Outputs"] == {"a": 1, "c": 3}


def test_finished_with(record, tmp_path):
    assert record.finished_with() == "one"
    assert record.is_finished("one") and not record.is_finished("two")
    (tmp_path / "b").write_text("longer")
    assert record.finished_with() is None and not record.is_finished("one")
    assert SessionRecord(tmp_path / "logs" / "sub-02.json", tmp_path).finished_with() is None
