"""What people said of the quality of a scan: a column of `scans.tsv`, named by the user.

A number ranks scans of one contrast, the higher the better; a word such as "fail" or "exclude"
drops the scan; anything else ("pass", "n/a", no row, no table) says nothing, and the names decide.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from bids_synthseg.bids.scans_table import read_scans_table, scans_table
from bids_synthseg.bids.sessions import Key
from bids_synthseg.errors import AppError, UsageProblem

EXCLUDING = frozenset({"fail", "failed", "exclude", "excluded", "reject", "rejected"})

logger = logging.getLogger(__name__)


def read_quality(
    root: Path, sessions: Iterable[Key], column: str
) -> tuple[dict[Path, str], dict[Key, str]]:
    """Image -> content of the column, over the sessions of the data set at `root`; and session ->
    why its table cannot be used.

    An image with several rows that differ has no quality, which a warning tells. Raises
    UsageProblem where no scans.tsv has the column.
    """
    found: dict[Path, str] = {}
    problems: dict[Key, str] = {}
    seen: set[str] = set()
    for key in sessions:
        try:
            rows = read_scans_table(root, key)
        except AppError as error:
            problems[key] = str(error)
            continue
        seen.update(name for _, row in rows for name in row)
        said: dict[Path, set[str]] = defaultdict(set)
        for path, row in rows:
            name = column if column in row else column.lower()
            if name in row:
                said[path].add(row[name].strip())
        for path, cells in said.items():
            if len(cells) > 1:
                logger.warning(
                    "%s: its rows for %s contradict each other (%s); none of them counts",
                    scans_table(root, key), path.name, ", ".join(sorted(cells)),
                )  # fmt: skip
            else:
                found[path] = cells.pop()
    if not seen & {column, column.lower()} and not (problems and not seen):
        there = ", ".join(sorted(seen - {"filename"})) or "none"
        raise UsageProblem(
            f"--quality-column {column}: no scans.tsv in {root} has it; columns are: {there}"
        )
    return found, problems


def quality_score(text: str | None) -> float | None:
    """The number in a cell; None where it holds none."""
    try:
        score = float(text or "")
    except ValueError:
        return None
    return score if math.isfinite(score) else None


def excludes(text: str | None) -> bool:
    """Whether the cell says that the scan must not be used."""
    return (text or "").strip().lower() in EXCLUDING


def quality_rank(path: Path, quality: Mapping[Path, str]) -> float:
    """Lowest for the best scan; scans without a number come last, and alike."""
    score = quality_score(quality.get(path))
    return math.inf if score is None else -score
