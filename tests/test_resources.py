"""What a process may use: the least of machine, control group and job."""

import os
import subprocess
import sys

import pytest

from bids_synthseg import resources

GIB = 2**30


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """machine(function, cgroup text, {file: text}, environment) on 16 cores and 64 GiB."""
    sysconf = {"SC_PHYS_PAGES": 2**24, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(resources.os, "sched_getaffinity", lambda _: range(16), raising=False)
    monkeypatch.setattr(resources.os, "sysconf", sysconf.get)

    def ask(function, proc="", files=None, environ=None):
        (tmp_path / "proc").write_text(proc)
        for name, text in (files or {}).items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return function(environ or {}, tmp_path / "proc", tmp_path / "cgroup")

    return ask


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
    assert machine(resources.available_cpus, proc, files, environ) == expected


@pytest.mark.parametrize(
    ("proc", "files", "environ", "expected_bytes"),
    [
        ("", {}, {}, 64 * GIB),
        ("0::/job/a\n", {"job/a/memory.max": "max\n", "job/memory.max": str(4 * GIB)}, {}, 4 * GIB),
        ("0::/docker/123\n", {"memory.max": str(3 * GIB)}, {}, 3 * GIB),
        # Version 1: its own folder for memory; 2^63 is no limit.
        (
            "3:cpu:/s\n2:memory:/m/n\n",
            {
                "memory/m/n/memory.limit_in_bytes": str(2**63 - 4096),
                "memory/m/memory.limit_in_bytes": str(5 * GIB),
                "cpu/memory.limit_in_bytes": "1",
            },
            {},
            5 * GIB,
        ),
        # SLURM counts in MiB; 0 stands for the whole node.
        ("", {}, {"SLURM_MEM_PER_NODE": "2048"}, 2 * GIB),
        ("", {}, {"SLURM_MEM_PER_NODE": "0"}, 64 * GIB),
        ("", {}, {"SLURM_MEM_PER_CPU": "1024"}, GIB),
        ("", {}, {"SLURM_MEM_PER_CPU": "1024", "SLURM_CPUS_PER_TASK": "3"}, 3 * GIB),
        (
            "",
            {},
            {"SLURM_MEM_PER_CPU": "1024", "SLURM_CPUS_PER_TASK": "3", "SLURM_CPUS_ON_NODE": "4"},
            4 * GIB,
        ),
    ],
)
def test_available_memory(machine, proc, files, environ, expected_bytes):
    found_gb = machine(resources.available_memory_gb, proc, files, environ)
    assert found_gb == pytest.approx(expected_bytes / 1e9)


def test_without_control_groups(tmp_path):
    assert resources.available_cpus({}, tmp_path / "none", tmp_path) >= 1
    assert resources.available_memory_gb({}, tmp_path / "none", tmp_path) > 0.1


def test_the_peak_is_a_maximum():
    before = resources.peak_memory_mb()
    block = bytearray(int(3e8))
    held = resources.peak_memory_mb()
    del block
    assert before > 5
    assert resources.peak_memory_mb() >= held >= before


def test_threads_of_libraries_loaded_before_and_after():
    code = (
        "import torch, os\n"
        "from bids_synthseg.resources import limit_threads\n"
        "limit_threads(1); before = torch.get_num_threads()\n"
        "limit_threads(3)\n"
        "import SimpleITK as sitk\n"
        "print(before, torch.get_num_threads(),"
        " sitk.ProcessObject.GetGlobalDefaultNumberOfThreads(), os.environ['OMP_NUM_THREADS'])\n"
        "limit_threads(2); print(sitk.ProcessObject.GetGlobalDefaultNumberOfThreads())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert result.stdout.split() == ["1", "3", "3", "3", "2"]
