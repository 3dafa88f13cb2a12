"""Many sessions: what fails, what goes on, what is written down."""

import logging
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from bids_synthseg import execution
from bids_synthseg.bids import plan
from bids_synthseg.bids.scans import ScanGroup
from bids_synthseg.bids.status import COLUMNS, read_status, row_of, write_status
from bids_synthseg.claims import claim, session_claim
from bids_synthseg.errors import BadData, CannotCreate, TryAgainLater
from bids_synthseg.execution import Outcome, attempt, in_turn, run_sessions, within_memory

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


def run(groups, run_one, output, **more):
    return run_sessions(groups, in_turn(run_one, output / "logs"), output, **more)


def statuses(output):
    rows = read_status(output / "logs" / "status.tsv")
    return {(row["subject"], row["session"]): row for row in rows}


def test_all_done(tmp_path):
    run_one, calls = runner({"sub-02": done("2 scans")})
    assert run(GROUPS, run_one, tmp_path) == 0
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
    assert run(GROUPS, run_one, tmp_path) == 1
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


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 4 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_says_so(tmp_path, error):
    run_one, _ = runner({"sub-02": error})
    assert run(GROUPS, run_one, tmp_path) == 1
    message = statuses(tmp_path)["sub-02", "n/a"]["message"]
    assert message.startswith("out of memory; give the job more")


def test_stop_on_first_crash(tmp_path):
    run_one, calls = runner({"sub-01_ses-a": BadData("x")})
    assert run(GROUPS, run_one, tmp_path, stop_on_first_crash=True) == 1
    assert calls == ["sub-01_ses-a"]
    assert list(statuses(tmp_path)) == [("sub-01", "ses-a")]


def test_a_session_shows_as_running_meanwhile(tmp_path):
    seen = []

    def run_one(group):
        seen.append(statuses(tmp_path)["sub-02", "n/a"]["status"])
        return done()

    run(GROUPS[2:], run_one, tmp_path)
    assert seen == ["running"]


def test_interruption_is_written_down_and_goes_on_up(tmp_path):
    run_one, calls = runner({"sub-01_ses-a": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        run(GROUPS, run_one, tmp_path)
    assert calls == ["sub-01_ses-a"]
    assert list(statuses(tmp_path)) == [("sub-01", "ses-a")]
    row = statuses(tmp_path)["sub-01", "ses-a"]
    assert (row["status"], row["message"]) == ("interrupted", "interrupted by the user")
    assert "interrupted" in (tmp_path / "logs" / "sub-01_ses-a.log").read_text()
    assert len((tmp_path / "logs" / "status.tsv").read_text().splitlines()) == 2  # tidied


class Scripted:
    """An engine that yields what it is told and notes when it is closed."""

    def __init__(self, *events):
        self.events, self.closed = events, False

    def __call__(self, groups):
        try:
            for event in self.events:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            self.closed = True


A, B, C = GROUPS


def test_sessions_may_run_side_by_side_and_end_in_any_order(tmp_path):
    ends = [(B, Outcome("done", "x", 3.0, 700.0)), (C, Outcome("skipped")), (A, Outcome("failed"))]
    engine = Scripted((A, None), (B, None), ends[0], (C, None), *ends[1:])
    assert run_sessions(GROUPS, engine, tmp_path) == 1
    assert engine.closed
    rows = [tuple(row[name] for name in COLUMNS) for row in statuses(tmp_path).values()]
    assert rows == [
        ("sub-01", "ses-a", "failed", "0.0", "n/a", "n/a"),
        ("sub-01", "ses-b", "done", "3.0", "700", "x"),
        ("sub-02", "n/a", "skipped", "0.0", "n/a", "n/a"),
    ]


def test_stopping_on_a_crash_closes_the_engine(tmp_path, caplog):
    engine = Scripted((A, None), (B, None), (B, Outcome("interrupted")), (C, None))
    assert run_sessions(GROUPS, engine, tmp_path, stop_on_first_crash=True) == 1
    assert engine.closed
    rows = {key: (row["status"], row["message"]) for key, row in statuses(tmp_path).items()}
    assert rows["sub-01", "ses-a"] == ("interrupted", "stopped as another session failed")
    assert ("sub-02", "n/a") not in rows
    assert "2 sessions left" in caplog.text


def test_what_runs_when_the_engine_fails_is_written_down(tmp_path):
    engine = Scripted((A, None), (B, None), (A, Outcome("done")), TryAgainLater("tcp://x:\n lost"))
    with pytest.raises(TryAgainLater):
        run_sessions(GROUPS, engine, tmp_path)
    rows = {key: (row["status"], row["message"]) for key, row in statuses(tmp_path).items()}
    assert rows == {
        ("sub-01", "ses-a"): ("done", "n/a"),
        ("sub-01", "ses-b"): ("interrupted", "tcp://x: lost"),
    }


def test_an_outcome_is_one_of_four():
    with pytest.raises(ValueError, match="running"):
        Outcome("running")


def test_a_session_whose_log_cannot_be_written_fails(tmp_path):
    (tmp_path / "sub-02.log").mkdir()
    run_one, calls = runner({})
    outcome = attempt(C, run_one, tmp_path)
    assert outcome.status == "failed" and "sub-02.log" in outcome.message
    assert calls == []


def test_what_needs_too_much_memory_does_not_begin(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "MEMORY_MB", 1500.0)
    run_one, calls = runner({})
    large = {"01": 1.4, "02": 1.6}
    for subject, memory_gb in large.items():
        engine = within_memory(in_turn(run_one, tmp_path / "logs"), memory_gb)
        group = ScanGroup(subject, None, ())
        assert run_sessions([group], engine, tmp_path) == (memory_gb < 1.5)
    assert calls == ["sub-02"]
    message = statuses(tmp_path)["sub-01", "n/a"]["message"]
    assert message.startswith("needs about 1.5 GB of memory, there are 1.4; give the job more")


def test_earlier_rows_stay_and_are_replaced(tmp_path):
    run_one, _ = runner({"sub-02": BadData("broken")})
    run(GROUPS, run_one, tmp_path)
    run_again, _ = runner({})
    assert run(GROUPS[2:], run_again, tmp_path) == 0
    rows = statuses(tmp_path)
    assert len(rows) == 3
    assert rows["sub-02", "n/a"]["status"] == "done"
    assert "broken" in (tmp_path / "logs" / "sub-02.log").read_text()  # history is kept


def test_a_session_of_another_run_is_waited_for(tmp_path, monkeypatch, caplog):
    """The second of three is being done elsewhere, and is there when this run looks again."""
    logs = tmp_path / "logs"
    run_one, calls = runner({})
    other = ExitStack()
    other.enter_context(claim(session_claim(logs, "sub-01_ses-b")))
    looks = []

    def sleep(seconds):
        looks.append(dict(statuses(tmp_path)))
        if len(looks) == 2:
            other.close()

    monkeypatch.setattr(execution.time, "sleep", sleep)
    assert run(GROUPS, run_one, tmp_path) == 0
    assert calls == ["sub-01_ses-a", "sub-02", "sub-01_ses-b"]
    assert {row["status"] for row in statuses(tmp_path).values()} == {"done"}
    assert {key: row["status"] for key, row in looks[0].items()} == {
        ("sub-01", "ses-a"): "done", ("sub-01", "ses-b"): "running", ("sub-02", "n/a"): "done",
    }  # fmt: skip
    assert "sub-01_ses-b (2 of 3)" in caplog.text and "sub-01_ses-b (3 of 3)" in caplog.text
    assert "1 session(s) are being done by another run; waiting" in caplog.messages
    assert [path.name for path in logs.glob(".*")] == []


def test_what_was_running_when_a_run_was_killed_is_said_to_be_interrupted(tmp_path):
    write_status(tmp_path / "logs" / "status.tsv", row_of(("09", None), "running"))
    run(GROUPS, runner({})[0], tmp_path)
    assert statuses(tmp_path)["sub-09", "n/a"]["status"] == "interrupted"


def test_part_has_its_own_table(tmp_path):
    run(GROUPS[:1], runner({})[0], tmp_path, part=3)
    assert [p.name for p in (tmp_path / "logs").glob("status*")] == ["status_part-3.tsv"]


def test_logs_that_cannot_be_written(tmp_path):
    (tmp_path / "logs").write_text("a file where the folder should be")
    with pytest.raises(CannotCreate, match="logs"):
        run(GROUPS, runner({})[0], tmp_path)
