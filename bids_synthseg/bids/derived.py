"""Scans that lie in data sets of derivatives: super-resolved fetal brains, preprocessed images.

The user names such data sets with `--derivatives NAME=PATH`. Every T1w and T2w in the `anat/` of a
subject or session counts, and also a subject or session that the raw data do not have; which of
them is taken is the rule of `scans`.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path

from bids_synthseg.bids.folders import anat_images
from bids_synthseg.bids.scans import CONTRASTS, RAW, Scan
from bids_synthseg.bids.sessions import Key
from bids_synthseg.errors import UsageProblem

EDITS = "edits"
"""The name under which a folder of label maps corrected by hand is given; it holds no scans."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")


def check_names(derivatives: Mapping[str, Path]) -> None:
    """Raises UsageProblem for a name that cannot stand in a BIDS URI (`bids:NAME:sub-01/...`)."""
    for name in derivatives:
        if name == RAW or not _NAME.fullmatch(name):
            raise UsageProblem(
                f"--derivatives {name}=...: not a name to use; take letters, digits, hyphens and "
                f"underscores, and not '{RAW}', which is the input"
            )


def find_derived(
    derivatives: Mapping[str, Path], subjects: Collection[str]
) -> tuple[dict[Key, list[Scan]], dict[Key, str]]:
    """Session -> its T1w and T2w in the data sets, one data set after the other as named; and
    session, or subject (session None) -> why its folder in one of them could not be listed."""
    found: dict[Key, list[Scan]] = defaultdict(list)
    problems: dict[Key, str] = {}
    for name, root in derivatives.items():
        listing = anat_images(root, subjects)
        problems |= listing.problems
        for key, paths in listing.images.items():
            scans = [Scan.from_path(path, name) for path in paths]
            # Masks, maps and label maps are there by the dozen, and nobody asks why not them.
            found[key] += [scan for scan in scans if scan.suffix in CONTRASTS]
    return {key: scans for key, scans in found.items() if scans}, problems
