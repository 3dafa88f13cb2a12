"""What ships is verified: every kind of fault is found, named with its file, and has a code."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from handmade import locator

from bids_synthseg import console, workbench
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.errors import BadData, InputMissing
from bids_synthseg.models import registry
from bids_synthseg.models.checkpoint import Model, load_model, save_model
from bids_synthseg.models.heads import Head
from bids_synthseg.models.registry import (
    card_of,
    compare_checksums,
    find_model,
    forward_problem,
    read_manifest,
    verify_folder,
)
from bids_synthseg.models.unet import NetworkConfig, UNet


def small(head: Head, shape: tuple[int, int, int]) -> Model:
    torch.manual_seed(0)
    config = NetworkConfig((2, 2), channels_out=head.n_channels, convs=(1, 1))
    return Model(UNet(config), head, shape, 0.9, {"steps": 3})


def write_manifest(folder: Path) -> None:
    lines = (
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.glob("*.safetensors"))
    )
    (folder / "SHA256SUMS").write_text("".join(lines))


@pytest.fixture
def shipped(tmp_path, monkeypatch) -> Path:
    """A folder of a segmentation model, a locator and their manifest, taken for what ships."""
    folder = tmp_path / "weights"
    sided = Head(LabelTable.default())
    save_model(folder / "segmentation.safetensors", small(sided, (16, 24, 16)))
    save_model(folder / "locator.safetensors", small(locator().head, (16, 16, 16)))
    write_manifest(folder)
    monkeypatch.setattr(registry, "shipped_folder", lambda: folder)
    return folder


def change(path: Path, **changes) -> None:
    save_model(path, replace(load_model(path), **changes))


def spoil(path: Path) -> None:
    """One weight of a model file becomes NaN."""
    model = load_model(path)
    with torch.no_grad():
        model.network.heads[0].bias[1] = torch.nan
    save_model(path, model)


def call(*arguments) -> int:
    return console.run(workbench.command, ["weights", *map(str, arguments)])


def test_sound_models_are_verified(shipped, capsys):
    assert call("verify") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["locator.safetensors: OK", "segmentation.safetensors: OK"]
    assert lines[2].startswith("2 models, 0.0 of 60 MB") and len(lines) == 3


def flip_the_last_byte(folder):
    path = folder / "locator.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def truncate_knowingly(folder):
    path = folder / "locator.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    write_manifest(folder)


def spoil_knowingly(folder):
    spoil(folder / "segmentation.safetensors")
    write_manifest(folder)


def exchange_knowingly(folder):
    one, other = folder / "locator.safetensors", folder / "segmentation.safetensors"
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    write_manifest(folder)


def add_unlisted(folder):
    (folder / "third.safetensors").write_bytes((folder / "locator.safetensors").read_bytes())


def lose_listed(folder):
    (folder / "locator.safetensors").unlink()


def lose_the_manifest(folder):
    (folder / "SHA256SUMS").unlink()


def write_another_manifest(folder):
    (folder / "SHA256SUMS").write_text("404: Not Found\n")


def lose_unlisted(folder):
    (folder / "segmentation.safetensors").unlink()
    write_manifest(folder)


@pytest.mark.parametrize(
    ("harm", "code", "says"),
    [
        (flip_the_last_byte, 65, ["locator.safetensors: not the file that SHA256SUMS"]),
        (truncate_knowingly, 65, ["locator.safetensors: truncated"]),
        (spoil_knowingly, 65, ["its weights heads.0.bias are not finite"]),
        (exchange_knowingly, 65, ["locator.safetensors: is a model for another task",
                                  "segmentation.safetensors: is a model for another task"]),
        (add_unlisted, 65, ["third.safetensors: not in SHA256SUMS; run make weights-manifest"]),
        (lose_listed, 66, ["locator.safetensors: missing"]),
        (lose_unlisted, 66, ["segmentation.safetensors: missing"]),
        (lose_the_manifest, 66, ["SHA256SUMS: no manifest"]),
        (write_another_manifest, 65, ["SHA256SUMS: not the output of sha256sum"]),
    ],
)  # fmt: skip
def test_a_fault_is_found(shipped, capsys, harm, code, says):
    harm(shipped)
    assert call("verify") == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(says)
    for line, part in zip(lines, says, strict=True):
        assert part in line and str(shipped) in line


def test_the_sound_ones_are_named_beside_the_others(shipped, capsys):
    flip_the_last_byte(shipped)
    assert call("verify") == 65
    assert capsys.readouterr().out == "segmentation.safetensors: OK\n"


def test_all_models_together_have_a_limit(shipped, monkeypatch):
    size = sum(path.stat().st_size for path in shipped.glob("*.safetensors"))
    monkeypatch.setattr(registry, "LARGEST_BYTES", size)
    assert len(list(verify_folder(shipped))) == 3
    monkeypatch.setattr(registry, "LARGEST_BYTES", size - 1)
    with pytest.raises(BadData, match=r"2 models, .* ship fewer or smaller"):
        list(verify_folder(shipped))


def test_single_files_are_verified(shipped, tmp_path, capsys):
    own = tmp_path / "own.safetensors"
    own.write_bytes((shipped / "segmentation.safetensors").read_bytes())
    assert call("verify", own, "locator") == 0
    assert capsys.readouterr().out.splitlines() == [
        "own.safetensors: OK, with no checksum to compare", "locator.safetensors: OK"
    ]  # fmt: skip
    change(own, fill=0.0)
    assert call("verify", own) == 65
    assert f"{own}: cannot be used" in capsys.readouterr().err
    assert call("verify", tmp_path / "absent.safetensors") == 66


def test_probabilities_that_do_not_sum_to_one(shipped):
    model = load_model(shipped / "segmentation.safetensors")
    assert forward_problem(model) is None
    # A thalamus on the left alone loses what its head gives to the right.
    rows = [row for row in LabelTable.default().rows if row.index not in (10, 49)]
    lone = replace(LabelTable.default().rows[6], side="midline", mirror=10)
    assert lone.index == 10
    twice = LabelTable((*rows, lone, replace(lone, index=49, mirror=49)))
    found = forward_problem(replace(model, head=Head(twice)))
    assert found is not None and "miss a sum of 1" in found


def test_probabilities_that_are_not_finite(shipped):
    model = load_model(shipped / "locator.safetensors")
    with torch.no_grad():
        model.network.heads[0].bias += 3e38
        model.network.heads[1].bias += 3e38  # each is finite, their sum is not
    assert "not finite" in str(forward_problem(model))


def test_models_are_found_by_name_or_path(shipped, tmp_path):
    expected = shipped / "locator.safetensors"
    assert find_model("locator") == find_model("locator.safetensors") == expected
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"")
    assert find_model(str(other)) == other
    with pytest.raises(InputMissing, match=r"atlas: no such model.* locator, segmentation"):
        find_model("atlas")


def test_a_card_of_its_own_comes_before_that_of_the_folder(shipped):
    path = shipped / "locator.safetensors"
    assert card_of(path) is None
    for name in ("README.md", "locator.md"):
        (shipped / name).touch()
        assert card_of(path) == shipped / name
    assert card_of(shipped / "segmentation.safetensors") == shipped / "README.md"


def test_the_manifest_is_that_of_sha256sum(tmp_path):
    assert read_manifest(tmp_path) == {}
    text = f"{'a' * 64}  one file.safetensors\n{'0' * 64} *two.safetensors\n"
    (tmp_path / "SHA256SUMS").write_text(text)
    assert read_manifest(tmp_path) == {
        "one file.safetensors": "a" * 64, "two.safetensors": "0" * 64
    }  # fmt: skip
    compare_checksums(tmp_path, {"two.safetensors": "0" * 64, "unlisted": "b" * 64})
    with pytest.raises(BadData, match=r"two\.safetensors: not the file"):
        compare_checksums(tmp_path, {"two.safetensors": "1" * 64})


def test_shipped_weights_without_a_checksum_are_refused(tmp_path):
    with pytest.raises(InputMissing, match=r"names no checksum of a\.safetensors.* install"):
        compare_checksums(tmp_path, {"a.safetensors": "0" * 64}, shipped=True)
    compare_checksums(tmp_path, {"a.safetensors": "0" * 64})
