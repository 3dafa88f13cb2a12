"""What a run is going to do: scans used and left out with the reason, expected time and memory.

`--dry-run` prints the table, a run writes it to `logs/plan.tsv`. Expected seconds are a straight
line in the number of scans: of the newborns of 0.86 mm in benchmarks/README.md one took 24.7 s for
T1w, T2w and report on two cores of an AMD EPYC (Zen 3) without GPU. Expected memory is that of
libraries and network, and a share for every scan and for every voxel of the largest one;
benchmarks/memory.py compares it with what is measured. Of images only the headers are opened.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

from bids_synthseg.bids.scans import ScanGroup
from bids_synthseg.bids.tables import format_table
from bids_synthseg.errors import AppError
from bids_synthseg.nifti import read_geometry
from bids_synthseg.reading import read_head

SECONDS_PER_SCAN = 12.0
MEMORY_MB = 1150.0
MEMORY_MB_PER_SCAN = 150.0
BYTES_PER_VOXEL = 30.0


def expected_seconds(group: ScanGroup) -> float:
    """Seconds on two cores."""
    return 0.0 if group.problem else SECONDS_PER_SCAN * len(group.scans)


def expected_memory_mb(group: ScanGroup) -> float:
    """Peak memory of the process in MB (10^6 bytes)."""
    _, n_voxels = largest_scan(group)
    return MEMORY_MB + MEMORY_MB_PER_SCAN * len(group.scans) + BYTES_PER_VOXEL * n_voxels / 1e6


def largest_scan(group: ScanGroup) -> tuple[Path | None, int]:
    """The scan with the most voxels, and their number, by the headers; None and 0 without one that
    can be read, as such a session fails before it takes any memory."""
    sizes: dict[Path | None, int] = {None: 0}
    for scan in group.scans:
        with suppress(AppError):
            sizes[scan.path] = _n_voxels(scan.path)
    path = max(sizes, key=lambda path: sizes[path])
    return path, sizes[path]


@cache
def _n_voxels(path: Path) -> int:
    return math.prod(read_geometry(path).grid.shape)


def checked(group: ScanGroup) -> ScanGroup:
    """The session with the problem that it would fail of, as far as file names and the headers of
    its scans tell; `segment` meets the same one, with the same words."""
    try:
        for scan in group.scans if not group.problem else ():
            read_head(scan.path)
        for scan in group.scans if not group.problem else ():
            read_geometry(scan.path)
    except AppError as error:
        return replace(group, problem=str(error))
    return group


def plan_text(groups: Sequence[ScanGroup], bids_dir: Path, *, with_memory: bool = True) -> str:
    """Table with one row per image, tab-separated; those outside the data set by their full path.

    What a session is expected to take stands in the row of its first scan alone, so that the
    column adds up. One that is known to fail says so in place of "segmented". The expected memory
    takes a look at every header; without it the column is "n/a".
    """
    root = Path(bids_dir).absolute()
    columns: dict[str, list] = {
        name: [] for name in ("subject", "session", "image", "use", "seconds", "memory_mb")
    }
    for group in groups:
        use = f"fails: {group.problem}" if group.problem else "segmented"
        uses: list[tuple[Path | None, str]] = [(scan.path, use) for scan in group.scans]
        uses = uses or [(None, use)]
        uses += [(path, f"left out: {reason}") for path, reason in group.left_out]
        for number, (path, use) in enumerate(uses):
            row = (
                f"sub-{group.subject}",
                f"ses-{group.session}" if group.session else None,
                path and _shown(path, root),
                use,
                expected_seconds(group) if number == 0 else None,
                expected_memory_mb(group) if with_memory and number == 0 else None,
            )
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    return format_table(columns)


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def plan_summary(groups: Sequence[ScanGroup]) -> str:
    """One line on all sessions together."""
    took = in_words(sum(map(expected_seconds, groups)))
    memory_gb = max(map(expected_memory_mb, groups), default=0.0) / 1000
    scans = sum(len(group.scans) for group in groups)
    failing = sum(bool(group.problem) for group in groups)
    return (
        (f"{_count(failing, 'session')} will fail; " if failing else "")
        + f"{_count(len(groups), 'session')}, {_count(scans, 'scan')}: about {took} "
        f"one after another on two cores, {memory_gb:.1f} GB of memory"
    )


def in_words(seconds: float) -> str:
    """For example "2 h 5 min", at least "1 min"."""
    hours, minutes = divmod(max(1, round(seconds / 60)), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
