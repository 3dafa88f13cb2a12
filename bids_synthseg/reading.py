"""Readers of files that others wrote: only regular files are opened, and stand-ins are recognised.

Every reader answers with the content or raises one line that names the file and the cure:
InputMissing where there is no such file or only a link or pointer to it, BadData where it cannot be
used.
"""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from bids_synthseg.errors import AppError, BadData, InputMissing
from bids_synthseg.toml import parse_toml

LARGEST_TEXT = 64 * 2**20
"""Bytes of a table or description; one of 50,000 sessions has less than a tenth of that."""

DEEPEST_JSON = 50
"""Levels of a JSON document; descriptions of BIDS have less than ten."""

_HEAD = 512
_POINTERS = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself; fetch the data "
     "('git lfs pull')"),
    (b"/annex/objects/", "a pointer of git-annex, not the file itself; fetch the data "
     "('datalad get')"),
)  # fmt: skip
_WEB_PAGE = (b"<!doctype html", b"<html", b"<?xml")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def unreadable(error: OSError, path: Path) -> AppError:
    """The error for the user that an operating system error on reading `path` stands for."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        if path.is_symlink():
            return InputMissing(f"{path}: the link leads nowhere; fetch the data ('datalad get')")
        return InputMissing(f"{path}: no such file; check the path")
    if error.errno == errno.ELOOP:
        return BadData(f"{path}: a link that leads back to itself; replace it")
    if error.errno in (errno.EACCES, errno.EPERM):
        return BadData(f"{path}: no permission to read it; change its rights")
    if error.errno == errno.ENAMETOOLONG:
        return BadData(f"{path}: the name is too long for the file system; shorten it")
    return BadData(f"{path}: cannot be read ({error.strerror or error}); check the disk")


def is_there(path: Path) -> bool:
    """Whether anything has this name, were it a dead link; raises as `check_file` where that
    cannot be told."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise unreadable(error, path) from error
    return True


def check_file(path: Path) -> os.stat_result:
    """The status of a regular file; whatever else has the name is refused without opening it."""
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable(error, path) from error
    except ValueError as error:  # a null character in the name
        raise InputMissing(f"{str(path)!a}: no name of a file; correct it") from error
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise BadData(f"{path}: no regular file but {kind}; give the file itself")
    return status


def fingerprint(path: Path) -> tuple[int, ...]:
    """What changes when a file is replaced or written to; errors as `check_file`."""
    status = check_file(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def read_head(path: Path) -> bytes:
    """The first bytes of a regular file; raises BadData for an empty one and for a web page,
    InputMissing for a pointer of Git LFS or git-annex."""
    if not check_file(path).st_size:
        raise BadData(f"{path}: the file is empty (0 bytes); copy or convert it again")
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
    except OSError as error:
        raise unreadable(error, path) from error
    check_stand_in(path, head)
    return head


def check_stand_in(path: Path, head: bytes) -> None:
    """Raises InputMissing or BadData where the first bytes are those of a file's stand-in."""
    for start, words in _POINTERS:
        if head.startswith(start):
            raise InputMissing(f"{path}: {words}")
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_WEB_PAGE):
        raise BadData(f"{path}: a web page, not the file itself; download it again, signed in")


def read_text(path: Path) -> str:
    """Text in UTF-8, without a byte order mark and with line ends of one kind."""
    if check_file(path).st_size > LARGEST_TEXT:
        raise BadData(f"{path}: larger than any text file wanted here; check what it is")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(error, path) from error
    check_stand_in(path, content[:_HEAD])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadData(f"{path}: cannot be read ({error}); write it as text in UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file, with or without a byte order mark."""
    try:
        return parse_json(read_text(path))
    except ValueError as error:
        raise BadData(f"{path}: not valid JSON ({error}); correct the file") from error


def parse_json(text: str) -> Any:
    """The content of a JSON document; ValueError for what is none, or nested too deeply."""
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    level = [content]
    for _ in range(DEEPEST_JSON):
        level = [
            item
            for value in level
            if isinstance(value, dict | list)
            for item in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return content
    raise ValueError("nested too deeply")


def read_object(path: Path) -> dict:
    """A JSON object; {} where there is no such file."""
    if not is_there(path):
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise BadData(f"{path}: not a JSON object; correct the file")
    return content


def read_toml(path: Path) -> dict:
    """The content of a TOML file."""
    try:
        return parse_toml(read_text(path))
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise BadData(f"{path}: not valid TOML ({reason}); correct the file") from error
