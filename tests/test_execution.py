"""Many sessions: what fails, what goes on, what is written down."""

import logging
from types import SimpleNamespace

import pytest

from bids_synthseg import execution
from bids_synthseg.bids.scans import ScanGroup
from bids_synthseg.errors import BadData, CannotCreate

GROUPS = [ScanGroup("01", "a", ()), ScanGroup("01", "b", ()), ScanGroup("02", None, ())]


@pytest.fixture(autouse=True)
def package_log(caplog):
    """The package's log at the level that the command gives it."""
    caplog.set_level(logging.INFO, "bids_synthseg")


def done(message=""):
    return SimpleNamespace(status="done", message=message)


def runner(outcomes):
    """A run_one that returns or raises what the label's outcome is, and notes the calls."""
    calls = []

    def run_one(group):
        calls.append(group.label)
        logging.getLogger("bids_synthseg.pipeline").debug("inside %s", group.label)
        outcome = outcomes.get(group.label, done())
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return run_one, calls


def statuses(output):
    rows = execution.read_status(output / "logs" / "status.tsv")
    return {(row["subject"], row["session"]): row for row in rows}


def test_all_done(tmp_path):
    run_one, calls = runner({"sub-02": done("2 scans")})
    assert execution.run_sessions(GROUPS, run_one, tmp_path) == 0
    assert calls == ["sub-01_ses-a", "sub-01_ses-b", "sub-02"]
    rows = statuses(tmp_path)
    assert list(rows) == [("sub-01", "ses-a"), ("sub-01", "ses-b"), ("sub-02", "n/a")]
    assert {row["status"] for row in rows.values()} == {"done"}
    assert rows["sub-02", "n/a"]["message"] == "2 scans"
    assert float(rows["sub-02", "n/a"]["peak_mb"]) > 1
    assert "inside sub-02" in (tmp_path / "logs" / "sub-02.log").read_text()
    assert "inside sub-02" not in (tmp_path / "logs" / "sub-01_ses-a.log").read_text()


def test_a_failure_does_not_stop_the_others(tmp_path, caplog):
    run_one, calls = runner(
        {"sub-01_ses-a": BadData("x.nii.gz: empty;\n copy it"), "sub-01_ses-b": KeyError("wm")}
    )
    assert execution.run_sessions(GROUPS, run_one, tmp_path) == 1
    assert len(calls) == 3
    rows = statuses(tmp_path)
    assert rows["sub-01", "ses-a"]["status"] == "failed"
    assert rows["sub-01", "ses-a"]["message"] == "x.nii.gz: empty; copy it"
    assert rows["sub-01", "ses-b"]["message"] == "unexpected KeyError: 'wm'"
    assert rows["sub-02", "n/a"]["status"] == "done"
    # The bug's traceback is in the session's log; the user's console gets a line.
    assert "Traceback" in (tmp_path / "logs" / "sub-01_ses-b.log").read_text()
    assert "Traceback" not in (tmp_path / "logs" / "sub-01_ses-a.log").read_text()
    shown = [r for r in caplog.records if r.levelno >= logging.INFO]
    assert not any(r.exc_info for r in shown)
    assert any("2 of 3 sessions failed" in r.getMessage() for r in shown)


def test_stop_on_first_crash(tmp_path):
    run_one, calls = runner({"sub-01_ses-a": BadData("x")})
    assert execution.run_sessions(GROUPS, run_one, tmp_path, stop_on_first_crash=True) == 1
    assert calls == ["sub-01_ses-a"]
    assert list(statuses(tmp_path)) == [("sub-01", "ses-a")]


def test_a_session_shows_as_running_meanwhile(tmp_path):
    seen = []

    def run_one(group):
        seen.append(statuses(tmp_path)["sub-02", "n/a"]["status"])
        return done()

    execution.run_sessions(GROUPS[2:], run_one, tmp_path)
    assert seen == ["running"]


def test_interruption_is_written_down_and_goes_on_up(tmp_path):
    run_one, calls = runner({"sub-01_ses-a": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        execution.run_sessions(GROUPS, run_one, tmp_path)
    assert calls == ["sub-01_ses-a"]
    assert statuses(tmp_path)["sub-01", "ses-a"]["status"] == "interrupted"


def test_earlier_rows_stay_and_are_replaced(tmp_path):
    run_one, _ = runner({"sub-02": BadData("broken")})
    execution.run_sessions(GROUPS, run_one, tmp_path)
    run_again, _ = runner({})
    assert execution.run_sessions(GROUPS[2:], run_again, tmp_path) == 0
    rows = statuses(tmp_path)
    assert len(rows) == 3
    assert rows["sub-02", "n/a"]["status"] == "done"
    assert "broken" in (tmp_path / "logs" / "sub-02.log").read_text()  # history is kept


def test_part_has_its_own_table(tmp_path):
    execution.run_sessions(GROUPS[:1], runner({})[0], tmp_path, part=3)
    assert [p.name for p in (tmp_path / "logs").glob("status*")] == ["status_part-3.tsv"]


@pytest.mark.parametrize(
    "text", ["something\telse\n1\t2\n", "\t".join(execution.COLUMNS) + "\nsub-01\n"]
)
def test_a_damaged_table_is_begun_anew(tmp_path, text, caplog):
    table = tmp_path / "logs" / "status.tsv"
    table.parent.mkdir()
    table.write_text(text)
    execution.run_sessions(GROUPS[2:], runner({})[0], tmp_path)
    assert list(statuses(tmp_path)) == [("sub-02", "n/a")]
    assert len([said for said in caplog.messages if f"begun anew, {table}" in said]) == 1


def test_logs_that_cannot_be_written(tmp_path):
    (tmp_path / "logs").write_text("a file where the folder should be")
    with pytest.raises(CannotCreate, match="logs"):
        execution.run_sessions(GROUPS, runner({})[0], tmp_path)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """machine(cgroup text, {file: text}, environment) -> available_cpus of a 16-core machine."""
    monkeypatch.setattr(execution.os, "sched_getaffinity", lambda _: range(16), raising=False)

    def cpus(proc="", files=None, environ=None):
        (tmp_path / "proc").write_text(proc)
        for name, text in (files or {}).items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return execution.available_cpus(environ or {}, tmp_path / "proc", tmp_path / "cgroup")

    return cpus


@pytest.mark.parametrize(
    ("proc", "files", "environ", "expected"),
    [
        ("", {}, {}, 16),
        ("", {}, {"SLURM_CPUS_PER_TASK": "3"}, 3),
        ("", {}, {"SLURM_CPUS_PER_TASK": "64"}, 16),
        ("", {}, {"SLURM_CPUS_PER_TASK": "x", "OMP_NUM_THREADS": "2"}, 2),
        # Version 2: the group itself is not limited, the one above it is.
        ("0::/job/a\n", {"job/a/cpu.max": "max 100000\n", "job/cpu.max": "400000 100000"}, {}, 4),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, {}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, {}, 1),
        # In a container the group's path is the host's: only the top is there.
        ("0::/docker/123\n", {"cpu.max": "500000 100000\n"}, {}, 5),
        # Version 1, -1 is no limit.
        (
            "3:cpu,cpuacct:/s\n2:memory:/m\n",
            {"cpu/s/cpu.cfs_quota_us": "600000\n", "cpu/s/cpu.cfs_period_us": "100000\n"},
            {},
            6,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, {}, 16),
    ],
)
def test_available_cpus(machine, proc, files, environ, expected):
    assert machine(proc, files, environ) == expected


def test_available_cpus_without_control_groups(tmp_path):
    assert execution.available_cpus({}, tmp_path / "none", tmp_path) >= 1
