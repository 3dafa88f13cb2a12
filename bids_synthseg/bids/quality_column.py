"""What people said of the quality of a scan: a column of `scans.tsv`, named by the user.

A number ranks scans of one contrast, the higher the better; a word such as "fail" or "exclude"
drops the scan; anything else ("pass", "n/a", no row, no table) says nothing, and the names decide.
"""

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from bids_synthseg.errors import BadData, UsageProblem

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
        columns, rows = read_scans_table(folder / f"ses-{session}" if session else folder)
        seen.update(columns)
        if column in columns:
            found |= {path: row[column] for path, row in rows.items()}
    if column not in seen:
        there = ", ".join(sorted(seen - {"filename"})) or "none"
        raise UsageProblem(
            f"--quality-column {column}: no scans.tsv in {root} has it; columns are: {there}"
        )
    return found


def read_scans_table(session_dir: Path) -> tuple[tuple[str, ...], dict[Path, dict[str, str]]]:
    """Columns of the `*_scans.tsv` of a session, and its rows by image; empty where there is none.

    Raises BadData where the table cannot be read or has no column `filename`.
    """
    tables = sorted(session_dir.glob("sub-*_scans.tsv"))
    if not tables:
        return (), {}
    try:
        with tables[0].open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE, restval="n/a")
            columns, rows = tuple(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(f"{tables[0]}: cannot be read ({error}); correct the file") from error
    if "filename" not in columns:
        raise BadData(f"{tables[0]}: has no column 'filename'; write it as BIDS wants it")
    return columns, {session_dir / row["filename"]: row for row in rows}


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
