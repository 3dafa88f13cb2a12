"""Files that appear whole or not at all, and operating system errors in the user's words."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter
from pathlib import Path

from bids_synthseg.errors import AppError, CannotCreate, StorageProblem

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.tmp")
"""How `atomic_file` calls what is not complete yet."""

_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_IN_THE_WAY = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}


def explain(error: OSError, path: Path) -> AppError:
    """The error for the user that an operating system error on writing `path` stands for."""
    if error.errno in _FULL:
        return StorageProblem(f"{path}: the disk or your quota is full; free some space, run again")
    if error.errno in _DENIED:
        return CannotCreate(f"{path}: no permission to write here; choose another output folder")
    if error.errno in _IN_THE_WAY:
        return CannotCreate(f"{path}: a file is in the way of a folder, or the reverse; move it")
    if error.errno == errno.ENAMETOOLONG:
        return CannotCreate(f"{path}: the name is too long for the file system; shorten its labels")
    reason = error.strerror or str(error)
    return StorageProblem(f"{path}: writing failed ({reason}); check the disk, then run again")


def make_folder(path: Path) -> None:
    """Create a folder and its parents; raises CannotCreate or StorageProblem."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain(error, path) from error


TEMPORARY_BYTES = 14
"""By how much the name of a file that is being written is longer than its own."""


@contextmanager
def atomic_file(path: Path) -> Iterator[BufferedWriter]:
    """A binary stream whose content takes the name `path` only once it is safely on the disk.

    The temporary name lies in the same folder and begins with a dot, so that no BIDS tool sees it
    and the final rename cannot cross file systems. Folders are created. Raises CannotCreate or
    StorageProblem; then and after any other exception the temporary file is gone and an old file
    at `path` is untouched.
    """
    make_folder(path.parent)
    # Not NamedTemporaryFile: its mode 0600 would hide results from the user's group.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise explain(error, path) from error
    finally:
        # On a read-only file system even to remove what is not there fails.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def move_file(source: Path, target: Path) -> None:
    """Give a file the name `target` in one step, also where that is on another file system.

    Raises CannotCreate or StorageProblem.
    """
    make_folder(target.parent)
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise explain(error, target) from error
        with atomic_file(target) as copy, source.open("rb") as original:
            shutil.copyfileobj(original, copy, 1 << 20)
        source.unlink()


def remove_file(path: Path) -> None:
    """Remove a file if it is there; raises CannotCreate or StorageProblem."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise explain(error, path) from error


def remove_leftovers(folder: Path, is_own: Callable[[str], bool]) -> None:
    """Remove what `atomic_file` left in `folder` when its process was killed.

    is_own: whether a file of this name (without what made it temporary) is one to take away; no
    other process may be writing one. Raises CannotCreate or StorageProblem.
    """
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if (match := _TEMPORARY.fullmatch(path.name)) and is_own(match["name"]):
            remove_file(path)


def write_text(path: Path, text: str) -> None:
    r"""Write UTF-8 text in one step; errors as `atomic_file`.

    What Unicode cannot encode, as the bytes of a name that is no UTF-8, is written as `\udc80`.
    """
    with atomic_file(path) as stream:
        stream.write(text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, content: object) -> None:
    """Write JSON for people to read, keys in the order given; errors as `atomic_file`."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
