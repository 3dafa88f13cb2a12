"""The accuracy report as text: an overview, then a chapter for every age band."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bids_synthseg import __version__, scorecard
from bids_synthseg.scorecard import Number


@dataclass(frozen=True)
class Band:
    """An age band: its `title`, the `section` of numbers of its scans, the folders whose scans the
    locator was tried on, and further sections (of EXTRAS)."""

    title: str
    section: str
    located: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()


BANDS = (
    Band("Fetal", "fetal", ("fetal-stacks", "fetal")),
    Band("Newborn", "newborns", ("newborns",)),
    Band("Infant", "infants", extras=("contrasts", "volumes")),
    Band("Adult", "adults", ("adult-head", "adults")),
)


def report(numbers: Sequence[Number], weights_sha256: str, missing: Sequence[str] = ()) -> str:
    """The report as markdown, of the sections that there are numbers of; `missing`: sections that
    were to be measured and had no data."""
    blocks = [
        "# Accuracy",
        f"Printed by `bids_synthseg_tools accuracy` of bids_synthseg {__version__}, weights "
        f"{weights_sha256[:12]}. Left and right are averaged; a mean over structures "
        "follows the mean over sessions.",
    ]
    if any(number.measure == "dice" for number in numbers):
        overview = {band.section: band.title.lower() for band in BANDS}
        blocks += [_OVERVIEW, scorecard.overview_table(numbers, overview)]
    for band in BANDS:
        chapter = [
            *scan_blocks(numbers, band.section),
            *(block for extra in band.extras for block in extra_blocks(numbers, extra)),
            *locator_blocks(numbers, band.located),
        ]
        if chapter:
            blocks += [f"## {band.title}", *chapter]
    if missing:
        blocks.append(f"Left out, as there were no data: {', '.join(missing)}.")
    return "\n\n".join(blocks) + "\n"


def scan_blocks(numbers: Sequence[Number], section: str) -> list[str]:
    """What is said of the scans of a band, whether they have references or not."""
    own = [number for number in numbers if number.section == section]
    segmented = scorecard.values(own, "segmented")
    if not segmented:
        return []
    blocks = [f"{int(sum(segmented))} of {len(segmented)} session(s) segmented."]
    measures = scorecard.distinct(own, "measure")
    if "hd95_mm" in measures:
        blocks += [
            "### Against the reference",
            scorecard.structure_table(numbers, section),
            "Dice per session, and of the merged result less the better and the worse contrast:",
            scorecard.session_table(numbers, section),
        ]
    if scorecard.BETWEEN in scorecard.distinct(own, "image"):
        blocks += ["### T1w against T2w", _AGREEMENT, scorecard.agreement_table(numbers, section)]
    if "labels_where_empty_ml" in measures:
        blocks += [
            "### Labels where the image is empty",
            _EMPTY,
            scorecard.empty_table(numbers, section),
        ]
    if "ece" in measures:
        blocks += ["### Calibration", _CALIBRATION, scorecard.calibration_table(numbers, section)]
    return blocks


def extra_blocks(numbers: Sequence[Number], section: str) -> list[str]:
    """The blocks of a painted trial, one of EXTRAS."""
    if section not in scorecard.distinct(numbers, "section"):
        return []
    title, text, tables = EXTRAS[section]
    return [f"### {title}", text, *(table(numbers) for table in tables)]


def locator_blocks(numbers: Sequence[Number], folders: Sequence[str]) -> list[str]:
    """What the locator did in these folders."""
    if not any(n.section == "locator" and n.subject in folders for n in numbers):
        return []
    return ["### Locator", _LOCATOR, scorecard.locator_table(numbers, folders)]


_OVERVIEW = """\
Dice with the reference; where two contrasts are named, of each alone with the other."""
_AGREEMENT = """\
Dice of what the network makes of each contrast alone: both show one brain. Pictures of all scans,
each beside its labels, are in the folder `pictures` next to this report: look at them."""
_EMPTY = """\
Where the image is exactly 0, and outside the brain of the reference where there is one."""
_CALIBRATION = """\
Expected calibration error (Guo et al. 2017, 15 bins) at the voxels that are not certain background
(probability below 0.999), over all voxels of all sessions; missed: what of the reference is
certain background."""
_CONTRASTS = """\
A head painted around the real label map, 1 mm, in random contrasts that are the same every time,
through the whole segmentation. Failed: mean Dice below 0.5; unsaid: without a warning."""
_VOLUMES = """\
The 4-month map at the median volume of real brains of each age, painted as T1w or T2w look then;
error of the segmented volume, without fluid outside the ventricles."""
_LOCATOR = """\
The locator alone: Dice on its own grid, box error as the largest shift of a face in percent of the
true side. Where there are volumes, the whole segmentation has run."""

EXTRAS: dict[str, tuple[str, str, tuple[Callable[[Sequence[Number]], str], ...]]] = {
    "contrasts": (
        "4-month map in synthetic contrasts",
        _CONTRASTS,
        (scorecard.contrast_table, scorecard.contrast_structures),
    ),
    "volumes": ("Brain volume by age", _VOLUMES, (scorecard.volume_table,)),
}
"""Title, text and tables of the trials on painted heads."""
