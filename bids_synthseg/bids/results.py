"""What level participant left of every session: status, quality, volumes. No image is opened.

A session is known by its row in `logs/status*.tsv`, its record `logs/sub-*.json` or its volumes.
Its volumes count where the record carries the mark of completion, or where there is no record; its
quality is told by the record alone.
"""

import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bids_synthseg.bids.derivatives import SessionPaths, session_record
from bids_synthseg.bids.quality import Quality
from bids_synthseg.bids.scans import CONTRASTS
from bids_synthseg.bids.sessions import Key, OfSession, session_order
from bids_synthseg.bids.status import key_of, read_status
from bids_synthseg.bids.tables import VOLUME_COLUMNS
from bids_synthseg.errors import BadData
from bids_synthseg.tsv import NOT_AVAILABLE, read_rows

STATUSES = {
    "done": "finished, by the last run or one before",
    "failed": "stopped by an error, which the message names",
    "interrupted": "stopped before its end",
    "unfinished": "not finished: still running, or killed without a word",
    "incomplete": "finished once, but its volumes are missing or broken now",
    "unknown": "volumes are there, but nothing in logs/ tells of them",
}
"""What became of a session, in words."""

_PLACE = re.compile(r"sub-(?P<subject>[^/]+?)(_ses-(?P<session>[^/]+))?")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Volume:
    """Volume of one structure by voxel count and by summed probability, None without posteriors."""

    index: int
    hard_mm3: float
    soft_mm3: float | None


@dataclass(frozen=True)
class Result(OfSession):
    """One session; `status` is one of STATUSES, `message` its reason ("" where there is none).

    seconds: of the run that made it, None if not known; warnings: those of that run; quality: None
    in outputs of versions that did not judge; volumes: space ("T1w", "T2w") -> structure -> volume,
    {} where none can be trusted; report, log: names of these files in the output, None where there
    is none.
    """

    status: str
    message: str = ""
    seconds: float | None = None
    warnings: tuple[str, ...] = ()
    quality: Quality | None = None
    volumes: dict[str, dict[str, Volume]] | None = None
    report: str | None = None
    log: str | None = None

    @property
    def space(self) -> str | None:
        """The space to speak of where one is enough: T1w before T2w."""
        return next(iter(self.volumes or {}), None)

    def brain_mm3(self, space: str | None) -> float | None:
        """Volume of all structures together: that of the brain mask, but for holes it fills."""
        if not self.volumes or space is None:
            return None
        return sum(volume.hard_mm3 for volume in self.volumes[space].values())


def read_results(output_dir: Path) -> list[Result]:
    """All sessions of an output folder, sorted by subject and session."""
    rows = _status_rows(output_dir / "logs")
    keys = set(rows) | set(_recorded(output_dir / "logs")) | set(_segmented(output_dir))
    return [
        _result(SessionPaths(output_dir, *key), rows.get(key, {}))
        for key in sorted(keys, key=session_order)
    ]


def _result(paths: SessionPaths, row: dict[str, str]) -> Result:
    problem = ""
    record: dict | None = None
    volumes: dict[str, dict[str, Volume]] = {}
    quality = None
    if paths.record.is_file() and not (record := session_record(paths).read()):
        problem = f"{paths.record}: not what was written there; run the session again"
    try:
        if record is None or record.get("Signature"):
            volumes = _volumes(paths)
            quality = Quality.of(record.get("Quality")) if record else None
    except BadData as error:
        problem = f"{error}; or run the session again with --overwrite"
    status, message = _status(row, record, bool(volumes), problem)
    warnings = record.get("Warnings") if record else None
    # Of a session that was done already, the time of finding that out is no news.
    timed = row.get("status") in ("done", "failed", "interrupted")
    return Result(
        subject=paths.subject,
        session=paths.session,
        status=status,
        message=" ".join(message.split()),
        seconds=_number(row.get("seconds")) if timed else None,
        warnings=tuple(map(str, warnings)) if isinstance(warnings, list) else (),
        quality=quality,
        volumes=volumes,
        report=paths.report.name if paths.report.is_file() else None,
        log=f"logs/{paths.log.name}" if paths.log.is_file() else None,
    )


def _status(
    row: dict[str, str], record: dict | None, has_volumes: bool, problem: str
) -> tuple[str, str]:
    """One of STATUSES, and the reason in words."""
    said, message = row.get("status", ""), row.get("message", "")
    message = "" if message in NOT_AVAILABLE else message
    kept = "; its volumes are those of an earlier run" if has_volumes else ""
    if said in ("failed", "interrupted"):
        return said, message + kept
    if problem:
        return "incomplete", problem
    if said == "running" or (record is not None and not record.get("Signature")):
        return "unfinished", f"still running, or killed (memory, time limit){kept}"
    if not has_volumes:
        return "incomplete", "its volumes are gone; run level participant again"
    if record is None and not said:
        return "unknown", STATUSES["unknown"]
    return "done", ""


def _volumes(paths: SessionPaths) -> dict[str, dict[str, Volume]]:
    """Space -> structure -> volume; raises BadData for a table that is none."""
    found = {}
    for space in CONTRASTS:
        path = paths.file("volumes", ".tsv", space=space, desc="aseg")
        rows = read_rows(path, *VOLUME_COLUMNS)
        try:
            volumes = {
                row["name"]: Volume(
                    int(row["index"]), float(row["volume_mm3"]), _number(row["volume_soft_mm3"])
                )
                for row in rows
            }
        except ValueError as error:
            raise BadData(f"{path}: not a table of volumes ({error}); mend it") from error
        if any(not math.isfinite(volume.hard_mm3) for volume in volumes.values()):
            raise BadData(f"{path}: holds a volume that is not a number; mend it")
        if volumes:
            found[space] = volumes
    return found


def _status_rows(logs: Path) -> dict[Key, dict[str, str]]:
    """The last word on every session, from all status tables (one per shard of a job)."""
    tables = sorted(logs.glob("status*.tsv"), key=lambda path: (path.stat().st_mtime, path.name))
    return {key_of(row): row for table in tables for row in read_status(table)}


def session_key(label: str) -> Key | None:
    """The session that is called "sub-01_ses-1mo"; None for another name."""
    place = _PLACE.fullmatch(label)
    return (place["subject"], place["session"]) if place else None


def _recorded(logs: Path) -> Iterator[Key]:
    for path in logs.glob("sub-*.json"):
        if key := session_key(path.stem):
            yield key


def _segmented(output_dir: Path) -> Iterator[Key]:
    pattern = "anat/sub-*_desc-aseg_volumes.tsv"
    for path in [*output_dir.glob(f"sub-*/{pattern}"), *output_dir.glob(f"sub-*/ses-*/{pattern}")]:
        subject, *session = path.relative_to(output_dir).parts[:-2]
        yield subject[4:], session[0][4:] if session else None


def _number(cell: str | None) -> float | None:
    """None for "n/a" and all else that is no number."""
    try:
        return float(cell or "")
    except ValueError:
        return None
