"""The anatomical images of a BIDS data set by its folders: sub-*/anat and sub-*/ses-*/anat.

Listing what is asked for takes a hundredth of the time of an index of the data set. A folder that
cannot be listed is a problem of its own session, or subject, and of no other.
"""

import logging
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bids_synthseg.bids.sessions import Key
from bids_synthseg.errors import AppError, BadData
from bids_synthseg.reading import is_there, unreadable

EXTENSIONS = (".nii.gz", ".nii")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """images: session -> NIfTI files in its anat folder, by name; problems: session -> why its
    folder, or that of its subject (session None), could not be listed."""

    images: dict[Key, list[Path]] = field(default_factory=dict)
    problems: dict[Key, str] = field(default_factory=dict)

    def problem(self, key: Key) -> str | None:
        """Why this session cannot be listed, if so."""
        return self.problems.get(key) or self.problems.get((key[0], None))


def subjects_in(root: Path) -> set[str]:
    """Labels of the subjects that have a folder; raises AppError where they cannot be listed."""
    return set(_labels(root, "sub-"))


def anat_images(root: Path, subjects: Collection[str]) -> Listing:
    """What the folders of the subjects hold; they tell which session an image is of.

    Subjects without a folder and sessions without an image are left out.
    """
    found = Listing()
    for subject in sorted(subjects):
        folder = root / f"sub-{subject}"
        try:
            if not is_there(folder):
                continue
            sessions = [None, *_labels(folder, "ses-")]
        except AppError as error:
            found.problems[subject, None] = str(error)
            continue
        for session in sessions:
            place = folder / f"ses-{session}" if session else folder
            try:
                images = sorted(_images(place))
            except AppError as error:
                found.problems[subject, session] = str(error)
                continue
            if images:
                found.images[subject, session] = images
    return found


def names_in(folder: Path) -> list[str]:
    """Names of what a folder holds, sorted; [] where there is none. Raises AppError."""
    return sorted(entry.name for entry in _entries(folder)) if is_there(folder) else []


def _entries(folder: Path) -> Iterator[os.DirEntry]:
    """What a folder holds; names that cannot stand in a table or a log are left out, and said."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.isprintable():
                    yield entry
                elif entry.name.startswith(("sub-", "ses-")):
                    logger.warning(
                        "%s: left out, as its name holds control characters or bytes that are no "
                        "UTF-8; rename it", ascii(entry.path)
                    )  # fmt: skip
    except NotADirectoryError as error:
        raise BadData(f"{folder}: a file where a folder should be; move it") from error
    except OSError as error:
        raise unreadable(error, folder) from error


def _is_folder(entry: os.DirEntry) -> bool:
    """Whether it is a folder, or a link that should lead to one and fails when it is opened."""
    try:
        if entry.is_dir():
            return True
        lost = entry.is_symlink() and not os.path.exists(entry.path)
    except OSError:
        lost = True
    return lost and not Path(entry.name).suffix


def _labels(folder: Path, prefix: str) -> Iterator[str]:
    for entry in _entries(folder):
        if entry.name.startswith(prefix) and _is_folder(entry):
            yield entry.name.removeprefix(prefix)


def _images(place: Path) -> Iterator[Path]:
    anat = place / "anat"
    if is_there(anat) and not anat.is_file():
        for entry in _entries(anat):
            # What begins with a dot is hidden, of an editor or of an interrupted copy.
            if entry.name.endswith(EXTENSIONS) and not entry.name.startswith("."):
                yield anat / entry.name
