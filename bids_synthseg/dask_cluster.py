"""Many sessions on many machines by Dask distributed: one task is one session.

`on_scheduler` takes the workers of a scheduler that runs already, `on_cluster` has a cluster's own
queue start some (dask-jobqueue). Workers and scheduler need this package in the same version and
see the same folders under the same names. No more sessions are handed out than there are workers:
Dask holds every session that a dying worker had been given against it, whether it had begun or not,
and workers that come later find work left.
"""

import logging
import pickle
import secrets
import shutil
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_synthseg import __version__
from bids_synthseg.bids.scans import ScanGroup
from bids_synthseg.bids.status import one_line
from bids_synthseg.cluster_file import CLUSTERS, GPU_RESOURCE, ClusterFile, need
from bids_synthseg.errors import InputMissing, TryAgainLater, UsageProblem
from bids_synthseg.execution import Engine, Events, Outcome, attempt

if TYPE_CHECKING:
    from distributed import Client, Future

    from bids_synthseg.work import Work

LOG = logging.getLogger(__name__)

ALLOWED_DEATHS = 2
"""Workers that may die on one session, on a cluster of our own: jobs get preempted and run out of
time, but a session that is too large for its worker should not go round for ever. A scheduler that
runs already has a setting of its own (distributed.scheduler.allowed-failures, 3)."""
RETURN_S = 60.0
"""Time for a worker that died to be started anew within its job, before the job is given up: Python
may come from a slow disk."""
CONNECT_S = 20.0
"""Time to reach a scheduler in."""
POLL_S = 0.5
"""Between two looks at what has ended; a session takes many times as long."""
_LOST = "the Dask scheduler has gone; start it and run again: what is done stays"
# A worker with several threads would take several sessions at once: their logs would mix and their
# networks share the memory.
_ONE_AT_A_TIME = threading.Lock()


def on_scheduler(address: str, work: "Work", logs: Path) -> Engine:
    """An engine on all workers of the scheduler at `address` (tls://HOST:PORT, tcp://HOST:PORT).

    Sessions that have begun when it is closed run to their end on those workers, which are others'
    to stop. Raises UsageProblem without Dask; the engine raises TryAgainLater where the scheduler
    cannot be reached, or is lost.
    """
    need("distributed")

    def engine(groups: Sequence[ScanGroup]) -> Events:
        with _client(address) as client:
            yield from _hand_out(client, groups, work, logs, {})

    return engine


def on_cluster(toml: Path, work: "Work", logs: Path) -> Engine:
    """An engine on worker jobs of its own, which end with it; `toml`: see ClusterFile.

    Raises InputMissing or UsageProblem where the file cannot be used or a package is missing; the
    engine does so where the cluster cannot be set up, and TryAgainLater where its queue refuses.
    """
    file = ClusterFile.read(toml)
    need("distributed" if file.kind == "local" else "dask_jobqueue")
    work = work.with_device("cuda") if file.gpus else work

    def engine(groups: Sequence[ScanGroup]) -> Events:
        n_jobs = min(file.jobs, max(1, len(groups)))
        with _cluster(file, n_jobs, logs) as cluster, _client(cluster) as client:
            keep_jobs = partial(_ask_for_jobs, cluster, file, n_jobs)
            resources = GPU_RESOURCE if file.gpus else {}
            yield from _hand_out(client, groups, work, logs, resources, keep_jobs)

    return engine


@contextmanager
def _client(target: Any) -> "Iterator[Client]":
    """A connection to a scheduler by its address, or to a cluster's."""
    from distributed import Client

    try:
        client = Client(target, timeout=CONNECT_S, set_as_default=False)
    except ValueError as error:
        raise UsageProblem(f"--dask-scheduler {target}: {error}; write tcp://HOST:PORT") from error
    except TypeError as error:  # Dask's way to say that there is no certificate
        raise UsageProblem(
            f"--dask-scheduler {target}: no certificates for TLS in Dask's configuration; set "
            "distributed.comm.tls (see docs/dask.md)"
        ) from error
    except OSError as error:
        raise TryAgainLater(
            f"{target}: no Dask scheduler answers there; start it, or correct --dask-scheduler"
        ) from error
    with client:
        yield client


@contextmanager
def _cluster(file: ClusterFile, n_jobs: int, logs: Path) -> Iterator[Any]:
    """The cluster that the file describes, with its scheduler in this process."""
    import dask
    import distributed

    keywords = file.keywords(n_jobs, logs)
    if file.kind == "local":
        kind = distributed.LocalCluster
    else:
        import dask_jobqueue

        kind = getattr(dask_jobqueue, CLUSTERS[file.kind])
        keywords["job_cls"] = _job_class(kind.job_cls)
        command = kind.job_cls.submit_command.split()[0]
        if shutil.which(command) is None:
            raise InputMissing(f"{command}: not found; {file.path} wants it: use a login node")
    settings = {
        "distributed.scheduler.allowed-failures": ALLOWED_DEATHS,
        "distributed.deploy.lost-worker-timeout": f"{RETURN_S}s",
    }
    with dask.config.set(settings):
        try:
            cluster = kind(**keywords)
        except (TypeError, ValueError, ImportError, OSError, RuntimeError) as error:
            reason = str(error).partition("\n")[0].rstrip(":")
            raise UsageProblem(f"{file.path}: {CLUSTERS[file.kind]}: {reason}") from error
        with cluster:
            yield cluster


def _job_class(kind: Any) -> Any:
    """A class of jobs in which a refusal is a line in the log.

    dask-jobqueue submits in the background: its exception would reach nobody but the console, and
    keep the cluster from closing.
    """
    from distributed.core import Status

    class Job(kind):
        async def start(self) -> None:
            try:
                await super().start()
            except RuntimeError as error:
                reason = one_line(str(error).rpartition("stderr:")[2])
                LOG.warning("the queue refused a job: %s", reason)
                self.status = Status.running  # as far as the cluster needs to know

    return Job


def _ask_for_jobs(cluster: Any, file: ClusterFile, n_jobs: int) -> None:
    """Submit as many worker jobs as are missing: at first all, later those that have ended."""
    if file.kind == "local":
        cluster.scale(n_jobs)
        return
    cluster.scale(jobs=n_jobs)
    if cluster.workers and not any(job.job_id for job in cluster.workers.values()):
        raise TryAgainLater(f"{file.path}: the queue took none of the jobs, see above; correct it")


def _hand_out(
    client: "Client",
    groups: Sequence[ScanGroup],
    work: "Work",
    logs: Path,
    resources: Mapping[str, float],
    keep_jobs: Callable[[], None] = lambda: None,
) -> Events:
    """What an engine yields. resources: what a worker must offer; keep_jobs: called again and
    again."""
    waiting = deque(groups)
    running: dict[Future, tuple[ScanGroup, float]] = {}  # with the time it was handed out
    known_workers = -1
    try:
        while waiting or running:
            keep_jobs()
            n_workers = _count_workers(client)
            if n_workers != known_workers:
                LOG.info("Dask workers: %s", n_workers or "none, waiting for some")
                known_workers = n_workers
            for _ in range(min(n_workers - len(running), len(waiting))):
                group = waiting.popleft()
                # Not for the scheduler to unpack: it has no use for the network's libraries.
                payload = pickle.dumps((work, group, logs))
                future = client.submit(
                    _session,
                    __version__,
                    payload,
                    key=f"{group.label}-{secrets.token_hex(4)}",
                    resources=resources or None,
                    pure=False,
                )
                running[future] = group, time.monotonic()
                yield group, None
            time.sleep(POLL_S)
            for future in [future for future in running if future.done()]:
                outcome = _outcome(future)
                group, start = running.pop(future)
                # Else Dask would do it again where the worker that holds the outcome dies.
                future.release()
                if not outcome.seconds:  # nobody lived to count them
                    outcome = replace(outcome, seconds=time.monotonic() - start)
                _tell(group, outcome)
                yield group, outcome
    finally:
        if running and client.status == "running":
            client.cancel(list(running))


def _tell(group: ScanGroup, outcome: Outcome) -> None:
    """The last line of a session's log, here as well; the rest stays in that file."""
    level = logging.ERROR if outcome.status == "failed" else logging.INFO
    LOG.log(level, "%s", outcome.line(group.label))


def _count_workers(client: "Client") -> int:
    """Workers that are there. Raises TryAgainLater where the scheduler has gone."""
    try:
        return len(client.nthreads())
    except OSError as error:
        raise TryAgainLater(_LOST) from error


def _outcome(future: "Future") -> Outcome:
    """How a task ended. Raises TryAgainLater where that is not known for want of a scheduler."""
    from distributed import KilledWorker

    if future.cancelled():
        raise TryAgainLater(_LOST)
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, KilledWorker):
        return Outcome(
            "failed",
            f"killed its worker {error.allowed_failures + 1} times, most likely for memory or "
            "time: look at the logs of the workers' jobs and give these more",
        )
    return Outcome("failed", f"Dask could not begin it ({type(error).__name__}: {error})")


def _session(version: str, payload: bytes) -> Outcome:
    """On a worker: one session, unless the worker is not fit for it."""
    from distributed import get_worker

    host = socket.gethostname()
    if version != __version__:
        cure = "install the same there, and start its workers anew"
        return Outcome("failed", f"{host} has bids_synthseg {__version__}, not {version}; {cure}")
    work, group, logs = pickle.loads(payload)
    if not logs.is_dir():  # it would make one of that name on a disk of its own
        return Outcome("failed", f"{host} does not see {logs}; mount the same folders there")
    if not work.options.n_cpus:  # then the threads that the worker was given
        work = work.with_device(work.options.device, get_worker().state.nthreads)
    with _ONE_AT_A_TIME:
        return attempt(group, work, logs)
