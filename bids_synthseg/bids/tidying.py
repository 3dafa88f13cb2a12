"""Order in an output before a run: what killed runs left there is completed or removed.

Only names that this App gives are touched, and only where no other run is at work in the output, as
that may be writing them. A session that is being done is claimed by who does it; what training
writes is its own.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bids_synthseg.bids.derivatives import SessionPaths, settle
from bids_synthseg.bids.results import session_key
from bids_synthseg.bids.staging import SUFFIX
from bids_synthseg.claims import Claimed, claim, is_claimed, presence, session_claim
from bids_synthseg.errors import AppError
from bids_synthseg.storage import remove_file, remove_leftovers

logger = logging.getLogger(__name__)

ROOT_FILES = (
    ".bidsignore",
    ".probe",
    "README.md",
    "dataset_description.json",
    "descriptions.tsv",
    "desc-aseg_dseg.tsv",
    "desc-native_dseg.tsv",
    "group.html",
    "group_qc.json",
    "group_qc.tsv",
    "group_volumes.json",
    "group_volumes.tsv",
)
"""What this App writes at the root of an output, but for the pages of sessions."""


@contextmanager
def at_work(output_dir: Path) -> Iterator[None]:
    """A run writes to the output meanwhile; before it begins, the output is put in order."""
    with presence(output_dir / "logs" / ".run.lock") as alone:
        settle_sessions(output_dir)
        if alone:
            _remove_leftovers(output_dir)
        yield


def settle_sessions(output_dir: Path) -> None:
    """Complete or remove what killed runs left of sessions that nobody is at.

    A session where that fails is logged, and will fail in the run that does it.
    """
    logs = output_dir / "logs"
    for folder in sorted(logs.glob(f".sub-*{SUFFIX}")):
        label = folder.name.removeprefix(".").removesuffix(SUFFIX)
        if not (key := session_key(label)):
            continue
        try:
            with claim(session_claim(logs, label)):
                settle(SessionPaths(output_dir, *key))
        except Claimed:
            continue
        except AppError as error:
            logger.warning("%s: %s", label, error)


def _remove_leftovers(output_dir: Path) -> None:
    logs = output_dir / "logs"
    for lock in logs.glob(".*.lock"):
        if lock.name != ".run.lock":
            is_claimed(lock)  # which removes it where it is not
    for key in logs.glob(".dask-jobqueue.worker.*"):
        remove_file(key)
    remove_leftovers(logs, lambda name: True)
    remove_leftovers(
        output_dir,
        lambda name: name in ROOT_FILES or (name.startswith("sub-") and name.endswith(".html")),
    )
