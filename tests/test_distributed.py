"""Processes of their own: two that train one network over gloo, and one that is killed."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_samples import ball_map, tiny_config, trained

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.learning.card import toml_of
from bids_synthseg.learning.distributed import Team, team
from bids_synthseg.learning.monitor import HEADER
from bids_synthseg.learning.pack import write_pack
from bids_synthseg.models.unet import NetworkConfig

CPU = torch.device("cpu")

WATCHED = """
import os, sys
import torch
from bids_synthseg.learning import monitor, step, train

place = f"{os.environ['SEEN']}/{os.environ.get('RANK', '0')}"
train.preview_sheet = lambda *given, **options: False
monitor._tensorboard = lambda *given: None
make_sample, train_step, validate = step.make_sample, train.train_step, train.validate

def watched_sample(material, config, number_of_step, number):
    sample = make_sample(material, config, number_of_step, number)
    with open(f"{place}-samples", "a") as stream:
        print(number_of_step, number, float(sample.image.double().sum()), file=stream)
    return sample

def watched_step(state, *rest):
    result = train_step(state, *rest)
    torch.save(state.network.state_dict(), f"{place}-{state.step}.pt")
    print("made step", state.step, flush=True)
    return result

def watched_validate(network, maps, *rest):
    with open(f"{place}-judged", "a") as stream:
        print(*(one.name for one in maps), sep="\\n", file=stream)
    return validate(network, maps, *rest)

step.make_sample, train.train_step = watched_sample, watched_step
train.validate = watched_validate
sys.exit(train.main(sys.argv[1:]))
"""
"""The bare entry; each process writes down its samples, the maps it judges, and its weights after
every step."""


@pytest.fixture(scope="module")
def packs(tmp_path_factory) -> list[Path]:
    """Maps to train on, and three to validate on."""
    folder = tmp_path_factory.mktemp("packs")
    table = LabelTable.default()
    for name, count in (("training", 2), ("validation", 3)):
        maps = [ball_map(f"sub-{k}", name, scan=True) for k in range(count)]
        write_pack(folder / f"{name}.npz", maps, table)
    return [folder / "training.npz", folder / "validation.npz"]


@pytest.fixture
def begin(tmp_path, packs):
    """begin(name, config, launcher) -> the process of a run in folder `name`."""
    script = tmp_path / "watched.py"
    script.write_text(WATCHED)
    root = str(Path(__file__).parents[1])

    def call(name: str, config, *launcher: str) -> subprocess.Popen:
        place = tmp_path / f"{name}-seen"
        place.mkdir(exist_ok=True)
        (tmp_path / f"{name}.toml").write_text(toml_of(config))
        words = [sys.executable, *launcher, script, packs[0], tmp_path / name]
        words += ["--config", tmp_path / f"{name}.toml", "--device", "cpu"]
        alone = {key: value for key, value in os.environ.items() if key != "WORLD_SIZE"}
        return subprocess.Popen(
            [*words, "--validation", packs[1]],
            env=alone | {"OMP_NUM_THREADS": "1", "SEEN": str(place), "PYTHONPATH": root},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return call


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def seen(tmp_path: Path, name: str, what: str, rank: int = 0) -> list[str]:
    """What a process wrote down."""
    return (tmp_path / f"{name}-seen" / f"{rank}-{what}").read_text().splitlines()


def weights(tmp_path: Path, name: str, step: int, rank: int = 0) -> torch.Tensor:
    """All of a process's weights after a step, in one row."""
    path = tmp_path / f"{name}-seen" / f"{rank}-{step}.pt"
    return torch.cat([v.flatten() for v in torch.load(path, weights_only=True).values()])


def metrics(tmp_path: Path, name: str) -> dict[tuple[str, str], float]:
    header, *lines = (tmp_path / name / "metrics.tsv").read_text().splitlines(keepends=True)
    assert header == HEADER
    rows = [line.split("\t") for line in lines]
    return {(step, what): float(value) for step, what, value in rows}


def test_two_processes_do_what_one_does_with_twice_the_batch(tmp_path, begin):
    # Without norms: they leave biases with gradients that are rounding errors, which Adam enlarges.
    network = NetworkConfig(features=(4, 8), convs=(1, 1), norm="none")
    config = tiny_config(network=network, steps=4, coarse_steps=2)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    both = begin("both", config, *torchrun)
    said = finish(both)
    finish(begin("alone", replace(config, batch=2)))

    first, second = (set(seen(tmp_path, "both", "samples", rank)) for rank in (0, 1))
    assert not first & second and len(first | second) == 8
    # Each sample's sum is part of its line: they are those that one process would have seen.
    assert first | second == set(seen(tmp_path, "alone", "samples"))

    for step in range(1, 5):
        first, second = (weights(tmp_path, "both", step, rank) for rank in (0, 1))
        assert torch.equal(first, second)
    moved = weights(tmp_path, "alone", 4) - weights(tmp_path, "alone", 3)
    apart = weights(tmp_path, "both", 4) - weights(tmp_path, "alone", 4)
    assert moved.abs().max() > 1e-4
    assert apart.abs().max() < 0.01 * moved.abs().max()

    # Every process judged its share of the maps; one of them wrote and spoke.
    judged = [seen(tmp_path, "both", "judged", rank) for rank in (0, 1)]
    assert judged == [["sub-0", "sub-2"], ["sub-1"]]
    ours, theirs = metrics(tmp_path, "both"), metrics(tmp_path, "alone")
    assert ours.keys() == theirs.keys() and ("4", "validation T1w") in ours
    for key in ours.keys() - {("4", "loss")}:
        assert ours[key] == pytest.approx(theirs[key], abs=0.01)
    assert said.count("step 2: the finest level is grown") == 1
    assert (tmp_path / "both" / "model.safetensors").is_file()
    assert "n = 3" in (tmp_path / "both" / "README.md").read_text()


def test_a_process_that_is_killed(tmp_path, begin):
    """SIGKILL at any moment, while a checkpoint is written as well; the next run makes the rest."""
    config = tiny_config(steps=12, coarse_steps=4, checkpoint_minutes=0)
    finish(begin("whole", config))
    step, wait_s = random.randint(1, 6), random.uniform(0, 0.02)
    print(f"killed {wait_s:.4f} s after step {step}")
    with begin("parts", config) as process:
        while process.stdout.readline().strip() != f"made step {step}":
            assert process.poll() is None
        time.sleep(wait_s)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    said = finish(begin("parts", config))
    assert step == 1 or "resumed at step" in said  # the first checkpoint may not be there yet

    (whole, ours), (parts, theirs) = (trained(tmp_path / n, config) for n in ("whole", "parts"))
    assert whole.step == parts.step == 12
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    files = [{p.name.split("-")[0] for p in (tmp_path / n).iterdir()} for n in ("whole", "parts")]
    assert files[0] == files[1]  # nothing of a checkpoint half written is left behind


class TestTeam:
    def test_a_lone_process(self, monkeypatch):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        with team(CPU) as crew:
            assert crew == Team(0, 1, CPU) and crew.leads
            network = torch.nn.Linear(1, 1)
            assert crew.wrap(network) is network
            assert crew.agree((1, 2)) == (1, 2) and crew.gather([3]) == [3]
        assert not torch.distributed.is_initialized()

    def test_only_the_first_leads(self):
        assert [Team(rank, 3, CPU).leads for rank in range(3)] == [True, False, False]
