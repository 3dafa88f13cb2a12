"""Sessions per hour and memory: one process with all threads against several with fewer each.

    python benchmarks/processes.py BIDS_DIR [N_PROCS [OPTION...]]

N_PROCS: one for each CPU unless told otherwise; options are for the App (--participant-label 12).
Memory is the most that all processes held together, each page counted once, read from /proc five
times a second. One run each, start-up included.
"""

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from bids_synthseg.bids.status import read_status
from bids_synthseg.resources import available_cpus

APP = [sys.executable, "-m", "bids_synthseg"]
PERIOD_S = 0.2


def family(pid: int) -> list[int]:
    """A process and all that it started."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended meanwhile
        return []
    return [pid, *(one for child in children for one in family(int(child)))]


def memory_mb(pid: int) -> float:
    """What a process holds in MB (10^6 bytes), shared pages by the share."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


def measured(arguments: list[str]) -> tuple[float, float]:
    """Seconds and peak memory in MB of one run of the App."""
    start, peak_mb = time.perf_counter(), 0.0
    with subprocess.Popen([*APP, *arguments], stdout=subprocess.DEVNULL) as app:
        while app.poll() is None:
            peak_mb = max(peak_mb, sum(map(memory_mb, family(app.pid))))
            time.sleep(PERIOD_S)
    if app.returncode:
        raise SystemExit(app.returncode)
    return time.perf_counter() - start, peak_mb


def main(bids_dir: str, n_procs: str = "", *options: str) -> None:
    """Run, print the table."""
    n_cpus = available_cpus()
    several = int(n_procs or n_cpus)
    print(f"{Path(bids_dir).name} {' '.join(options)}".strip() + f", {n_cpus} CPUs")
    print("processes\tthreads each\tseconds\tsessions per hour\tratio\tpeak MB\tratio")
    first = None
    for number in (1, several):
        with TemporaryDirectory() as out:
            words = ["--n-procs", str(number), "--n-cpus", str(n_cpus), "--quiet", *options]
            seconds, peak_mb = measured([bids_dir, out, "participant", *words])
            rows = read_status(Path(out) / "logs" / "status.tsv")
        per_hour = 3600 * len(rows) / seconds
        first = first or (per_hour, peak_mb)
        ratios = per_hour / first[0], peak_mb / first[1]
        row = (
            f"{number}\t{max(1, n_cpus // number)}\t{seconds:.0f}\t{per_hour:.0f}\t{ratios[0]:.2f}"
        )
        print(f"{row}\t{peak_mb:.0f}\t{ratios[1]:.2f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
