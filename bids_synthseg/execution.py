"""Many sessions: one log each, one status table, one exit code, whatever runs them.

An engine runs sessions: one after another in this process (`in_turn`), in several processes
(`processes`), on a cluster (`dask_cluster`). `run_sessions` alone keeps the books. A session that
fails leaves the others untouched.
"""

import logging
import platform
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bids_synthseg import __version__
from bids_synthseg.bids.plan import expected_memory_mb, largest_scan
from bids_synthseg.bids.scans import ScanGroup
from bids_synthseg.bids.sessions import Key, session_label
from bids_synthseg.bids.status import one_line, row_of, tidy_status, write_status
from bids_synthseg.claims import Claimed, claim, is_claimed, session_claim
from bids_synthseg.errors import AppError
from bids_synthseg.progress import Progress
from bids_synthseg.resources import is_out_of_memory, peak_memory_mb
from bids_synthseg.storage import explain, make_folder

if TYPE_CHECKING:
    from bids_synthseg.pipeline import SessionResult

LOG = logging.getLogger(__name__)

OUT_OF_MEMORY = (
    "out of memory; give the job more (--dry-run says how much a session needs), lower --n-procs, "
    "or use fewer scans"
)


BUSY = "busy"
"""Another run is at this session: it is looked at again when that is done with it."""
LOOK_S = 2.0
"""Between two looks at whether it is."""


@dataclass(frozen=True)
class Outcome:
    """How a session ended. peak_mb: most memory its process has held, 0 where that is not known."""

    status: str
    message: str = ""
    seconds: float = 0.0
    peak_mb: float = 0.0

    def __post_init__(self) -> None:
        if self.status not in ("done", "skipped", "failed", "interrupted", BUSY):
            raise ValueError(f"no session ends as {self.status!r}")

    def line(self, label: str) -> str:
        """For the log, of the session `label`."""
        colon = f": {one_line(self.message)}" if self.message else ""
        return f"{label}: {self.status} after {self.seconds:.1f} s{colon}"


RunOne = Callable[[ScanGroup], "SessionResult"]
Events = Generator[tuple[ScanGroup, Outcome | None], None, None]
Engine = Callable[[Sequence[ScanGroup]], Events]
"""Runs sessions and yields (group, None) when one begins and (group, Outcome) when it has ended, in
any order. When its generator is closed it stops what is running."""


def attempt(group: ScanGroup, run_one: RunOne, logs: Path) -> Outcome:
    """One session in this process, everything logged meanwhile in logs/<label>.log as well.

    An AppError fails the session with its own line. Any other exception is a bug: the console and
    the status table get one line, the session's log the traceback. KeyboardInterrupt passes on.
    A session that another run is at is left alone.
    """
    start = time.monotonic()
    try:
        with claim(session_claim(logs, group.label)), session_log(logs / f"{group.label}.log"):
            status, message = _run(group, run_one)
            outcome = Outcome(status, message, time.monotonic() - start, peak_memory_mb())
            LOG.info("%s", outcome.line(group.label))
    except Claimed:
        return Outcome(BUSY, "another run is at it")
    except AppError as error:  # the log itself cannot be written
        LOG.error("%s: %s", group.label, error)
        return Outcome("failed", str(error))
    return outcome


def _run(group: ScanGroup, run_one: RunOne) -> tuple[str, str]:
    """Status of one session, and a message."""
    try:
        result = run_one(group)
    except AppError as error:
        LOG.error("%s: %s", group.label, error)
        return "failed", str(error)
    except KeyboardInterrupt:
        LOG.warning("%s: interrupted", group.label)
        raise
    except Exception as error:
        message = f"unexpected {type(error).__name__}: {error}"
        if is_out_of_memory(error):
            message = OUT_OF_MEMORY
        LOG.error("%s: %s", group.label, one_line(message))
        LOG.debug("traceback", exc_info=True)
        return "failed", message
    return result.status, result.message


def in_turn(run_one: RunOne, logs: Path) -> Engine:
    """One session after another in this process; `logs`: folder of the sessions' logs."""

    def engine(groups: Sequence[ScanGroup]) -> Events:
        for group in groups:
            yield group, None
            yield group, attempt(group, run_one, logs)

    return engine


def memory_problem(group: ScanGroup, memory_gb: float) -> str:
    """Why a session does not fit into the memory; "" where it does."""
    need_gb = expected_memory_mb(group) / 1000
    if need_gb <= memory_gb:
        return ""
    path, n_voxels = largest_scan(group)
    cause = f" for {path} ({n_voxels / 1e6:.1f} million voxels)" if path else ""
    return (
        f"needs about {need_gb:.1f} GB of memory{cause}, there are {memory_gb:.1f}; give the job "
        "more, raise --mem-gb where more may be used, or take a coarser scan"
    )


def within_memory(engine: Engine, memory_gb: float) -> Engine:
    """The engine, but sessions expected to need more than `memory_gb` fail before they begin."""

    def guarded(groups: Sequence[ScanGroup]) -> Events:
        fitting = []
        for group in groups:
            message = memory_problem(group, memory_gb)
            if not message:
                fitting.append(group)
                continue
            LOG.error("%s: %s", group.label, message)
            yield group, Outcome("failed", message)
        yield from engine(fitting)

    return guarded


def _sharing(engine: Engine, logs: Path) -> Engine:
    """The engine, but a session that another run is at begins again when that is done with it.

    It is then found done, or done here if the other run has died.
    """

    def shared(groups: Sequence[ScanGroup]) -> Events:
        left = list(groups)
        while left:
            busy = []
            with closing(engine(left)) as events:
                for group, outcome in events:
                    if outcome and outcome.status == BUSY:
                        busy.append(group)
                    yield group, outcome
            if busy:
                LOG.info("%d session(s) are being done by another run; waiting", len(busy))
            while busy and all(is_claimed(session_claim(logs, one.label)) for one in busy):
                time.sleep(LOOK_S)
            left = busy

    return shared


def run_sessions(
    groups: Sequence[ScanGroup],
    engine: Engine,
    output_dir: Path,
    *,
    stop_on_first_crash: bool = False,
    part: int | None = None,
) -> int:
    """Run the engine over all groups; returns the exit code, 1 where any failed and else 0.

    part: number of this share of a data set that is cut up; its table is then
    logs/status_part-<part>.tsv. Sessions that had begun and have not ended when the run is broken
    off are written down as interrupted. Raises CannotCreate or StorageProblem where the logs
    themselves cannot be written.
    """
    logs = output_dir / "logs"
    make_folder(logs)
    table = logs / ("status.tsv" if part is None else f"status_part-{part}.tsv")

    def is_running(key: Key) -> bool:
        return is_claimed(session_claim(logs, session_label(key)))

    tidy_status(table, is_running)
    running: dict[str, ScanGroup] = {}
    ended = failed = 0
    broken_off = "stopped as another session failed"
    with Progress(len(groups)) as progress, closing(_sharing(engine, logs)(groups)) as events:
        try:
            for group, outcome in events:
                if outcome is None:
                    running[group.label] = group
                    progress.begin(group.label)
                    write_status(table, row_of(group.key, "running"))
                    continue
                running.pop(group.label, None)
                if outcome.status == BUSY:
                    progress.postpone(group.label)
                    continue
                write_status(table, row_of(group.key, **vars(outcome)))
                progress.end(group.label, skipped=outcome.status == "skipped")
                ended += 1
                failed += outcome.status not in ("done", "skipped")
                if failed and stop_on_first_crash:
                    left = len(groups) - ended
                    LOG.warning("stopped on the first failure; %d sessions left", left)
                    break
        except BaseException as error:
            broken_off = one_line(str(error)) or "interrupted by the user"
            raise
        finally:
            # Before the engine is closed, for which a scheduler that ends the job may not wait.
            for group in running.values():
                write_status(table, row_of(group.key, "interrupted", broken_off))
            tidy_status(table, is_running)
    if failed:
        LOG.error("%d of %d sessions failed; see %s", failed, len(groups), table)
    return int(failed > 0)


@contextmanager
def session_log(path: Path) -> Iterator[None]:
    """Everything that the package logs meanwhile, tracebacks included, is appended to `path`."""
    package = logging.getLogger("bids_synthseg")
    try:
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise explain(error, path) from error
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level = package.level
    package.setLevel(logging.DEBUG)
    package.addHandler(handler)
    try:
        LOG.debug("bids_synthseg %s, Python %s, %s", __version__, platform.python_version(),
                  platform.platform())  # fmt: skip
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        handler.close()
