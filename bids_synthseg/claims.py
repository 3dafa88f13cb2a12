"""Locks that keep two processes, of one machine or several, from the same work or file.

A lock is held by the kernel (flock, which NFS passes on to its server) on an empty file of that
name, so it goes with the process that holds it: whatever a killed run had claimed is free again.
Where a file system has no locks, that is said once and work goes on without them.
"""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from bids_synthseg.errors import TryAgainLater
from bids_synthseg.storage import explain, make_folder

LOG = logging.getLogger(__name__)

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


class Claimed(TryAgainLater):
    """Another process holds this lock."""


def session_claim(logs: Path, label: str) -> Path:
    """The lock on one session of the output whose logs lie in `logs`."""
    return logs / f".{label}.lock"


@contextmanager
def claim(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock at `path` meanwhile; the file goes with it.

    wait: until others let go of it; else raises Claimed where they hold it. Raises CannotCreate or
    StorageProblem where the file cannot be made.
    """
    handle = _lock(path, wait)
    try:
        yield
    finally:
        # Removed while it is held: who opened it meanwhile notices, and makes a new one.
        with suppress(OSError):
            path.unlink()
        os.close(handle)


@contextmanager
def presence(path: Path) -> Iterator[bool]:
    """Be one of those at work here meanwhile; yields whether nobody else is.

    All hold the lock at `path` together. Raises as `claim`; where there are no locks, nobody is
    known to be alone.
    """
    handle = _lock(path, wait=True, kind=fcntl.LOCK_SH)
    try:
        yield _is_alone(handle)
    finally:
        if _is_alone(handle):
            with suppress(OSError):
                path.unlink()
        os.close(handle)


def is_claimed(path: Path) -> bool:
    """Whether a process holds the lock at `path` at this moment."""
    try:
        with claim(path):
            return False
    except Claimed:
        return True


def _lock(path: Path, wait: bool, kind: int = fcntl.LOCK_EX) -> int:
    """The file, open and locked."""
    make_folder(path.parent)
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise explain(error, path) from error
        try:
            fcntl.flock(handle, kind | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            os.close(handle)
            raise Claimed(f"{path}: another run is at this; try again later") from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(handle)
                raise explain(error, path) from error
            _say_unlocked(path.parent)
            return handle
        except BaseException:
            os.close(handle)
            raise
        if _is_at(handle, path):
            return handle
        os.close(handle)  # its last holder has removed it


def _is_alone(handle: int) -> bool:
    """Whether no other process shares the lock."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(handle, fcntl.LOCK_SH)
    except OSError:
        return False
    return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


@cache
def _say_unlocked(folder: Path) -> None:
    LOG.warning("%s: no file locks on this file system; let one run at a time write here", folder)
