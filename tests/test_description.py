"""A model file's own words: complete, as TOML and as a table."""

import hashlib
from dataclasses import replace

import pytest
import torch

from bids_synthseg import console, workbench
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.models import registry
from bids_synthseg.models.checkpoint import Model, save_model
from bids_synthseg.models.description import facts, overview
from bids_synthseg.models.heads import Head
from bids_synthseg.models.unet import NetworkConfig, UNet
from bids_synthseg.toml import parse_toml

RECORD = {
    "version": "0.1.0",
    "steps": 470,
    "config": {"rate": 6e-4, "network": {"features": [2, 2]}, "weights": {"a b": 0.5}},
    "maps": ["newborns/sub-01", "adults/sub-01", "newborns/sub-02"],
    "terms": "CC0-1.0",
    "scores": {"T1w": 0.8},
    "soup": ["one", "two"],
}


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    head = Head(LabelTable.default())
    config = NetworkConfig((2, 2), channels_out=head.n_channels, convs=(1, 1))
    return Model(UNet(config), head, (16, 24, 16), 0.9, dict(RECORD), 0.8)


@pytest.fixture
def path(model, tmp_path):
    path = tmp_path / "fine.safetensors"
    save_model(path, model)
    return path


def test_all_that_is_recorded_is_told(path, model):
    told = facts(path)
    assert (told["name"], told["task"], told["file"]) == ("fine", "segmentation", str(path))
    assert told["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    # Finest level: 4 -> 2 channels; the next: 4 + 2 -> 2; kernels of 27, a bias, and two numbers
    # of the norm for each of two features. Two heads 2 -> 21, a lateral 2 -> 2, a decoder 2 -> 2.
    assert told["parameters"] == (218 + 4) + (326 + 4) + 2 * (42 + 21) + (4 + 2) + (110 + 4)
    assert told["grid"] == {"shape": [16, 24, 16], "voxel_mm": 0.8, "fill": 0.9}
    assert told["maps"] == {"adults": 1, "newborns": 2}
    assert told["labels"]["number"] == 34 and told["labels"]["head"] == "sided"
    assert told["labels"]["ids"] == LabelTable.default().ids.tolist()
    assert "brain stem" in told["labels"]["structures"]
    assert told["network"]["features"] == (2, 2)
    for key in ("version", "steps", "config", "terms", "scores"):
        assert told[key] == RECORD[key]
    assert told["record"] == {"soup": ["one", "two"]}
    assert model.record == RECORD


def test_what_is_not_recorded_is_said_to_be_missing(path, model):
    save_model(path, replace(model, record={}))
    told = facts(path)
    assert told["card"] == "none beside the file"
    assert told["terms"] == told["scores"] == told["steps"] == "not recorded"
    assert told["maps"] == told["config"] == {} and "record" not in told
    (path.parent / "README.md").touch()
    told = facts(path)
    assert told["card"] == str(path.parent / "README.md")
    assert told["terms"] == told["scores"] == "not recorded; see the card"


def test_the_command_shows_it_as_toml(path, capsys):
    assert console.run(workbench.command, ["weights", "show", str(path)]) == 0
    told = parse_toml(capsys.readouterr().out)
    expected = facts(path)
    expected["network"] = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in expected["network"].items()
    }
    assert told == expected


def test_an_overview_has_a_line_for_each(path, model):
    other = path.with_name("a-longer-name.safetensors")
    save_model(other, replace(model, record={}))
    header, first, second = overview([path, other]).splitlines()
    assert header.split() == ["name", "task", "parameters", "size_mib", "sha256", "steps"]
    assert first.split()[:3] == ["fine", "segmentation", "798"] and first.split()[-1] == "470"
    assert second.split()[0] == "a-longer-name" and second.split()[-1] == "not-recorded"
    assert len({line.index("segmentation") for line in (first, second)}) == 1


def test_the_command_lists_what_ships(path, monkeypatch, capsys):
    monkeypatch.setattr(registry, "shipped_folder", lambda: path.parent)
    assert console.run(workbench.command, ["weights", "list"]) == 0
    assert capsys.readouterr().out == overview([path]) + "\n"


def test_a_missing_or_broken_file_has_its_code(tmp_path, capsys):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no model")
    for name, code in ((tmp_path / "absent.safetensors", 66), ("no-such-name", 66), (broken, 65)):
        assert console.run(workbench.command, ["weights", "show", str(name)]) == code
        assert str(name) in capsys.readouterr().err
