"""The reports of many sessions, made anew from what is in the output."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from bids_synthseg.bids.report import write_report
from bids_synthseg.bids.results import read_results
from bids_synthseg.bids.sessions import session_label
from bids_synthseg.bids.tidying import settle_sessions
from bids_synthseg.errors import AppError, InputMissing, NothingSelected

LOG = logging.getLogger(__name__)


def write_reports(
    bids_dir: Path,
    output_dir: Path,
    *,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
    viewer: str = "niivue",
    table_of_links: Mapping[str, Path] | None = None,
) -> int:
    """Write the report of every selected session; returns how many could not be written.

    participants, sessions: labels with or without "sub-", "ses-"; empty means all. A report that
    fails is logged, and the others are still made. Raises InputMissing where the output holds no
    session, NothingSelected where none of them was asked for.
    """
    settle_sessions(output_dir)
    keys = [result.key for result in read_results(output_dir)]
    if not keys:
        raise InputMissing(f"{output_dir}: holds no session; run level participant first")
    subjects = {label.removeprefix("sub-") for label in participants}
    wanted = {label.removeprefix("ses-") for label in sessions}
    chosen = [
        (subject, session)
        for subject, session in keys
        if (not subjects or subject in subjects) and (not wanted or session in wanted)
    ]
    if not chosen:
        raise NothingSelected(f"{output_dir}: holds none of the subjects and sessions asked for")
    failed = 0
    for key in chosen:
        try:
            page = write_report(
                bids_dir, output_dir, key, viewer=viewer, table_of_links=table_of_links or {}
            )
        except AppError as problem:
            LOG.error("%s: no report: %s", session_label(key), problem)
            failed += 1
        else:
            LOG.info("%s", page)
    return failed
