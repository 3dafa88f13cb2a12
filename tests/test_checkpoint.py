"""Model files: what is written comes back; what is broken is named with its cure."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.errors import BadData, InputMissing
from bids_synthseg.models.checkpoint import METADATA_KEY, Model, load_model, save_model
from bids_synthseg.models.heads import Head
from bids_synthseg.models.unet import NetworkConfig, UNet

HEAD = Head(LabelTable.default())


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    config = NetworkConfig((4, 8), 4, HEAD.n_channels, (1, 1), activation="elu")
    record = {"steps": 3, "config": {"shape": [16, 24, 16]}}
    return Model(UNet(config), HEAD, (16, 24, 16), 0.9, record)


@pytest.fixture
def stored(model, tmp_path):
    path = tmp_path / "new" / "model.safetensors"
    save_model(path, model)
    return path


def described(stored, change) -> None:
    """Rewrite the file with a changed description."""
    with safe_open(stored, "pt") as file:
        description = json.loads(file.metadata()[METADATA_KEY])
    change(description)
    save_file(load_file(stored), stored, metadata={METADATA_KEY: json.dumps(description)})


def test_round_trip(model, stored):
    read = load_model(stored)
    assert read.network.config == model.network.config
    assert (read.head, read.shape, read.fill) == (model.head, model.shape, model.fill)
    assert read.record == model.record
    image = torch.randn((1, 4, 16, 24, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(read.network(image), model.network(image))


def test_a_fixed_grid_is_kept(model, stored):
    assert load_model(stored).voxel_mm == 0
    save_model(stored, replace(model, voxel_mm=0.8))
    assert load_model(stored).voxel_mm == 0.8


def test_a_file_from_before_fixed_grids(model, stored):
    described(stored, lambda description: description.pop("voxel_mm"))
    read = load_model(stored)
    assert (read.voxel_mm, read.shape, read.fill) == (0.0, model.shape, model.fill)


def test_saving_replaces_in_one_step(model, stored):
    with torch.no_grad():
        model.network.heads[0].bias += 1
    save_model(stored, model)
    assert torch.equal(load_model(stored).network.heads[0].bias, model.network.heads[0].bias)
    assert [path.name for path in stored.parent.iterdir()] == [stored.name]


def test_missing_file(tmp_path):
    with pytest.raises(InputMissing, match=r"absent\.safetensors: no such weights file"):
        load_model(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 200, 0.5, -1])
def test_truncated_file(stored, kept):
    content = stored.read_bytes()
    stored.write_bytes(content[: int(kept * len(content)) if kept == 0.5 else kept])
    with pytest.raises(BadData, match="truncated") as caught:
        load_model(stored)
    assert str(stored) in str(caught.value) and "\n" not in str(caught.value)


def test_file_of_another_kind(stored):
    for content, words in (("hello " * 20, "no safetensors file"), ("<html>404", "a web page")):
        stored.write_text(content)
        with pytest.raises(BadData, match=words):
            load_model(stored)
    stored.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputMissing, match="git lfs pull"):
        load_model(stored)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_weights_of_another_program(stored, metadata):
    save_file({"weight": torch.zeros(3)}, stored, metadata=metadata)
    with pytest.raises(BadData, match="another program"):
        load_model(stored)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["network"].update(features=[4, 16]),
        lambda d: d["network"].update(convs=[2, 1]),
        lambda d: d["network"].update(novelty=1),
        lambda d: d.pop("labels"),
        lambda d: d["labels"].pop(),
        lambda d: d.update(head="joint"),
        lambda d: d["network"].update(norm="spectral"),
        lambda d: d.pop("record"),
        lambda d: d.update(voxel_mm="small"),
    ],
    ids=[
        "width",
        "depth",
        "new key",
        "no labels",
        "label lost",
        "head",
        "norm",
        "no record",
        "voxel",
    ],
)
def test_description_that_does_not_fit(stored, change):
    described(stored, change)
    with pytest.raises(BadData, match="do not fit") as caught:
        load_model(stored)
    assert str(stored) in str(caught.value) and "\n" not in str(caught.value)


def test_failed_write_leaves_the_old_file(model, stored, monkeypatch):
    before = stored.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(Exception, match="full"):
        save_model(stored, model)
    assert stored.read_bytes() == before
    assert [path.name for path in stored.parent.iterdir()] == [stored.name]
