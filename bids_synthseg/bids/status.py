"""The status table of an output folder: one row per session, true at every moment.

`logs/status.tsv` (or `status_part-I.tsv`) gets a line before and after every session, so that a
process that is killed leaves the row "running" of the session it died on. Lines are only ever
added, under a lock, which takes as long in a table of 50,000 and loses none where several runs
write into one; of several lines on a session the last counts. `tidy_status`, before and after a
run, leaves one for each.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from bids_synthseg.bids.sessions import Key
from bids_synthseg.bids.tables import format_table
from bids_synthseg.claims import claim
from bids_synthseg.storage import explain, make_folder, write_text

LOG = logging.getLogger(__name__)
COLUMNS = ("subject", "session", "status", "seconds", "peak_mb", "message")
Row = dict[str, str]


def row_of(
    key: Key, status: str, message: str = "", seconds: float = 0.0, peak_mb: float = 0.0
) -> Row:
    """The row of one session; peak_mb is 0 where it is not known."""
    subject, session = key
    return {
        "subject": f"sub-{subject}",
        "session": f"ses-{session}" if session else "n/a",
        "status": status,
        "seconds": f"{seconds:.1f}",
        "peak_mb": f"{peak_mb:.0f}" if peak_mb else "n/a",
        "message": one_line(message) or "n/a",
    }


def key_of(row: Row) -> Key:
    """Subject and session of a row."""
    session = row["session"].removeprefix("ses-")
    return row["subject"].removeprefix("sub-"), None if session == "n/a" else session


def write_status(table: Path, row: Row) -> None:
    """Add one row to the table; it takes the place of earlier ones of the same session.

    Raises CannotCreate or StorageProblem.
    """
    make_folder(table.parent)
    header, line = _text([row]).splitlines(keepends=True)
    with claim(_lock(table), wait=True):
        try:
            with table.open("ab+") as stream:
                end = stream.seek(0, 2)
                stream.seek(max(0, end - 1))
                whole = stream.read() in (b"", b"\n")  # else a full disk cut the last line
                before = header if end == 0 else "" if whole else "\n"
                stream.write(f"{before}{line}".encode(errors="backslashreplace"))
        except OSError as error:
            raise explain(error, table) from error


def read_status(table: Path) -> list[Row]:
    """The last row of every session, sorted by subject and session; [] where there is no table.

    What no run has written is left out with a warning.
    """
    try:
        text = table.read_text(encoding="utf-8-sig", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        LOG.warning("%s: cannot be read (%s); it counts as empty", table, error.strerror)
        return []
    header, *lines = (line.rstrip("\r") for line in text.split("\n"))
    columns = header.split("\t")
    if not {"subject", "session", "status"} <= set(columns):
        LOG.warning("%s: not a status table (other columns); it counts as empty", table)
        return []
    found = {}
    for number, line in enumerate(lines, start=2):
        cells = line.split("\t")
        row = dict.fromkeys(COLUMNS, "n/a") | dict(zip(columns, cells, strict=False))
        key = row["subject"], row["session"]
        if len(cells) == len(columns) and all("/" not in name for name in key if name != "n/a"):
            found[key] = row
        elif line:
            LOG.warning("%s: line %d is damaged and left out", table, number)
    return [found[key] for key in sorted(found)]


def tidy_status(table: Path, is_running: Callable[[Key], bool]) -> None:
    """Leave one row for each session in the table, and none "running" that is not.

    Raises CannotCreate or StorageProblem.
    """
    if not table.exists():
        return
    with claim(_lock(table), wait=True):
        rows = read_status(table)
        for row in rows:
            if row["status"] == "running" and not is_running(key_of(row)):
                row |= {"status": "interrupted", "message": "its run was killed"}
        write_text(table, _text(rows))


def one_line(text: str) -> str:
    """Text without line breaks and tabs."""
    return " ".join(text.split())


def _lock(table: Path) -> Path:
    return table.with_name(f".{table.name}.lock")


def _text(rows: list[Row]) -> str:
    return format_table({name: [row[name] for row in rows] for name in COLUMNS})
