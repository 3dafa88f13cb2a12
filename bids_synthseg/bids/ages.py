"""Ages of sessions from the tables of a BIDS data set, in the order in which NiBabies asks them.

`_scans.tsv` (first row of anat), then `_sessions.tsv`, then `participants.tsv`; in a table the
first column there is of `age_weeks`, `age_months`, `age_years`, `age_days`, `age`. A bare `age`
counts only with `Units` in the JSON that describes the table: BIDS means years, studies of infants
often do not. Of a subject with several sessions the age in participants.tsv is that of none.
`age_weeks_pma`, weeks since the last menstrual period, is read beside these and in the same order.

Nothing is guessed: an age that is not clear is unknown, and a warning says why.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bids_synthseg.bids.sessions import Key
from bids_synthseg.errors import BadData
from bids_synthseg.reading import read_object
from bids_synthseg.tsv import NOT_AVAILABLE, read_rows

DAYS_PER_MONTH = 365.25 / 12
_DAYS = {"day": 1.0, "week": 7.0, "month": DAYS_PER_MONTH, "year": 365.25}
# As people write them, and as UCUM does (a, mo, wk, d).
_UNITS = {
    name: unit
    for unit, names in {
        "day": "day days d",
        "week": "week weeks wk wks w",
        "month": "month months mo mos",
        "year": "year years yr yrs y a",
    }.items()
    for name in names.split()
}
_SINCE_BIRTH = {
    "age_weeks": "week",
    "age_months": "month",
    "age_years": "year",
    "age_days": "day",
    "age": None,
}
_SINCE_CONCEPTION = {"age_weeks_pma": "week"}
_WARNINGS_IN_FULL = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Age:
    """Months since birth and weeks since the last menstrual period; None where not known."""

    months: float | None = None
    weeks_pma: float | None = None


@dataclass(frozen=True)
class _Row:
    """A row of a table about a session; `described_by`: JSON files, the nearest first."""

    table: Path
    cells: dict[str, str]
    described_by: tuple[Path, ...]


class _Unclear(ValueError):
    """An age that is written but cannot be used, with the reason."""


def read_ages(bids_dir: Path, sessions: Iterable[Key]) -> dict[Key, Age]:
    """The age at every session; what is not clear is unknown, and one warning tells of all."""
    by_subject: dict[str, list[str | None]] = defaultdict(list)
    for subject, session in sessions:
        by_subject[subject].append(session)
    complaints: dict[str, None] = {}  # as an ordered set
    participants = _rows(bids_dir / "participants.tsv", complaints)
    by_participant = {_label(row, "participant_id"): row for row in reversed(participants)}
    ages = {}
    for subject, own in by_subject.items():
        folder = bids_dir / f"sub-{subject}"
        sessions_table = folder / f"sub-{subject}_sessions.tsv"
        by_session = {
            _label(row, "session_id"): row for row in reversed(_rows(sessions_table, complaints))
        }
        n_sessions = len(set(own) | {path.name[4:] for path in folder.glob("ses-*")})
        for session in own:
            rows = list(_scans_row(bids_dir, subject, session, complaints))
            if session in by_session:
                json_files = (sessions_table.with_suffix(".json"), bids_dir / "sessions.json")
                rows.append(_Row(sessions_table, by_session[session], json_files))
            if subject in by_participant:
                table = bids_dir / "participants.tsv"
                rows.append(_Row(table, by_participant[subject], (table.with_suffix(".json"),)))
            found = []
            for columns in (_SINCE_BIRTH, _SINCE_CONCEPTION):
                try:
                    found.append(_first_age(rows, columns, n_sessions))
                except (_Unclear, BadData) as problem:
                    complaints[str(problem)] = None
                    found.append(None)
            days, days_pma = found
            ages[subject, session] = Age(
                None if days is None else days / DAYS_PER_MONTH,
                None if days_pma is None else days_pma / _DAYS["week"],
            )
    _warn(list(complaints))
    return ages


def _first_age(rows: list[_Row], columns: dict[str, str | None], n_sessions: int) -> float | None:
    """Days, from the first row that has one; None where no row has. Raises _Unclear, BadData."""
    for row in rows:
        column = next((name for name in columns if name in row.cells), None)
        if column is None or row.cells[column].strip().lower() in NOT_AVAILABLE:
            continue
        if row.table.name == "participants.tsv" and n_sessions > 1:
            raise _Unclear(
                f"{row.table}: one age for {n_sessions} sessions of sub-{_label(row.cells)}; "
                "write them into its _sessions.tsv"
            )
        return _days(row, column, columns[column])
    return None


def _days(row: _Row, column: str, unit: str | None) -> float:
    text = row.cells[column].strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _Unclear(f"{row.table}: {column} {text!r} is not a number")
    if value < 0:
        raise _Unclear(f"{row.table}: {column} {text} is negative")
    return value * _DAYS[unit or _described_unit(row, column)]


def _described_unit(row: _Row, column: str) -> str:
    """The unit that the JSON files tell; raises _Unclear where they do not."""
    for path in row.described_by:
        about = read_object(path).get(column)
        given = about.get("Units") if isinstance(about, dict) else None
        if given is None:
            continue
        unit = _UNITS.get(str(given).strip().rstrip(".").lower())
        if unit is None:
            raise _Unclear(f"{path}: Units {given!r} of {column}; write day, week, month or year")
        return unit
    raise _Unclear(
        f"{row.table}: {column} has no Units in {row.described_by[0].name}, so it may be years or "
        "months; write them there, or name the column age_months"
    )


def _scans_row(
    bids_dir: Path, subject: str, session: str | None, complaints: dict[str, None]
) -> Iterator[_Row]:
    """The first row of `_scans.tsv` that is about an image in anat."""
    folder, stem = bids_dir / f"sub-{subject}", f"sub-{subject}"
    if session:
        folder, stem = folder / f"ses-{session}", f"{stem}_ses-{session}"
    table = folder / f"{stem}_scans.tsv"
    for cells in _rows(table, complaints):
        if cells.get("filename", "").startswith("anat/"):
            yield _Row(table, cells, (table.with_suffix(".json"), bids_dir / "scans.json"))
            return


def _rows(table: Path, complaints: dict[str, None]) -> list[dict[str, str]]:
    try:
        return read_rows(table)
    except BadData as problem:
        complaints[str(problem)] = None
        return []


def _label(cells: dict[str, str], column: str = "participant_id") -> str:
    """The label of a row, with or without its prefix."""
    return cells.get(column, "").strip().removeprefix("sub-").removeprefix("ses-")


def _warn(complaints: list[str]) -> None:
    for complaint in complaints[:_WARNINGS_IN_FULL]:
        logger.warning("age unknown: %s", complaint)
    if len(complaints) > _WARNINGS_IN_FULL:
        logger.warning("age unknown: %d more such cases", len(complaints) - _WARNINGS_IN_FULL)
