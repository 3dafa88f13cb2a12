"""The output as a data set: links to the data sets that it was made from, and its version."""

import json
import logging
from pathlib import Path

import pytest

from bids_synthseg import __version__
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.bids.dataset import (
    dataset_links,
    prepare_output,
    write_dataset_files,
    written_by,
)


@pytest.fixture
def raw(bids_tree):
    return bids_tree({})


def links(output):
    return json.loads((output / "dataset_description.json").read_text())["DatasetLinks"]


def sources(output):
    return json.loads((output / "dataset_description.json").read_text())["SourceDatasets"]


def write(raw, output, **named):
    write_dataset_files(raw, output, LabelTable.default(), named)


def test_links_are_relative_and_those_of_earlier_runs_stay(raw, tmp_path):
    output = prepare_output(raw, tmp_path / "here" / "out")
    assert dataset_links(output) == {} and written_by(output) is None
    write(raw, output, svr=tmp_path / "svr")
    assert links(output) == {"raw": "../../raw", "svr": "../../svr"}
    assert sources(output) == [{"URL": "bids:raw:"}, {"URL": "bids:svr:"}]
    write(raw, output)
    write(raw, output, edits=tmp_path / "here" / "mine", svr=tmp_path / "moved")
    assert links(output) == {"raw": "../../raw", "svr": "../../moved", "edits": "../mine"}
    assert dataset_links(output) == {
        "svr": tmp_path / "moved",
        "edits": tmp_path / "here" / "mine",
    }


def test_links_through_a_symbolic_link_and_from_elsewhere(raw, tmp_path, monkeypatch):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "out").mkdir()
    (tmp_path / "short").symlink_to(tmp_path / "deep" / "er" / "out")
    monkeypatch.chdir(tmp_path)
    write(raw, Path("short"), svr=Path("svr"))
    assert links(tmp_path / "short") == {"raw": "../../../raw", "svr": "../../../svr"}
    assert dataset_links(tmp_path / "short") == {"svr": tmp_path / "svr"}


def test_an_output_of_another_version_is_said_once(raw, tmp_path, caplog):
    output = tmp_path / "out"
    with caplog.at_level(logging.INFO):
        write(raw, prepare_output(raw, output))
        prepare_output(raw, output)
        assert not caplog.messages
        path = output / "dataset_description.json"
        path.write_text(path.read_text().replace(f'"{__version__}"', '"0.0.1"'))
        assert written_by(output) == "0.0.1"
        write(raw, prepare_output(raw, output))
        prepare_output(raw, output)
    (line,) = caplog.messages
    assert f"written by version 0.0.1, this is {__version__}; the sessions" in line


@pytest.mark.parametrize("value", [5, "x", {}, [1], {"a": 1}, [None]])
def test_entries_of_another_type_count_as_absent(raw, tmp_path, value, caplog):
    """They are said and written anew, and do not lock the folder for ever."""
    output = prepare_output(raw, tmp_path / "out")
    write(raw, output)
    (output / "logs").mkdir()
    (output / "logs" / "config.toml").touch()
    path = output / "dataset_description.json"
    for key in ("GeneratedBy", "DatasetLinks"):
        good = path.read_text()
        path.write_text(json.dumps(json.loads(good) | {key: value}))
        caplog.clear()
        assert prepare_output(raw, output) == output
        assert dataset_links(output) == {}
        if value and not (key == "DatasetLinks" and value == {}):
            assert f"{key} is not" in caplog.text
        write(raw, output)
        assert path.read_text() == good
