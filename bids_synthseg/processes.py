"""Several sessions at a time on one machine, each in a process of its own.

The processes live as long as the run, so that each loads its libraries and networks once. One that
dies (killed for memory, a crash in a library) fails its own session only and is replaced.
"""

import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from logging.handlers import QueueHandler
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from bids_synthseg.bids.plan import expected_memory_mb
from bids_synthseg.bids.scans import ScanGroup
from bids_synthseg.console import Terminated, termination_as_interrupt
from bids_synthseg.execution import Engine, Events, Outcome, attempt
from bids_synthseg.resources import limit_threads

if TYPE_CHECKING:
    from bids_synthseg.work import Work

LOG = logging.getLogger(__name__)

PER_GPU = 2
"""Processes that share a GPU by default: while one reads, aligns, writes and draws, which takes the
CPU longer than the network takes the GPU, the network of the other runs."""

OWN_MEMORY_MB = 400.0
"""What the process that hands out the sessions holds itself."""

GRACE_S = 5.0
"""Time to close files in, after which a process is killed: `docker stop` itself kills after 10 s,
and the network, which does not hear a signal until a layer is done, has no file open."""


def fitting_processes(
    wanted: int | None,
    groups: Sequence[ScanGroup],
    n_cpus: int,
    memory_gb: float,
    devices: Sequence[str],
) -> int:
    """How many processes to run: those wanted, or fewer where sessions or memory do not allow it.

    By default one on the CPU, which it keeps busy alone, and PER_GPU for each GPU as far as there
    is a CPU for each.
    """
    on_gpus = devices[0].startswith("cuda")
    n_procs = wanted or (min(PER_GPU * len(devices), n_cpus) if on_gpus else 1)
    n_procs = max(1, min(n_procs, len(groups)))
    if n_procs == 1:
        return 1
    # Those that need more than there is do not begin.
    needs_mb = map(expected_memory_mb, groups)
    need_mb = max((need for need in needs_mb if need <= memory_gb * 1000), default=0.0)
    room_mb = memory_gb * 1000 - OWN_MEMORY_MB
    if n_procs * need_mb > room_mb:
        n_procs = max(1, int(room_mb / need_mb))
        LOG.info("%d at a time, as memory allows", n_procs)
    return n_procs


def processes(
    work: "Work", n_procs: int, devices: Sequence[str], n_cpus: int, logs: Path
) -> Engine:
    """An engine of `n_procs` processes, which share the devices in turn and the CPUs evenly.

    `work` must be picklable; `logs` is the folder of the sessions' logs.
    """
    n_threads = max(1, n_cpus // n_procs)

    def start(number: int) -> _Worker:
        device = devices[number % len(devices)]
        return _Worker(work.with_device(device, n_threads), logs)

    def engine(groups: Sequence[ScanGroup]) -> Events:
        # Inherited by the processes, whose libraries read it when they are loaded.
        limit_threads(n_threads)
        waiting = deque(groups)
        workers: list[_Worker] = []
        try:
            for number in range(min(n_procs, len(groups))):
                workers.append(start(number))
            while True:
                for number, worker in enumerate(workers):
                    if waiting and worker.group is None:
                        if worker.is_dead:
                            worker = workers[number] = start(number)
                        group = waiting.popleft()
                        worker.begin(group)
                        yield group, None
                busy = [worker for worker in workers if worker.group]
                if not busy:
                    return
                connection.wait([end for worker in busy for end in worker.ends])
                for worker in busy:
                    group = worker.group
                    if group and (outcome := worker.outcome()):
                        yield group, outcome
        finally:
            _stop(workers)

    return engine


class _Worker:
    """A process as its parent sees it; `group` is the session that it runs, if any."""

    def __init__(self, work: "Work", logs: Path) -> None:
        context = get_context("spawn")  # a forked CUDA or OpenMP does not work
        self.group: ScanGroup | None = None
        self._pipe, theirs = context.Pipe()
        level = LOG.getEffectiveLevel()
        self.process = context.Process(target=_serve, args=(theirs, level, logs), daemon=True)
        # Ctrl-C reaches all processes of a terminal, but it is the parent that decides.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        theirs.close()  # else its death would not be seen at this end
        self._send(work)

    @property
    def ends(self) -> list:
        """What to wait on: something has come, or the process has died."""
        return [self._pipe, self.process.sentinel]

    @property
    def is_dead(self) -> bool:
        """Whether it has ended."""
        return not self.process.is_alive()

    def begin(self, group: ScanGroup) -> None:
        """Hand it a session."""
        self.group = group
        self._send(group)

    def outcome(self) -> Outcome | None:
        """How its session ended, None while it runs; what it logs meanwhile is logged here."""
        died = self.is_dead  # asked first, so that its last words are not missed
        for message in self._messages():
            if isinstance(message, logging.LogRecord):
                logging.getLogger(message.name).handle(message)
            else:
                self.group = None
                return message
        if not died:
            return None
        label = self.group.label if self.group else ""
        self.group = None
        outcome = _death(self.process.exitcode or 0)
        LOG.error("%s: %s", label, outcome.message)
        return outcome

    def close(self) -> None:
        """Wait for its death."""
        self.process.join()
        self._pipe.close()

    def _send(self, message: object) -> None:
        try:
            self._pipe.send(message)
        except OSError:  # it is dead, which its sentinel tells
            LOG.debug("a process died before it began", exc_info=True)

    def _messages(self) -> Iterator[logging.LogRecord | Outcome]:
        try:
            while self._pipe.poll():
                yield self._pipe.recv()
        except (EOFError, OSError):  # it died, perhaps in mid-sentence
            return


def _death(exit_code: int) -> Outcome:
    """The outcome of a session whose process ended with it; a negative code is a signal."""
    if exit_code == Terminated.exit_code:
        return Outcome("interrupted", "its process was ended by a signal")
    if exit_code >= 0:
        return Outcome("failed", f"its process ended unexpectedly with exit code {exit_code}")
    name = signal.Signals(-exit_code).name
    cause = "a crash in a library; try a newer version, or report it with the session's log"
    if -exit_code == signal.SIGKILL:
        cause = "most likely for memory; give it more memory, or lower --n-procs"
    return Outcome("failed", f"killed by signal {-exit_code} ({name}), {cause}")


def _stop(workers: Sequence[_Worker]) -> None:
    """End all processes; a session that runs is abandoned."""
    for worker in workers:
        worker.process.terminate()
    deadline = time.monotonic() + GRACE_S
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        worker.process.kill()
        worker.close()


def _serve(pipe: connection.Connection, level: int, logs: Path) -> None:
    """What a process does: one session after another, until its pipe is closed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    package = logging.getLogger("bids_synthseg")
    package.setLevel(level)
    handler = QueueHandler(SimpleNamespace(put_nowait=pipe.send))
    handler.setLevel(level)
    package.addHandler(handler)
    try:
        with termination_as_interrupt():
            work = pipe.recv()
            while True:
                pipe.send(attempt(pipe.recv(), work, logs))
    except EOFError:
        return
    except Terminated:
        # Without Python's clean-up, which would wait for threads of libraries.
        os._exit(Terminated.exit_code)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
