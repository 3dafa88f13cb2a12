"""weights/recipe/carry.py: a run goes to a machine with torch and numpy alone, and comes back."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_pack import WALL
from training_samples import ball_map

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.learning.pack import write_pack
from bids_synthseg.learning.states import INDEX, has_state, saved_step, state_files

ROOT = Path(__file__).parents[1]
CONFIG = """
shape = [8, 8, 8]
steps = 2
batch = 1
[network]
features = [4]
convs = [1]
"""

spec = importlib.util.spec_from_file_location("carry", ROOT / "weights" / "recipe" / "carry.py")
carry = importlib.util.module_from_spec(spec)
spec.loader.exec_module(carry)


@pytest.fixture
def parcel(tmp_path):
    """A folder made by `prepare`, of two small maps."""
    maps = [ball_map(), ball_map("sub-02")]
    write_pack(tmp_path / "some.npz", maps, LabelTable.default())
    (tmp_path / "tiny.toml").write_text(CONFIG)
    carry.prepare(tmp_path / "parcel", tmp_path / "some.npz", tmp_path / "tiny.toml")
    return tmp_path / "parcel"


@pytest.fixture
def run(tmp_path):
    """A folder like that of a run: a checkpoint of two pieces, and other files."""
    folder = tmp_path / "run"
    (folder / "tensorboard").mkdir(parents=True)
    for name in ("state-0000007-ab.000", "state-0000007-ab.001", "metrics.tsv", "pid", ".x.tmp"):
        (folder / name).write_text(name)
    digest = hashlib.sha256(b"state-0000007-ab.000state-0000007-ab.001").hexdigest()
    index = {
        "step": 7,
        "sha256": digest,
        "pieces": ["state-0000007-ab.000", "state-0000007-ab.001"],
    }
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.skipif(shutil.which("setsid") is None, reason="run.sh is for Linux")
def test_a_bare_machine_trains_and_hands_out(parcel, tmp_path):
    (parcel / "package" / "sitecustomize.py").write_text(WALL)
    environment = os.environ | {"PYTHON": sys.executable, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        ["bash", parcel / "run.sh", tmp_path / "out", "0.5"],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": ""},
        timeout=90,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    carry.collect(tmp_path / "out", tmp_path / "back")
    assert saved_step(tmp_path / "back") == 2
    assert {"metrics.tsv", "run.json", "log.txt"} <= names(tmp_path / "back")
    assert max(path.stat().st_size for path in (tmp_path / "out").iterdir()) < 16 * carry.MIB


def test_a_parcel_is_whole_and_git_ignores_it(parcel):
    assert (parcel / ".gitignore").read_text() == "*\n"
    assert names(parcel) == {
        ".gitignore", "carry.py", "config.toml", "maps.npz", "package", "run", "run.sh",
    }  # fmt: skip
    package = parcel / "package" / "bids_synthseg"
    assert (package / "data" / "labels.tsv").is_file() and not list(package.rglob("__pycache__"))
    assert (package / "weights" / "segmentation.safetensors").is_file()
    assert "@" not in (parcel / "run.sh").read_text().replace('"$@"', "")


def test_what_a_run_has_is_carried_and_comes_back(parcel, run, tmp_path):
    carry.prepare(parcel, tmp_path / "some.npz", tmp_path / "tiny.toml", run)
    assert names(parcel / "run") == {path.name for path in state_files(run)} | {"metrics.tsv"}
    out = tmp_path / "out"
    out.mkdir()
    (out / "state-0000001-cd.000").write_text("of an earlier call")
    carry.hand_out(parcel / "run", out)
    assert names(out) == {path.name for path in state_files(run)} | {"rest.tar"}
    carry.collect(out, tmp_path / "back")
    for path in (*state_files(run), run / "metrics.tsv"):
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()


def test_half_a_checkpoint_is_not_collected(run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    carry.hand_out(run, out)
    piece = out / "state-0000007-ab.001"
    piece.write_text("of another time")
    with pytest.raises(SystemExit, match="of several checkpoints"):
        carry.collect(out, tmp_path / "back")
    piece.unlink()
    with pytest.raises(SystemExit, match=r"state-0000007-ab\.001 did not come back"):
        carry.collect(out, tmp_path / "back")
    assert not has_state(tmp_path / "back")


def test_what_is_too_large_is_refused(parcel, tmp_path, monkeypatch):
    monkeypatch.setattr(carry, "MOST_MIB", 1)
    with pytest.raises(SystemExit, match="too large; pack fewer"):
        carry.prepare(parcel, tmp_path / "some.npz", tmp_path / "tiny.toml")


def test_options_reach_the_run(parcel, tmp_path):
    (tmp_path / "model.safetensors").touch()
    carry.prepare(
        parcel,
        tmp_path / "some.npz",
        tmp_path / "tiny.toml",
        validation=tmp_path / "some.npz",
        init_from=tmp_path / "model.safetensors",
    )
    script = (parcel / "run.sh").read_text()
    assert "--init-from init.safetensors --validation validation.npz" in script
    assert {"init.safetensors", "validation.npz"} <= names(parcel)
