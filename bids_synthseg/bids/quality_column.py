"""What people said of the quality of a scan: a column of `scans.tsv`, named by the user.

A number ranks scans of one contrast, the higher the better; a word such as "fail" or "exclude"
drops the scan; anything else ("pass", "n/a", no row, no table) says nothing, and the names decide.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from bids_synthseg.errors import UsageProblem
from bids_synthseg.tsv import read_rows

EXCLUDING = frozenset({"fail", "failed", "exclude", "excluded", "reject", "rejected"})


def read_quality(
    root: Path, sessions: Iterable[tuple[str, str | None]], column: str
) -> dict[Path, str]:
    """Image -> content of the column, over (subject, session) labels of the data set at `root`.

    Raises UsageProblem where no scans.tsv has the column.
    """
    found: dict[Path, str] = {}
    seen: set[str] = set()
    for subject, session in sessions:
        folder = root / f"sub-{subject}"
        rows = read_scans_table(folder / f"ses-{session}" if session else folder)
        seen.update(*rows.values())
        found |= {path: row[column] for path, row in rows.items() if column in row}
    if column not in seen:
        there = ", ".join(sorted(seen - {"filename"})) or "none"
        raise UsageProblem(
            f"--quality-column {column}: no scans.tsv in {root} has it; columns are: {there}"
        )
    return found


def read_scans_table(session_dir: Path) -> dict[Path, dict[str, str]]:
    """Rows of the `*_scans.tsv` of a session by image, {} where there is none; BadData for a table
    that cannot be read."""
    tables = sorted(session_dir.glob("sub-*_scans.tsv"))
    rows = read_rows(tables[0], "filename") if tables else []
    return {session_dir / row["filename"]: row for row in rows}


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
