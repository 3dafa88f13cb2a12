"""Sessions in processes of their own: which devices, what dies alone, what ends them all."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_work
import pytest
from fake_work import GROUPS, FakeWork

from bids_synthseg.bids import plan
from bids_synthseg.bids.scans import Scan, ScanGroup
from bids_synthseg.bids.status import read_status
from bids_synthseg.execution import run_sessions
from bids_synthseg.processes import OWN_MEMORY_MB, _death, fitting_processes, processes

PATIENCE_S = 120
SCANS = tuple(Scan.from_path(Path(f"sub-1_{suffix}.nii")) for suffix in ("T1w", "T2w"))
SESSIONS = [ScanGroup(str(number), None, SCANS[: 1 + number % 2]) for number in range(9)]
NEED_GB = plan.expected_memory_mb(SESSIONS[1]) / 1000


@pytest.fixture(autouse=True)
def environment(monkeypatch, caplog):
    """The engine tells the number of threads by the environment; commands let INFO through."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    caplog.set_level(logging.INFO, "bids_synthseg")


def statuses(out):
    rows = read_status(out / "logs" / "status.tsv")
    return {row["subject"]: (row["status"], row["message"]) for row in rows}


def pid_of(out, label):
    path = out / f"{label}.pid"
    return int(path.read_text() or 0) if path.exists() else 0


def is_running(pid):
    """False for a process that has ended, even if nobody has asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(what):
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


GB = 1.0
GPU2 = ["cuda:0", "cuda:1"]


@pytest.mark.parametrize(
    ("wanted", "n_groups", "n_cpus", "memory_gb", "devices", "expected"),
    [
        (None, 9, 8, 99 * GB, ["cpu"], 1),
        (None, 9, 8, 99 * GB, ["mps"], 1),
        (None, 9, 8, 99 * GB, ["cuda:1"], 2),
        (None, 9, 8, 99 * GB, GPU2, 4),
        (None, 9, 3, 99 * GB, GPU2, 3),
        (None, 9, 1, 99 * GB, GPU2, 1),
        (3, 9, 1, 99 * GB, ["cpu"], 3),
        (3, 2, 1, 99 * GB, ["cpu"], 2),
        (3, 0, 1, 99 * GB, ["cpu"], 1),
        (3, 9, 1, 2 * NEED_GB + OWN_MEMORY_MB / 1000 + 0.01, ["cpu"], 2),
        (3, 9, 1, 2 * NEED_GB + OWN_MEMORY_MB / 1000 - 0.01, ["cpu"], 1),
        # Too little for any: none begins.
        (None, 9, 8, NEED_GB / 2, GPU2, 4),
    ],
)
def test_how_many(wanted, n_groups, n_cpus, memory_gb, devices, expected, caplog):
    found = fitting_processes(wanted, SESSIONS[:n_groups], n_cpus, memory_gb, devices)
    assert found == expected
    assert ("as memory allows" in caplog.text) == (NEED_GB < memory_gb < 99)


@pytest.mark.parametrize(
    ("exit_code", "status", "words"),
    [
        (-9, "failed", "killed by signal 9 (SIGKILL), most likely for memory; give it more memory"),
        (-11, "failed", "killed by signal 11 (SIGSEGV), a crash in a library"),
        (143, "interrupted", "ended by a signal"),
        (1, "failed", "exit code 1"),
    ],
)
def test_what_is_said_of_a_death(exit_code, status, words):
    outcome = _death(exit_code)
    assert outcome.status == status and words in outcome.message


def test_what_dies_dies_alone(tmp_path, caplog):
    script = {"sub-01": "fail", "sub-02": int(signal.SIGKILL), "sub-03": "bug", "sub-05": "leave"}
    logs = tmp_path / "logs"
    engine = processes(FakeWork(tmp_path, script), 2, GPU2, 7, logs)
    assert run_sessions(GROUPS, engine, tmp_path) == 1
    rows = statuses(tmp_path)
    assert rows["sub-01"] == ("failed", "sub-01: cannot be used; replace it")
    assert rows["sub-02"][0] == "failed" and "SIGKILL" in rows["sub-02"][1]
    assert rows["sub-03"] == ("failed", "unexpected KeyError: 'sub-03'")
    assert rows["sub-05"] == ("failed", "its process ended unexpectedly with exit code 3")
    # Device in turn, and its share of the threads, as told to the work and to libraries.
    for label in ("sub-04", "sub-06"):
        status, message = rows[label]
        assert status == "done" and message in ("cuda:0 3 3", "cuda:1 3 3")
    pids = {pid_of(tmp_path, group.label) for group in GROUPS}
    assert os.getpid() not in pids
    assert len(pids) >= 3  # two, and one in place of the first that died
    assert not any(map(is_running, pids))
    # What a process logs is heard here, and stands in the log of its own session.
    for group in GROUPS:
        assert f"inside {group.label}" in caplog.messages
        text = (logs / f"{group.label}.log").read_text()
        assert [other.label for other in GROUPS if f"inside {other.label}" in text] == [group.label]
    assert "Traceback" in (logs / "sub-03.log").read_text()
    assert "Traceback" not in caplog.text


def test_stop_on_first_crash_abandons_what_runs(tmp_path):
    engine = processes(
        FakeWork(tmp_path, {"sub-01": "hang", "sub-03": "fail"}), 2, ["cpu"], 2, tmp_path / "logs"
    )
    assert run_sessions(GROUPS, engine, tmp_path, stop_on_first_crash=True) == 1
    rows = statuses(tmp_path)
    assert {label: status for label, (status, _) in rows.items()} == {
        "sub-01": "interrupted", "sub-02": "done", "sub-03": "failed"
    }  # fmt: skip
    assert rows["sub-01"][1] == "stopped as another session failed"
    assert not list(tmp_path.glob("*.txt")) and not list(tmp_path.glob(".*.tmp"))
    assert not is_running(pid_of(tmp_path, "sub-01"))


@pytest.mark.parametrize(
    ("number", "n_procs", "code", "words"),
    [
        (signal.SIGTERM, 1, 143, "ended by the signal SIGTERM"),
        (signal.SIGTERM, 2, 143, "ended by the signal SIGTERM"),
        (signal.SIGHUP, 1, 143, "ended by the signal SIGHUP"),
        (signal.SIGUSR1, 2, 143, "ended by the signal SIGUSR1"),
        (signal.SIGINT, 2, 130, "interrupted by the user"),
        (signal.SIGKILL, 2, -9, ""),
    ],
)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_signal_ends_all(tmp_path, number, n_procs, code, words):
    """In the middle of a session each; the signal goes to the parent alone."""
    call = [sys.executable, fake_work.__file__, str(tmp_path), str(n_procs)]
    labels = [group.label for group in GROUPS[:n_procs]]
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True) as app:
        try:
            wait_for(lambda: len(list(tmp_path.glob(".sub-*.txt.*.tmp"))) == n_procs)
            pids = [pid_of(tmp_path, label) for label in labels]
            assert all(map(is_running, pids))
            app.send_signal(number)
            errors = app.communicate(timeout=PATIENCE_S)[1]
        finally:
            app.kill()
    assert app.returncode == code, errors
    wait_for(lambda: not any(map(is_running, pids)))
    rows = statuses(tmp_path)
    if number == signal.SIGKILL:  # nobody is left to write anything
        assert rows == dict.fromkeys(labels, ("running", "n/a"))
        return
    assert rows == dict.fromkeys(labels, ("interrupted", words))
    assert not list(tmp_path.glob(".*.tmp")) and not list(tmp_path.glob("*.txt"))
    assert "Traceback" not in errors
