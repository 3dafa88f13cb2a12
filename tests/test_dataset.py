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
from bids_synthseg.errors import UsageProblem
from bids_synthseg.storage import write_text


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
    assert f"written by version 0.0.1, this is {__version__}; sessions" in line


def test_a_folder_of_others_is_refused_and_untouched(raw, tmp_path):
    output = tmp_path / "out"
    for name in ("README.md", "sub-01/anat/notes.txt"):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("mine")
        with pytest.raises(UsageProblem, match=r"not empty, and holds README\.md") as caught:
            prepare_output(raw, output)
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in output.rglob("*") if path.is_file()) == [
        "README.md", "notes.txt",
    ]  # fmt: skip
    assert (output / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    "name",
    ["logs/slurm-1.out", "training/model.safetensors", ".bidsignore", "..probe.0123abcd.tmp",
     ".dataset_description.json.0123abcd.tmp"],
)  # fmt: skip
def test_what_this_app_writes_first_is_not_of_others(raw, tmp_path, name):
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).touch()
    write(raw, prepare_output(raw, tmp_path / "out"))


@pytest.mark.parametrize(
    "change",
    [{"GeneratedBy": 1}, {"GeneratedBy": [3]}, {"GeneratedBy": {}}, {"DatasetLinks": [1]},
     {"DatasetLinks": {"svr": 5}}, None],
)  # fmt: skip
def test_a_damaged_description_of_ours_is_written_anew(raw, tmp_path, change, caplog):
    output = prepare_output(raw, tmp_path / "out")
    write(raw, output)
    path = output / "dataset_description.json"
    whole = path.read_text()
    path.write_text(json.dumps(json.loads(whole) | change) if change else "{")
    if not change or "GeneratedBy" in change:
        with pytest.raises(UsageProblem):  # whose is it?
            prepare_output(raw, output)
        write_text(output / "logs" / "status.tsv", "")
    write(raw, prepare_output(raw, output))
    assert path.read_text() == whole
    assert not change or "GeneratedBy" in change or "DatasetLinks is damaged" in caplog.text
