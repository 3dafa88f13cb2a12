"""Checkpoints: they restore exactly, and a kill, a full disk or a bad copy is survived or named."""

import json
import math
import signal
import subprocess
import sys

import pytest
import torch

from bids_synthseg import storage
from bids_synthseg.errors import BadData, StorageProblem
from bids_synthseg.learning import states
from bids_synthseg.learning.states import (
    INDEX,
    State,
    has_state,
    restore_state,
    save_state,
    saved_step,
    state_files,
)
from bids_synthseg.models.unet import NetworkConfig, UNet


def new_state(features=(4, 8), seed=0, **changes):
    torch.manual_seed(seed)
    config = NetworkConfig(features=features, convs=(1,) * len(features))
    network, average = UNet(config), UNet(config)
    return State(network, average, torch.optim.Adam(network.parameters()), **changes)


def trained_state(seed=1, **changes):
    """One step on, so that Adam has a memory to keep."""
    state = new_state(seed=seed, **changes)
    state.network(torch.ones(1, 4, 4, 4, 4)).square().sum().backward()
    state.optimiser.step()
    return state


def tensors(state):
    adam = state.optimiser.state_dict()["state"]
    return [
        *state.network.state_dict().values(),
        *state.average.state_dict().values(),
        *(value for memory in adam.values() for value in memory.values()),
    ]


def same(one, other):
    pairs = zip(tensors(one), tensors(other), strict=True)
    return one.step == other.step and all(torch.equal(a, b) for a, b in pairs)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("size", [0, 2000])
def test_everything_comes_back(tmp_path, monkeypatch, size):
    monkeypatch.setattr(states, "MIB", size)  # pieces of 2 kB: small networks have several as well
    saved = trained_state(step=7, best=0.5, minutes=2.5, judged=["| a |"])
    assert not has_state(tmp_path)
    save_state(tmp_path, saved, piece_mib=1 if size else 0)
    assert has_state(tmp_path) and saved_step(tmp_path) == 7
    *pieces, last = state_files(tmp_path)
    assert last.name == INDEX and names(tmp_path) == sorted([*(p.name for p in pieces), INDEX])
    lengths = [piece.stat().st_size for piece in pieces]
    if size:
        assert len(pieces) > 2 and set(lengths[:-1]) == {1999} and 0 < lengths[-1] < 2000
    else:
        assert len(pieces) == 1
    fresh = new_state(seed=5)
    assert fresh.best == -math.inf
    restore_state(tmp_path, fresh)
    assert same(fresh, saved)
    assert (fresh.best, fresh.minutes, fresh.judged) == (0.5, 2.5, ["| a |"])


def test_a_new_checkpoint_replaces_the_old(tmp_path):
    for step, piece_mib in ((1, 1), (2, 0), (2, 1)):
        saved = trained_state(seed=step, step=step)
        save_state(tmp_path, saved, piece_mib)
        assert len(names(tmp_path)) == 2
        fresh = new_state()
        restore_state(tmp_path, fresh)
        assert same(fresh, saved)


@pytest.mark.parametrize("failing", range(3), ids=["first piece", "second piece", "index"])
@pytest.mark.parametrize("step", [1, 2], ids=["same step", "next step"])
def test_a_full_disk_leaves_the_last_one(tmp_path, monkeypatch, failing, step):
    monkeypatch.setattr(states, "MIB", 50_000)  # so there are two pieces
    before = trained_state(step=1)
    save_state(tmp_path, before, 1)
    files = names(tmp_path)
    assert len(files) == 3
    calls = []

    def full(_: int) -> None:
        calls.append(0)
        if len(calls) > failing:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageProblem, match=r"state.*: the disk or your quota is full"):
        save_state(tmp_path, trained_state(seed=2, step=step), 1)
    assert names(tmp_path) == files
    fresh = new_state()
    restore_state(tmp_path, fresh)
    assert same(fresh, before)


def test_a_limit_of_the_system_is_one_line(tmp_path):
    """RLIMIT_FSIZE is real; it would stay with this process, so another one runs into it."""
    before = trained_state(step=1)
    save_state(tmp_path, before)
    code = (
        "import test_states as t, resource, pathlib, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "t.save_state(pathlib.Path(sys.argv[1]), t.trained_state(step=2))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        cwd=__file__.rpartition("/")[0],
        capture_output=True,
        text=True,
    )
    assert "StorageProblem" in done.stderr and "writing failed" in done.stderr
    fresh = new_state()
    restore_state(tmp_path, fresh)
    assert same(fresh, before) and len(names(tmp_path)) == 2


@pytest.mark.parametrize("moment", range(6))
def test_a_kill_leaves_a_complete_one(tmp_path, monkeypatch, moment):
    """Killed before or after each rename: what is found is the old checkpoint or the new one."""
    monkeypatch.setattr(states, "MIB", 50_000)
    before, after = trained_state(step=1), trained_state(seed=2, step=2)
    save_state(tmp_path, before, 1)
    real, calls = storage.os.replace, []

    class Killed(BaseException):
        pass

    def replace(*given):
        calls.append(0)
        if 2 * len(calls) - 1 > moment:
            raise Killed
        real(*given)
        if 2 * len(calls) > moment:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "replace", replace)
        patch.setattr(states, "_tidy", lambda folder: None)
        # A killed process does not clear up.
        patch.setattr("pathlib.Path.unlink", lambda *given, **options: None)
        with pytest.raises(Killed):
            save_state(tmp_path, after, 1)
    fresh = new_state()
    restore_state(tmp_path, fresh)
    assert same(fresh, after if moment == 5 else before)
    save_state(tmp_path, after, 1)
    assert len(names(tmp_path)) == 3  # and its remains are gone


def test_a_killed_process(tmp_path):
    """SIGKILL while checkpoints are written one after another: one of them is there, complete."""
    code = (
        "import test_states as t, pathlib, sys\n"
        "state = t.trained_state()\n"
        "while True:\n"
        "    state.step += 1\n"
        "    t.save_state(pathlib.Path(sys.argv[1]), state)\n"
        "    print(state.step, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path],
        cwd=__file__.rpartition("/")[0],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for _ in range(20):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    fresh = new_state()
    restore_state(tmp_path, fresh)
    assert fresh.step >= 20 and fresh.step == saved_step(tmp_path)


class TestBadCheckpoints:
    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.setattr(states, "MIB", 50_000)
        save_state(tmp_path, trained_state(step=1), 1)
        return tmp_path

    def refused(self, folder, complaint):
        with pytest.raises(BadData, match=complaint) as caught:
            restore_state(folder, new_state())
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"step": 1}', "null"])
    def test_the_index(self, folder, content):
        (folder / INDEX).write_text(content)
        self.refused(folder, r"state\.json: truncated, or no checkpoint")
        with pytest.raises(BadData, match=r"state\.json: truncated, or no checkpoint"):
            saved_step(folder)

    def test_a_piece_is_missing(self, folder):
        state_files(folder)[1].unlink()
        self.refused(folder, r"state-0000001-.*\.001: a piece of the checkpoint is missing")

    def test_a_piece_is_truncated(self, folder):
        piece = state_files(folder)[0]
        piece.write_bytes(piece.read_bytes()[:-1])
        self.refused(folder, r"state\.json: its pieces are truncated")

    @pytest.mark.parametrize("content", [b"hello", b"\x80\x02.", b"PK\x03\x04" + bytes(60)])
    def test_no_checkpoint_at_all(self, tmp_path, content):
        self.written(tmp_path, content)
        self.refused(tmp_path, "its pieces hold no checkpoint")

    @pytest.mark.parametrize("foreign", [{"epoch": 3}, [1, 2]], ids=["keys", "list"])
    def test_of_another_program(self, tmp_path, foreign):
        torch.save(foreign, tmp_path / "x")
        self.written(tmp_path, (tmp_path / "x").read_bytes())
        self.refused(tmp_path, "another architecture")

    def test_of_another_architecture(self, folder):
        with pytest.raises(BadData, match=r"state\.json: a checkpoint of another architecture"):
            restore_state(folder, new_state(features=(4, 16)))

    def written(self, folder, content):
        (folder / "x.000").write_bytes(content)
        sha256 = storage.file_sha256(folder / "x.000")
        index = {"step": 1, "sha256": sha256, "pieces": ["x.000"]}
        (folder / INDEX).write_text(json.dumps(index))
