"""The status table of an output folder: one row per session, true at every moment.

`logs/status.tsv` (or `status_part-I.tsv`) is written anew, in one step, before and after every
session, so that a process that is killed leaves the row "running" of the session it died on.
"""

import logging
from pathlib import Path

from bids_synthseg.bids.sessions import Key
from bids_synthseg.bids.tables import format_table
from bids_synthseg.errors import BadData
from bids_synthseg.storage import write_text
from bids_synthseg.tsv import read_rows

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


def write_status(table: Path, row: Row) -> None:
    """Put one row into the table in one step; an earlier row of the same session is replaced.

    The table is read anew each time: it may hold sessions of earlier runs.
    """
    rows = {(old["subject"], old["session"]): old for old in [*read_status(table), row]}
    in_order = [rows[key] for key in sorted(rows)]
    write_text(table, format_table({name: [one[name] for one in in_order] for name in COLUMNS}))


def read_status(table: Path) -> list[Row]:
    """Rows of a status table; [] where there is none, or, with a warning, where it is damaged."""
    try:
        return read_rows(table, *COLUMNS)
    except BadData as problem:
        LOG.warning("begun anew, %s", problem)
        return []


def one_line(text: str) -> str:
    """Text without line breaks and tabs."""
    return " ".join(text.split())
