"""Packs: what goes in comes out, from one file, with torch and numpy alone."""

import ast
import io
import json
import subprocess
import sys
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_samples import ball_map

import bids_synthseg
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.errors import BadData, InputMissing, StorageProblem
from bids_synthseg.learning.features import FEATURES
from bids_synthseg.learning.pack import read_pack, write_pack
from bids_synthseg.synthesis.parts import MOST

TABLE = LabelTable.default()
VOLUMES = {"classes", "outside", "images"}


@pytest.fixture
def maps():
    """A map with a scan and all that may be known of it, and one without."""
    full = ball_map("sub-01_ses-a", "one", scan=True)
    source = replace(full.source, thresholds=np.full((1, 5, MOST, MOST - 1), np.inf, np.float32))
    features = np.linspace(1, 2, len(FEATURES), dtype=np.float32)
    features[3] = np.nan
    full = replace(
        full,
        subject="sub-01",
        source=source,
        features=features,
        age_weeks=37.5,
        split="training",
        licence="CC0",
    )
    return [full, ball_map("sub-02", "two")]


@pytest.fixture
def pack(tmp_path, maps):
    write_pack(tmp_path / "maps.npz", maps, TABLE)
    return tmp_path / "maps.npz"


def assert_equal(found, expected, but=()):
    """Every field of two dataclasses, types included."""
    for field in fields(expected):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        assert type(a) is type(b), field.name
        if field.name in but or field.name == "source":
            continue
        assert getattr(a, "dtype", None) == getattr(b, "dtype", None), field.name
        np.testing.assert_array_equal(a, b, err_msg=field.name)


def test_what_goes_in_comes_out(pack, maps):
    found, table = read_pack(pack)
    assert table == TABLE and len(found) == 2
    for one, expected in zip(found, maps, strict=True):
        assert_equal(one, expected)
        assert_equal(one.source, expected.source, but=("images", "outside"))
        assert one.source.images.dtype == torch.float16
        assert one.source.images.shape == expected.source.images.shape
    difference = (found[0].source.images - maps[0].source.images).abs()
    assert difference.max() <= 0.5 / 255 + 5e-4


@pytest.mark.parametrize("shape", [(8, 9, 10), (9, 8, 7), (1, 2, 3)])
def test_distances_are_filled_in(tmp_path, shape):
    """Linear ones exactly, but for the last voxel of a side of even length."""
    one = ball_map()
    classes = torch.zeros(shape, dtype=torch.uint8)
    outside = (10 + 4 * np.arange(shape[2])).astype(np.uint8) + np.zeros(shape, dtype=np.uint8)
    source = replace(one.source, classes=classes, outside=torch.from_numpy(outside))
    write_pack(tmp_path / "a.npz", [replace(one, source=source)], TABLE)
    found = read_pack(tmp_path / "a.npz")[0][0].source.outside.numpy()
    odd = shape[2] - 1 + shape[2] % 2
    assert found.shape == shape and found.dtype == np.uint8
    np.testing.assert_array_equal(found[..., :odd], outside[..., :odd])
    assert (np.abs(found.astype(int) - outside) <= 4).all()


def test_the_brain_has_no_distance_and_the_rest_has(pack, maps):
    (one, _), _ = read_pack(pack)
    brain = maps[0].source.classes > 0
    assert (one.source.outside[brain] == 0).all() and (one.source.outside[~brain] > 0).all()
    away = (one.source.outside.int() - maps[0].source.outside.int()).abs()
    assert away.max() <= 2 and (away > 1).float().mean() < 0.05


def test_surroundings_are_no_brain(tmp_path):
    one = ball_map()
    surrounding = np.arange(6) == 5
    source = replace(one.source, surrounding=surrounding)
    write_pack(tmp_path / "a.npz", [replace(one, source=source)], TABLE)
    found = read_pack(tmp_path / "a.npz")[0][0].source
    assert (found.outside[found.classes == 5] > 0).all()


def test_without_images(tmp_path, maps):
    write_pack(tmp_path / "small.npz", maps, TABLE, with_images=False)
    (one, _), _ = read_pack(tmp_path / "small.npz")
    assert one.source.contrasts == () and one.source.images.shape == (0, 1, 1, 1)
    assert one.source.thresholds.shape == (0, 5, MOST, MOST - 1)
    assert one.age_weeks == 37.5


def test_bad_packs_are_named_in_one_line(pack, tmp_path):
    whole = pack.read_bytes()
    plain = io.BytesIO()
    np.savez(plain, classes=np.zeros(3))
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    pickled = io.BytesIO()
    np.savez(pickled, about=np.array({"a": 1}, dtype=object))
    for name, content in {
        "empty": b"",
        "text": b"participant_id\n",
        "cut": whole[: len(whole) // 2],
        "cut_late": whole[:-10],
        "altered": whole[:2000] + bytes(50) + whole[2050:],
        "foreign": plain.getvalue(),
        "array": array.getvalue(),
        "pickled": pickled.getvalue(),
        "no_about": with_about(pack, {"format": None}),
        "missing": with_about(pack, lambda about: about | {"maps": about["maps"] * 2}),
    }.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(BadData) as caught:
            read_pack(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value), name
    with pytest.raises(InputMissing, match=r"none\.npz"):
        read_pack(tmp_path / "none.npz")


def with_about(pack: Path, about) -> bytes:
    """A pack with other words about it, or with those it has changed by a function."""
    content = io.BytesIO()
    with np.load(pack) as arrays:
        kept = {name: arrays[name] for name in arrays.files if name != "about"}
        words = about(json.loads(str(arrays["about"]))) if callable(about) else about
    np.savez(content, about=np.array(json.dumps(words)), **kept)
    return content.getvalue()


@pytest.mark.parametrize("key", ["format", "head_classes", "features"])
def test_a_pack_of_another_version(pack, tmp_path, key):
    path = tmp_path / "old.npz"
    path.write_bytes(with_about(pack, lambda about: about | {key: "other"}))
    with pytest.raises(BadData, match="packed by another version; pack"):
        read_pack(path)


def test_nothing_is_pickled(pack):
    with zipfile.ZipFile(pack) as archive:
        for name in archive.namelist():
            header = archive.read(name)[10:200].split(b"\n")[0].decode()
            assert "O" not in ast.literal_eval(header)["descr"]


def test_a_full_disk_leaves_the_old_pack(pack, maps, monkeypatch):
    kept = pack.read_bytes()

    def full(descriptor):
        raise OSError(28, "full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageProblem, match="full"):
        write_pack(pack, maps[:1], TABLE)
    assert pack.read_bytes() == kept and list(pack.parent.iterdir()) == [pack]


WALLED = (
    "scipy", "nibabel", "cc3d", "safetensors", "sklearn", "click", "pybids", "bids", "SimpleITK",
    "matplotlib", "nilearn", "tensorboard",
)  # fmt: skip
WALL = f"""
from importlib.machinery import PathFinder
real = PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.split(".")[0] in {WALLED} else real(name, path, target)
PathFinder.find_spec = find_spec
"""
"""Code that makes a Python look as if it had none of these."""

TRY = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from bids_synthseg.learning.datasets import load_maps
from bids_synthseg.learning.split import split_maps
import bids_synthseg.learning.train
maps, table = load_maps([Path({pack!r})], participants=["01"])
print(maps[0].name, len(split_maps(maps).training))
try:
    import scipy
except ModuleNotFoundError:
    print("walled")
"""


def test_torch_and_numpy_are_enough(pack):
    root = str(Path(bids_synthseg.__file__).parents[1])
    code = WALL + TRY.format(root=root, pack=str(pack))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["sub-01_ses-a", "1", "walled"]
