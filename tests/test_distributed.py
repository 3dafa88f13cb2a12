"""Processes of their own: two that train one network over gloo, told to end, and one killed."""

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
from bids_synthseg.learning.states import saved_step
from bids_synthseg.models.unet import NetworkConfig

CPU = torch.device("cpu")

WATCHED = """
import os, sys, time
import torch
from bids_synthseg.learning import monitor, notice, step, train

place = f"{os.environ['SEEN']}/{os.environ.get('RANK', '0')}"
train.preview_sheet = lambda *given, **options: False
monitor._tensorboard = lambda *given: None
make_sample, train_step, validate = step.make_sample, train.train_step, train.validate
hear, heard = notice.Notice._hear, []
listens = os.environ.get("RANK") != os.environ.get("DEAF", "")

def watched_sample(material, config, number_of_step, number):
    sample = make_sample(material, config, number_of_step, number)
    with open(f"{place}-samples", "a") as stream:
        print(number_of_step, number, float(sample.image.double().sum()), file=stream)
    return sample

def watched_step(state, *rest):
    result = train_step(state, *rest)
    torch.save(state.network.state_dict(), f"{place}-{state.step}.pt")
    print("made step", state.step, flush=True)
    while listens and str(state.step) == os.environ.get("HOLD") and not heard:
        time.sleep(0.01)
    return result

def watched_hear(self, *given):
    if listens:
        heard.append(given)
        hear(self, *given)

def watched_validate(network, maps, *rest):
    with open(f"{place}-judged", "a") as stream:
        print(*(one.name for one in maps), sep="\\n", file=stream)
    return validate(network, maps, *rest)

step.make_sample, train.train_step = watched_sample, watched_step
train.validate, notice.Notice._hear = watched_validate, watched_hear
sys.exit(train.main(sys.argv[1:]))
"""
"""The bare entry; each process writes down its samples, the maps it judges, and its weights after
every step. After step HOLD it waits for a signal; rank DEAF hears none."""

# Without norms: they leave biases with gradients that are rounding errors, which Adam enlarges.
PLAIN = tiny_config(
    network=NetworkConfig(features=(4, 8), convs=(1, 1), norm="none"), steps=4, coarse_steps=2
)
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def packs(tmp_path_factory) -> list[Path]:
    """Maps to train on, and three to validate on."""
    folder = tmp_path_factory.mktemp("packs")
    table = LabelTable.default()
    for name, count in (("training", 2), ("validation", 3)):
        maps = [ball_map(f"sub-{k}", name, scan=True) for k in range(count)]
        write_pack(folder / f"{name}.npz", maps, table)
    return [folder / "training.npz", folder / "validation.npz"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Where the runs of this module lie, each in a folder of its own name."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def begin(place, packs):
    """begin(name, config, *launcher, **environment) -> the process of a run in folder `name`."""
    script = place / "watched.py"
    script.write_text(WATCHED)
    root = str(Path(__file__).parents[1])

    def call(name: str, config, *launcher: str, **more: str) -> subprocess.Popen:
        seen = place / f"{name}-seen"
        seen.mkdir(exist_ok=True)
        (place / f"{name}.toml").write_text(toml_of(config))
        words = [sys.executable, *launcher, script, packs[0], place / name]
        words += ["--config", place / f"{name}.toml", "--device", "cpu"]
        alone = {key: value for key, value in os.environ.items() if key != "WORLD_SIZE"}
        own = {"OMP_NUM_THREADS": "1", "SEEN": str(seen), "PYTHONPATH": root}
        return subprocess.Popen(
            [*words, "--validation", packs[1]],
            env=alone | own | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return call


@pytest.fixture(scope="module")
def both(begin) -> str:
    """A run of two processes that nothing disturbs, in folder "both": what it said."""
    return finish(begin("both", PLAIN, *TORCHRUN))


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def seen(place: Path, name: str, what: str, rank: int = 0) -> list[str]:
    """What a process wrote down."""
    return (place / f"{name}-seen" / f"{rank}-{what}").read_text().splitlines()


def weights(place: Path, name: str, step: int, rank: int = 0) -> torch.Tensor:
    """All of a process's weights after a step, in one row."""
    path = place / f"{name}-seen" / f"{rank}-{step}.pt"
    return torch.cat([v.flatten() for v in torch.load(path, weights_only=True).values()])


def metrics(place: Path, name: str) -> dict[tuple[str, str], float]:
    header, *lines = (place / name / "metrics.tsv").read_text().splitlines(keepends=True)
    assert header == HEADER
    rows = [line.split("\t") for line in lines]
    return {(step, what): float(value) for step, what, value in rows}


def test_two_processes_do_what_one_does_with_twice_the_batch(place, begin, both):
    finish(begin("alone", replace(PLAIN, batch=2)))

    first, second = (set(seen(place, "both", "samples", rank)) for rank in (0, 1))
    assert not first & second and len(first | second) == 8
    # Each sample's sum is part of its line: they are those that one process would have seen.
    assert first | second == set(seen(place, "alone", "samples"))

    for step in range(1, 5):
        first, second = (weights(place, "both", step, rank) for rank in (0, 1))
        assert torch.equal(first, second)
    moved = weights(place, "alone", 4) - weights(place, "alone", 3)
    apart = weights(place, "both", 4) - weights(place, "alone", 4)
    assert moved.abs().max() > 1e-4
    assert apart.abs().max() < 0.01 * moved.abs().max()

    # Every process judged its share of the maps; one of them wrote and spoke.
    judged = [seen(place, "both", "judged", rank) for rank in (0, 1)]
    assert judged == [["sub-0", "sub-2"], ["sub-1"]]
    ours, theirs = metrics(place, "both"), metrics(place, "alone")
    assert ours.keys() == theirs.keys() and ("4", "validation T1w") in ours
    for key in ours.keys() - {("4", "loss")}:
        assert ours[key] == pytest.approx(theirs[key], abs=0.01)
    assert both.count("step 2: the finest level is grown") == 1
    assert (place / "both" / "model.safetensors").is_file()
    assert "n = 3" in (place / "both" / "README.md").read_text()


def test_two_processes_are_told_to_end_and_go_on(place, begin, both):
    """torchrun gets SIGTERM, as from SLURM; of the processes one alone hears of it."""
    with begin("told", PLAIN, *TORCHRUN, HOLD="3", DEAF="0") as process:
        lines = iter(process.stdout.readline, "")
        while "made step 3\n" not in next(lines):
            pass
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=300)[1]
    assert process.returncode != 0 and "at step 3 of 4, with a checkpoint" in said
    assert saved_step(place / "told") == 3 and not (place / "told" / "model.safetensors").exists()
    assert "resumed at step 3" in finish(begin("told", PLAIN, *TORCHRUN))
    for rank in (0, 1):
        assert torch.equal(weights(place, "told", 4, rank), weights(place, "both", 4, rank))
    (_, ours), (_, theirs) = (trained(place / name, PLAIN) for name in ("told", "both"))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_process_that_is_killed(place, begin):
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

    (whole, ours), (parts, theirs) = (trained(place / n, config) for n in ("whole", "parts"))
    assert whole.step == parts.step == 12
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    files = [{p.name.split("-")[0] for p in (place / n).iterdir()} for n in ("whole", "parts")]
    assert files[0] == files[1]  # nothing of a checkpoint half written is left behind


class TestTeam:
    def test_a_lone_process(self, monkeypatch):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        with team(CPU) as crew:
            assert crew == Team(0, 1, CPU) and crew.leads
            network = torch.nn.Linear(1, 1)
            assert crew.wrap(network) is network
            assert crew.agree(True, False) == [True, False] and crew.gather([3]) == [3]
        assert not torch.distributed.is_initialized()

    def test_only_the_first_leads(self):
        assert [Team(rank, 3, CPU).leads for rank in range(3)] == [True, False, False]
