"""Locks between processes: one holder, free when it dies, no file left."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from bids_synthseg import claims
from bids_synthseg.claims import Claimed, claim, is_claimed, presence

HOLDER = """
import sys
from pathlib import Path
from bids_synthseg.claims import claim, presence
kind = {"claim": claim, "presence": presence}[sys.argv[1]]
with kind(Path(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held():
    """held(path, kind): another process that holds a lock until it is killed."""
    processes = []

    def hold(path, kind="claim"):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, kind, str(path)],
            cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        processes.append(process)
        assert process.stdout.readline() == b"held\n"
        return process

    yield hold
    for process in processes:
        process.kill()
        process.communicate()


def test_one_holder_at_a_time(tmp_path):
    path = tmp_path / "logs" / ".sub-01.lock"
    assert not is_claimed(path)
    with claim(path):
        assert is_claimed(path)
        with pytest.raises(Claimed, match="another run"), claim(path):
            pass
    assert not is_claimed(path) and not path.exists()


def test_a_claim_goes_with_its_process(tmp_path, held):
    path = tmp_path / ".lock"
    process = held(path)
    assert is_claimed(path)
    process.kill()
    with claim(path, wait=True):
        assert path.exists()
    assert not path.exists()


def test_who_is_alone(tmp_path, held):
    path = tmp_path / ".run.lock"
    process = held(path, "presence")
    with presence(path) as alone:
        assert not alone
    assert path.exists()  # of the other
    process.kill()
    process.wait()
    with presence(path) as alone:
        assert alone
    assert not path.exists()


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    claims._say_unlocked.cache_clear()
    for _ in range(2):
        with claim(tmp_path / "a"), claim(tmp_path / "a"), presence(tmp_path / "b") as alone:
            assert not alone
    assert len(caplog.messages) == 1 and "let one run at a time" in caplog.text
