"""What this process may use: CPUs, memory, threads; and what it has used.

Affinity, control groups (versions 1 and 2) and the job's own variables often disagree; the least
of them counts.
"""

import os
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

PROC = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)


def limit_threads(n_threads: int) -> None:
    """Let every library of this process use so many CPU threads: the one place that says so.

    Libraries that are not loaded yet take the number from the environment, as do processes that
    are started from here.
    """
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(n_threads)))
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(n_threads)
    if itk := sys.modules.get("SimpleITK"):
        itk.ProcessObject.SetGlobalDefaultNumberOfThreads(n_threads)


def available_cpus(
    environ: Mapping[str, str] = os.environ, proc: Path = PROC, cgroups: Path = CGROUPS
) -> int:
    """CPUs this process may really use: the least that affinity, cgroup quota and job allow.

    SLURM often does not confine cores, so that affinity shows the whole node: then
    SLURM_CPUS_PER_TASK decides. OMP_NUM_THREADS is honoured as the user's own limit.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    limits = [len(affinity(0)) if affinity else os.cpu_count() or 1]
    limits += [
        n for name in ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS") if (n := _number(environ, name))
    ]
    for folder in _group_folders("cpu", proc, cgroups):
        # A share of a CPU beyond the whole ones would only be spent on waiting.
        limits += [max(1, int(quota)) for quota in _cpu_quota(folder)]
    return min(limits)


def available_memory_gb(
    environ: Mapping[str, str] = os.environ, proc: Path = PROC, cgroups: Path = CGROUPS
) -> float:
    """GB (10^9 bytes) this process may have: the least that machine, cgroup and job allow.

    Of SLURM's variables, which are in MiB, the one per CPU counts for every CPU of the node that
    the job has.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    limits += [
        n for folder in _group_folders("memory", proc, cgroups) for n in _memory_limit(folder)
    ]
    cpus = _number(environ, "SLURM_CPUS_ON_NODE") or _number(environ, "SLURM_CPUS_PER_TASK") or 1
    for name, times in (("SLURM_MEM_PER_NODE", 1), ("SLURM_MEM_PER_CPU", cpus)):
        if per := _number(environ, name):
            limits.append(per * times * 2**20)
    return min(limits) / 1e9


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory that could not be had is what an exception of any library tells of."""
    # torch has no class of its own for the CPU.
    words = str(error).lower() if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError) or ("memory" in words and "alloc" in words)


def peak_memory_mb() -> float:
    """Most memory this process has held so far, in MB (10^6 bytes): a maximum over all sessions."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _number(environ: Mapping[str, str], name: str) -> int:
    """A positive whole number of the environment; 0 where there is none."""
    value = environ.get(name, "")
    return int(value) if value.isdigit() else 0


def _group_folders(controller: str, proc: Path, cgroups: Path) -> Iterator[Path]:
    """Folders of this process's control group and of every group above it, versions 1 and 2."""
    try:
        entries = [line.split(":", 2) for line in proc.read_text().splitlines()]
    except OSError:  # no control groups on this system
        return
    for _, controllers, group in (entry for entry in entries if len(entry) == 3):
        if controllers and controller not in controllers.split(","):
            continue
        top = cgroups / controller if controllers else cgroups
        inner = top / group.lstrip("/")
        # In a container the path is the host's and does not exist here: the top still does.
        for folder in (inner, *inner.parents):
            yield folder
            if folder == top:
                break


def _cpu_quota(folder: Path) -> Iterator[float]:
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


def _memory_limit(folder: Path) -> Iterator[int]:
    """Bytes that one control group folder grants, if it limits them."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            yield int((folder / name).read_text())
        except (OSError, ValueError):  # as above; version 1 says 2^63 for no limit
            continue
