"""What the words after an option mean: contrasts, NAME=PATH pairs, filter files, parts of a job."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bids_synthseg.bids.scans import CONTRASTS
from bids_synthseg.errors import BadData, InputMissing, UsageProblem
from bids_synthseg.reading import is_there, read_json

Unit = TypeVar("Unit")


@dataclass(frozen=True)
class Part:
    """Share `number`, counted from 0, of work that is cut into `of` shares.

    The shares depend on the work alone, so that a share can be done again by its number.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise UsageProblem(
                f"--part-id {self.number}: parts are counted from 0 to {self.of - 1} with "
                f"--num-parts {self.of}"
            )

    def share(self, units: Sequence[Unit]) -> list[Unit]:
        """Every `of`-th unit."""
        return list(units[self.number :: self.of])


def part_of(
    num_parts: int | None, part_id: int | None, environ: Mapping[str, str] = os.environ
) -> Part | None:
    """The share that options or, with --num-parts alone, a SLURM job array ask for; None: all.

    How many shares there are is never read from SLURM: an array that is submitted again for some
    of its tasks has fewer of them, and would cut the data set anew.
    """
    if num_parts is None:
        if part_id is not None:
            raise UsageProblem("--part-id needs --num-parts: of how many parts?")
        return None
    if part_id is not None:
        return Part(part_id, num_parts)
    task = environ.get("SLURM_ARRAY_TASK_ID", "")
    if not task.isdigit():
        raise UsageProblem(
            "--num-parts needs --part-id, or a SLURM job array (SLURM_ARRAY_TASK_ID) to run in"
        )
    return Part(int(task), num_parts)


def contrasts(values: Sequence[str]) -> tuple[str, ...]:
    """The contrasts asked for, T1w before T2w; 'both' and nothing mean both."""
    known = {"t1w": ("T1w",), "t2w": ("T2w",), "both": CONTRASTS}
    unknown = [value for value in values if value.lower() not in known]
    if unknown:
        raise UsageProblem(f"--contrast {unknown[0]}: not known; use T1w, T2w or both")
    wanted = {name for value in values for name in known[value.lower()]}
    return tuple(name for name in CONTRASTS if name in wanted or not wanted)


def named_paths(values: Sequence[str]) -> dict[str, Path]:
    """NAME=PATH pairs as a dictionary."""
    paths: dict[str, Path] = {}
    for value in values:
        name, sign, path = value.partition("=")
        if not (name and sign and path) or name in paths:
            raise UsageProblem(f"--derivatives {value}: write NAME=PATH, each name once")
        paths[name] = Path(path)
    return paths


def read_filters(path: Path | None) -> dict[str, dict] | None:
    """The filter file: {"t1w": {entity: value, ...}, "t2w": {...}}; keys of others are ignored."""
    if path is None:
        return None
    if not is_there(path):
        raise InputMissing(f"{path}: no such filter file; check --bids-filter-file")
    try:
        filters = read_json(path)
    except BadData as error:
        raise UsageProblem(str(error)) from error
    if not isinstance(filters, dict) or not all(isinstance(v, dict) for v in filters.values()):
        raise UsageProblem(f'{path}: write the filters as {{"t1w": {{...}}, "t2w": {{...}}}}')
    return filters
