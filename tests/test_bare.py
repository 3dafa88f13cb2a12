"""The training core on a bare machine: torch and numpy are all that it may ask for."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_samples import ball_map, tiny_config, trained

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.errors import UsageProblem
from bids_synthseg.learning import monitor, train
from bids_synthseg.learning.card import toml_of
from bids_synthseg.learning.pack import write_pack
from bids_synthseg.models.checkpoint import load_model

ABSENT = (
    "scipy", "nibabel", "cc3d", "safetensors", "sklearn", "click", "bids", "SimpleITK",
    "matplotlib", "tensorboard", "pandas", "PIL", "tqdm",
)  # fmt: skip

BARE = f"""
import importlib.machinery, runpy, sys

ABSENT = {ABSENT!r}
find = importlib.machinery.PathFinder.find_spec

class Bare:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        # As on a machine without these packages: no loader knows of them.
        return None if name.partition(".")[0] in ABSENT else find(name, path, target)

place = sys.meta_path.index(importlib.machinery.PathFinder)
sys.meta_path[place] = Bare
for name in ABSENT:
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    sys.exit(name + " is still there")

runpy.run_module("bids_synthseg.learning.train", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def bare(tmp_path):
    """bare(words, ...) -> what the bare entry did on a bare machine."""
    table = LabelTable.default()
    for name in ("training", "validation"):
        write_pack(tmp_path / f"{name}.npz", [ball_map("sub-01", name, scan=True)], table)

    def call(config, *words: object) -> subprocess.CompletedProcess:
        (tmp_path / "tiny.toml").write_text(toml_of(config))
        given = [tmp_path / "training.npz", tmp_path / "run", "--config", tmp_path / "tiny.toml"]
        given += ["--device", "cpu", "--validation", tmp_path / "validation.npz", *words]
        return subprocess.run(
            [sys.executable, "-c", BARE, *map(str, given)],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
        )

    return call


def test_it_trains_there_and_a_whole_machine_makes_the_model(bare, tmp_path, monkeypatch):
    config = tiny_config(coarse_steps=2)
    done = bare(config, "--checkpoint-piece-mib", 1)
    assert done.returncode == 0, done.stderr
    assert "safetensors is not installed" in done.stdout
    assert "step 4: Dice" in done.stdout and not done.stderr
    out = tmp_path / "run"
    state, _ = trained(out, config)
    assert state.step == 4
    assert not (out / train.MODEL).exists() and not (out / "preview.png").exists()

    monkeypatch.setattr(monitor, "_tensorboard", lambda *given: None)
    sources = train.Sources([tmp_path / "training.npz"], [tmp_path / "validation.npz"])
    written = load_model(train.run_training(sources, out, config)).network.state_dict()
    assert all(torch.equal(v, written[k]) for k, v in state.average.state_dict().items())


def test_a_model_to_start_from_needs_more(bare, tmp_path):
    done = bare(tiny_config(), "--init-from", "shipped")
    assert done.returncode == UsageProblem.exit_code
    assert done.stderr == "Error: shipped: to read models install safetensors\n"
    assert not (tmp_path / "run").exists()
