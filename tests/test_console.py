"""What the command says where nobody listens, and the signals that end it."""

import signal
import subprocess
import sys
from pathlib import Path

import click
import fake_work
import pytest

from bids_synthseg import console
from bids_synthseg.bids.status import read_status

APP = f"{sys.executable} -m bids_synthseg"


def shell(line, cwd):
    return subprocess.run(line, shell=True, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_told_in_a_line(bids_tree, tmp_path):
    raw = bids_tree({"sub-01": {"anat": {"sub-01_T1w.nii.gz": None}}})
    done = shell(f"{APP} {raw} {tmp_path / 'out'} participant --dry-run > /dev/full", tmp_path)
    assert done.returncode == 74
    [line] = [line for line in done.stderr.splitlines() if "standard output" in line]
    assert line.startswith("Error: standard output: the disk or your quota is full")
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full", ">&- 2>&-", "2>&1 | true"])
def test_a_run_goes_on_where_nobody_listens(tmp_path, streams):
    script = tmp_path / "fake_done.py"
    script.write_text(FAKE_DONE)
    tests = Path(fake_work.__file__).parent
    line = f"PYTHONPATH={tests} {sys.executable} {script} {tmp_path} {streams}"
    done = shell(line, tests.parent)
    assert "Traceback" not in done.stdout + done.stderr
    if "|" not in streams:
        assert done.returncode == 0
    rows = read_status(tmp_path / "logs" / "status.tsv")
    assert [row["status"] for row in rows] == ["done", "done"]
    assert "inside sub-02" in (tmp_path / "logs" / "sub-02.log").read_text()


FAKE_DONE = """
import os, sys, time
from pathlib import Path
import click
import fake_work
from bids_synthseg import console
from bids_synthseg.execution import in_turn, run_sessions

@click.command()
@click.argument("out", type=click.Path(path_type=Path))
def command(out):
    os.environ["OMP_NUM_THREADS"] = "1"
    time.sleep(0.2)  # so that who reads a pipe has gone
    console.set_up_log()
    work = fake_work.FakeWork(out, {})
    return run_sessions(fake_work.GROUPS[:2], in_turn(work, out / "logs"), out)

sys.exit(console.run(command, sys.argv[1:]))
"""


@pytest.mark.parametrize("number", console.ENDING)
def test_signals_that_end_a_run(number, capsys):
    @click.command()
    def command():
        signal.raise_signal(number)

    before = signal.getsignal(number)
    assert console.run(command, []) == 143
    assert capsys.readouterr().err.strip() == f"Interrupted: ended by the signal {number.name}."
    assert signal.getsignal(number) == before


def test_a_signal_that_is_ignored_stays_so():
    """Under nohup."""

    @click.command()
    def command():
        signal.raise_signal(signal.SIGHUP)
        return 3

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert console.run(command, []) == 3
    finally:
        signal.signal(signal.SIGHUP, before)
