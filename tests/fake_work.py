"""Work without networks that other processes can do: its script says how each session ends.

python tests/fake_work.py OUT N_PROCS     two sessions that hang in the middle of a file
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import click

from bids_synthseg import console
from bids_synthseg.bids.scans import ScanGroup
from bids_synthseg.errors import BadData
from bids_synthseg.execution import in_turn, run_sessions
from bids_synthseg.processes import processes
from bids_synthseg.storage import atomic_file

GROUPS = [ScanGroup(f"{number:02}", None, ()) for number in range(1, 7)]
LOG = logging.getLogger("bids_synthseg.fake")


@dataclass(frozen=True)
class FakeWork:
    """`script`: label -> done (the default), fail, bug, hang, leave or the number of a signal."""

    out: Path
    script: Mapping[str, object]
    device: str = ""
    n_cpus: int | None = None

    def with_device(self, device, n_cpus=None):
        return replace(self, device=device, n_cpus=n_cpus)

    def __call__(self, group):
        what = self.script.get(group.label, "done")
        (self.out / f"{group.label}.pid").write_text(str(os.getpid()))
        LOG.info("inside %s", group.label)
        if what == "fail":
            raise BadData(f"{group.label}: cannot be used; replace it")
        if what == "bug":
            raise KeyError(group.label)
        if what == "leave":
            os._exit(3)
        if what == "hang":
            with atomic_file(self.out / f"{group.label}.txt") as stream:
                stream.write(b"half")
                time.sleep(600)
        if isinstance(what, int):
            os.kill(os.getpid(), what)
        threads = os.environ["OMP_NUM_THREADS"]
        return SimpleNamespace(status="done", message=f"{self.device} {self.n_cpus} {threads}")


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("n_procs", type=int)
def command(out: Path, n_procs: int) -> int:
    console.set_up_log()
    groups, logs = GROUPS[:2], out / "logs"
    work = FakeWork(out, {group.label: "hang" for group in groups})
    engine = processes(work, n_procs, ["cpu"], 2, logs) if n_procs > 1 else in_turn(work, logs)
    return run_sessions(groups, engine, out)


if __name__ == "__main__":
    # A shell that runs something in the background may have told it to ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(console.run(command, sys.argv[1:]))
