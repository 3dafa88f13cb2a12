"""Ages of sessions from the tables of a BIDS data set, in the order in which NiBabies asks them.

`_scans.tsv` (rows of anat), then `_sessions.tsv`, then `participants.tsv`; in a table the first
column there is of `age_weeks`, `age_months`, `age_years`, `age_days`, `age`. A bare `age`
counts only with `Units` in the JSON that describes the table: BIDS means years, studies of infants
often do not. Of a subject with several sessions the age in participants.tsv is that of none,
unless a column `session_id` says which. Several rows for one session count where they agree within
two weeks.
`age_weeks_pma`, weeks since the last menstrual period, is read beside these and in the same order.

Nothing is guessed: an age that is not clear is unknown, and a warning says why.
"""

import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bids_synthseg.bids.scans_table import read_scans_table, scans_table
from bids_synthseg.bids.sessions import Key
from bids_synthseg.errors import AppError
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
_SESSION_COLUMNS = ("session_id", "session", "ses")
_SAME_AGE_DAYS = 14.0  # a session may take days; rows further apart contradict each other
_OLDEST_DAYS = 130 * 365.25
_WARNINGS_IN_FULL = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Age:
    """Months since birth and weeks since the last menstrual period; None where not known."""

    months: float | None = None
    weeks_pma: float | None = None


@dataclass(frozen=True)
class _Rows:
    """The rows of a table that are about a session; `described_by`: JSON files, the nearest
    first; `of_all`: so many sessions they are about alike."""

    table: Path
    rows: tuple[dict[str, str], ...]
    described_by: tuple[Path, ...]
    of_all: int = 1


class _Unclear(ValueError):
    """An age that is written but cannot be used, with the reason."""


def read_ages(bids_dir: Path, sessions: Iterable[Key]) -> dict[Key, Age]:
    """The age at every session; what is not clear is unknown, and one warning tells of all."""
    by_subject: dict[str, list[str | None]] = defaultdict(list)
    for subject, session in sessions:
        by_subject[subject].append(session)
    complaints: dict[str, None] = {}  # as an ordered set
    participants = bids_dir / "participants.tsv"
    by_participant = _by_label(participants, "participant_id", complaints)
    ages = {}
    for subject, own in by_subject.items():
        folder = bids_dir / f"sub-{subject}"
        table = folder / f"sub-{subject}_sessions.tsv"
        by_session = _by_label(table, "session_id", complaints)
        n_sessions = len(set(own) | _session_folders(folder))
        for session in own:
            scans = scans_table(bids_dir, (subject, session))
            of_subject = by_participant.get(subject, [])
            of_session = _of_session(of_subject, session)
            asked = (
                _Rows(
                    scans,
                    _scans_rows(bids_dir, (subject, session), complaints),
                    (scans.with_suffix(".json"), bids_dir / "scans.json"),
                ),
                _Rows(
                    table,
                    tuple(by_session.get(session or "", ())),
                    (table.with_suffix(".json"), bids_dir / "sessions.json"),
                ),
                _Rows(
                    participants,
                    tuple(of_subject if of_session is None else of_session),
                    (participants.with_suffix(".json"),),
                    n_sessions if of_session is None else 1,
                ),
            )
            found = []
            for columns in (_SINCE_BIRTH, _SINCE_CONCEPTION):
                try:
                    found.append(_first_age(asked, columns, f"sub-{subject}"))
                except (_Unclear, AppError) as problem:
                    complaints[str(problem)] = None
                    found.append(None)
            days, days_pma = found
            ages[subject, session] = Age(
                None if days is None else days / DAYS_PER_MONTH,
                None if days_pma is None else days_pma / _DAYS["week"],
            )
    _warn(list(complaints))
    return ages


def _first_age(
    tables: Iterable[_Rows], columns: dict[str, str | None], subject: str
) -> float | None:
    """Days, from the first table that tells; None where none does. Raises _Unclear, AppError."""
    for about in tables:
        told = [(row, name) for row in about.rows if (name := _told(row, columns))]
        if not told:
            continue
        if about.of_all > 1:
            raise _Unclear(
                f"{about.table}: one age for {about.of_all} sessions of {subject}; "
                "write them into its _sessions.tsv"
            )
        days = [_days(about, row, name, columns[name]) for row, name in told]
        if max(days) - min(days) > _SAME_AGE_DAYS:
            raise _Unclear(
                f"{about.table}: {len(days)} rows of {subject} contradict each other; keep one for "
                "each session"
            )
        return days[0]
    return None


def _told(row: dict[str, str], columns: Iterable[str]) -> str | None:
    """The first of the columns that there is, if its cell tells anything."""
    name = next((name for name in columns if name in row), None)
    return name if name and row[name].strip().lower() not in NOT_AVAILABLE else None


def _days(about: _Rows, row: dict[str, str], column: str, unit: str | None) -> float:
    text = row[column].strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _Unclear(f"{about.table}: {column} {text!r} is not a number")
    if value < 0:
        raise _Unclear(f"{about.table}: {column} {text} is negative")
    days = value * _DAYS[unit or _described_unit(about, column)]
    if days > _OLDEST_DAYS:
        raise _Unclear(f"{about.table}: {column} {text} is no age that people reach")
    return days


def _described_unit(about: _Rows, column: str) -> str:
    """The unit that the JSON files tell; raises _Unclear where they do not."""
    for path in about.described_by:
        described = {str(name).lower(): told for name, told in read_object(path).items()}
        told = described.get(column)
        given = told.get("Units") if isinstance(told, dict) else None
        if given is None:
            continue
        unit = _UNITS.get(str(given).strip().rstrip(".").lower())
        if unit is None:
            raise _Unclear(f"{path}: Units {given!r} of {column}; write day, week, month or year")
        return unit
    raise _Unclear(
        f"{about.table}: {column} has no Units in {about.described_by[0].name}, so it may be years "
        "or months; write them there, or name the column age_months"
    )


def _scans_rows(
    bids_dir: Path, key: Key, complaints: dict[str, None]
) -> tuple[dict[str, str], ...]:
    """The rows of `_scans.tsv` that are about an image in anat."""
    try:
        rows = read_scans_table(bids_dir, key)
    except AppError as problem:
        complaints[str(problem)] = None
        return ()
    return tuple(row for path, row in rows if path.parent.name == "anat")


def _of_session(rows: list[dict[str, str]], session: str | None) -> list[dict[str, str]] | None:
    """Those of a subject's rows that name this session; None where none names any."""
    column = next((name for name in _SESSION_COLUMNS if any(name in row for row in rows)), None)
    if column is None or all(_label(row, column) in NOT_AVAILABLE for row in rows):
        return None
    return [row for row in rows if _label(row, column) == (session or "")]


def _session_folders(folder: Path) -> set[str]:
    try:
        return {name[4:] for name in os.listdir(folder) if name.startswith("ses-")}
    except OSError:  # a subject that derivatives alone have, or one that fails by itself
        return set()


def _by_label(
    table: Path, column: str, complaints: dict[str, None]
) -> dict[str, list[dict[str, str]]]:
    """Rows of a table by the label in a column."""
    found: dict[str, list[dict[str, str]]] = defaultdict(list)
    try:
        for row in read_rows(table, column):
            found[_label(row, column)].append(row)
    except AppError as problem:
        complaints[str(problem)] = None
    return found


def _label(row: dict[str, str], column: str) -> str:
    """The label in a cell, with or without its prefix."""
    return row.get(column, "").strip().removeprefix("sub-").removeprefix("ses-")


def _warn(complaints: list[str]) -> None:
    for complaint in complaints[:_WARNINGS_IN_FULL]:
        logger.warning("age unknown: %s", complaint)
    if len(complaints) > _WARNINGS_IN_FULL:
        logger.warning("age unknown: %d more such cases", len(complaints) - _WARNINGS_IN_FULL)
