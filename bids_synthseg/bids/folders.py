"""The anatomical images of a BIDS data set by its folders: sub-*/anat and sub-*/ses-*/anat.

Listing what is asked for takes a hundredth of the time of an index of the data set.
"""

from collections.abc import Collection, Iterator
from pathlib import Path

from bids_synthseg.bids.sessions import Key

EXTENSIONS = (".nii.gz", ".nii")


def subjects_in(root: Path) -> set[str]:
    """Labels of the subjects that have a folder."""
    return set(_labels(root, "sub-"))


def anat_images(root: Path, subjects: Collection[str]) -> dict[Key, list[Path]]:
    """Session -> NIfTI files in its anat folder, by name; the folders tell which session it is.

    Subjects without a folder and sessions without an image are left out.
    """
    found = {}
    for subject in sorted(subjects):
        folder = root / f"sub-{subject}"
        places: dict[str | None, Path] = {None: folder}
        if folder.is_dir():
            places |= {label: folder / f"ses-{label}" for label in _labels(folder, "ses-")}
        for session, place in places.items():
            if images := sorted(_images(place / "anat")):
                found[subject, session] = images
    return found


def _labels(folder: Path, prefix: str) -> Iterator[str]:
    for path in folder.glob(f"{prefix}*"):
        if path.is_dir():
            yield path.name.removeprefix(prefix)


def _images(anat: Path) -> Iterator[Path]:
    if anat.is_dir():
        for path in anat.iterdir():
            # What begins with a dot is hidden, of an editor or of an interrupted copy.
            if path.name.endswith(EXTENSIONS) and not path.name.startswith("."):
                yield path
