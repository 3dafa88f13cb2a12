"""Rows of a session's `_scans.tsv`, by the image that each is about, as people write its name."""

import re
from pathlib import Path, PurePosixPath

from bids_synthseg.bids.sessions import Key, session_label
from bids_synthseg.tsv import read_rows

Rows = list[tuple[Path, dict[str, str]]]
"""Image and row, in the order of the table; an image may have several."""

_ANATOMICAL = re.compile(r"_T[12]w\.nii(\.gz)?$")


def scans_table(root: Path, key: Key) -> Path:
    """Where the table of a session lies."""
    return _folder(root, key) / f"{session_label(key)}_scans.tsv"


def read_scans_table(root: Path, key: Key) -> Rows:
    """Rows of the table of a session, [] where there is none; BadData for a table that cannot be
    read."""
    rows = read_rows(scans_table(root, key), "filename")
    return [(_image(root, key, row["filename"]), row) for row in rows]


def _folder(root: Path, key: Key) -> Path:
    subject, session = key
    folder = root / f"sub-{subject}"
    return folder / f"ses-{session}" if session else folder


def _image(root: Path, key: Key, name: str) -> Path:
    """The file that a name is about: relative to the session, as BIDS wants it, to the data set,
    or without its folder."""
    path = PurePosixPath(name.strip().replace("\\", "/"))
    folder = _folder(root, key)
    if path.parts[:1] == (f"sub-{key[0]}",):
        return root / path
    if len(path.parts) == 1 and _ANATOMICAL.search(path.name):
        return folder / "anat" / path
    return folder / path
