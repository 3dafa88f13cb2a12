"""Many sessions, one after another: one log each, one status table, one exit code.

A session that fails leaves the others untouched. `logs/status.tsv` is written before and after
every session, so that a process that is killed (137 for too little memory) leaves the row
"running" of the session that it died on.
"""

import logging
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bids_synthseg import __version__
from bids_synthseg.bids.tables import format_table
from bids_synthseg.errors import AppError, BadData
from bids_synthseg.storage import explain, make_folder, write_text
from bids_synthseg.tsv import read_rows

if TYPE_CHECKING:
    from bids_synthseg.bids.scans import ScanGroup
    from bids_synthseg.pipeline import SessionResult

LOG = logging.getLogger(__name__)
COLUMNS = ("subject", "session", "status", "seconds", "peak_mb", "message")
Row = dict[str, str]


def run_sessions(
    groups: "Sequence[ScanGroup]",
    run_one: "Callable[[ScanGroup], SessionResult]",
    output_dir: Path,
    *,
    stop_on_first_crash: bool = False,
    part: int | None = None,
) -> int:
    """Run `run_one` on every group; returns the exit code, 1 where any failed and else 0.

    An AppError fails its session with its own line. Any other exception is a bug: the console and
    the status table get one line, logs/<label>.log the traceback. part: number of this share of a
    data set that is cut up; its table is then logs/status_part-<part>.tsv. Raises CannotCreate or
    StorageProblem where the logs themselves cannot be written.
    """
    logs = output_dir / "logs"
    make_folder(logs)
    table = logs / ("status.tsv" if part is None else f"status_part-{part}.tsv")
    failed = 0
    for number, group in enumerate(groups, start=1):
        LOG.info("%s (%d of %d)", group.label, number, len(groups))
        start = time.monotonic()
        write_status(table, _row(group, "running"))
        with session_log(logs / f"{group.label}.log"):
            status, message = _attempt(group, run_one)
            seconds = time.monotonic() - start
            LOG.info("%s: %s after %.1f s%s", group.label, status, seconds, _colon(message))
        write_status(table, _row(group, status, seconds, message))
        if status == "interrupted":
            raise KeyboardInterrupt
        failed += status == "failed"
        if failed and stop_on_first_crash:
            LOG.warning("stopped on the first failure; %d sessions left", len(groups) - number)
            break
    if failed:
        LOG.error("%d of %d sessions failed; see %s", failed, len(groups), table)
    return int(failed > 0)


def _attempt(
    group: "ScanGroup", run_one: "Callable[[ScanGroup], SessionResult]"
) -> tuple[str, str]:
    """Status of one session, and a message of one line."""
    try:
        result = run_one(group)
    except AppError as error:
        LOG.error("%s: %s", group.label, error)
        return "failed", str(error)
    except KeyboardInterrupt:
        return "interrupted", "interrupted by the user"
    except Exception as error:
        message = f"unexpected {type(error).__name__}: {error}"
        LOG.error("%s: %s", group.label, one_line(message))
        LOG.debug("traceback", exc_info=True)
        return "failed", message
    return result.status, result.message


@contextmanager
def session_log(path: Path) -> Iterator[None]:
    """Everything that the package logs meanwhile, tracebacks included, is appended to `path`."""
    package = logging.getLogger("bids_synthseg")
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
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


def write_status(table: Path, row: Row) -> None:
    """Put one row into the table in one step; an earlier row of the same session is replaced.

    The table is read anew each time: several processes may share an output folder.
    """
    rows = {(old["subject"], old["session"]): old for old in [*read_status(table), row]}
    in_order = [rows[key] for key in sorted(rows)]
    write_text(table, format_table({name: [one[name] for one in in_order] for name in COLUMNS}))


def read_status(table: Path) -> list[Row]:
    """Rows of a status table; [] where there is none, or, with a warning, where it is damaged."""
    try:
        return read_rows(table, *COLUMNS)
    except BadData as problem:
        LOG.warning("begun anew, %s", problem)
        return []


def _row(group: "ScanGroup", status: str, seconds: float = 0.0, message: str = "") -> Row:
    return {
        "subject": f"sub-{group.subject}",
        "session": f"ses-{group.session}" if group.session else "n/a",
        "status": status,
        "seconds": f"{seconds:.1f}",
        "peak_mb": f"{peak_memory_mb():.0f}",
        "message": one_line(message) or "n/a",
    }


def one_line(text: str) -> str:
    """Text without line breaks and tabs."""
    return " ".join(text.split())


def _colon(message: str) -> str:
    return f": {one_line(message)}" if message else ""


def peak_memory_mb() -> float:
    """Most memory this process has held so far, in MB (10^6 bytes): a maximum over all sessions."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def available_cpus(
    environ: Mapping[str, str] = os.environ,
    proc: Path = Path("/proc/self/cgroup"),
    cgroups: Path = Path("/sys/fs/cgroup"),
) -> int:
    """CPUs this process may really use: the least that affinity, cgroup quota and job allow.

    SLURM often does not confine cores, so that affinity shows the whole node: then
    SLURM_CPUS_PER_TASK decides. OMP_NUM_THREADS is honoured as the user's own limit.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    limits = [len(affinity(0)) if affinity else os.cpu_count() or 1]
    for name in ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS"):
        value = environ.get(name, "")
        if value.isdigit() and int(value) > 0:
            limits.append(int(value))
    # A share of a CPU beyond the whole ones would only be spent on waiting.
    limits += [max(1, int(quota)) for quota in _cgroup_quotas(proc, cgroups)]
    return min(limits)


def _cgroup_quotas(proc: Path, cgroups: Path) -> Iterator[float]:
    """CPU quotas of this process's control group and of every group above it, versions 1 and 2."""
    try:
        entries = [line.split(":", 2) for line in proc.read_text().splitlines()]
    except OSError:  # no control groups on this system
        return
    for _, controllers, group in (entry for entry in entries if len(entry) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = cgroups / "cpu" if controllers else cgroups
        inner = top / group.lstrip("/")
        # In a container the path is the host's and does not exist here: the top still does.
        for folder in (inner, *inner.parents):
            yield from _quota(folder)
            if folder == top:
                break


def _quota(folder: Path) -> Iterator[float]:
    """CPUs that one control group folder grants, if it limits them."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        if int(quota) > 0:
            yield int(quota) / int(period)
    except (OSError, ValueError):  # not limited here ("max"), or not readable
        return
