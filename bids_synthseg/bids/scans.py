"""Which scan represents a contrast of a session, and why the others are left out.

A contrast (T1w, T2w) is represented in a session by one scan, chosen from names alone. Never used
are images of another suffix, derivatives lying in a raw `anat/` (`desc-`, `space-`, ... in the
name), and phase, real or imaginary parts (`part-`). Of those that remain the first is taken in this
order:

1. `rec-norm` (normalised by the scanner), then no `rec`, then other reconstructions by name;
2. no `part`, then `part-mag`;
3. no contrast agent (`ce`);
4. no `echo` (the combined image), then the lowest echo;
5. no `acq`, then acquisitions by name;
6. no `run`, then the lowest run;
7. `desc-preproc`, then no `desc`, then others by name (in derivatives alone);
8. the fewest other entities, then the name.

Of `x.nii.gz` and `x.nii` the former is taken. Where the user names a column of `scans.tsv`, the
quality that it gives goes before all this (see `quality_column`). A scan from a data set of
derivatives (super-resolved, preprocessed) takes the place of all raw ones of its contrast; of
several such data sets the last named counts, as in NiBabies. Images are not opened.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from bids_synthseg.bids.quality_column import excludes, quality_rank
from bids_synthseg.bids.sessions import Key, OfSession

CONTRASTS = ("T1w", "T2w")
RAW = "raw"
"""How the input is called in BIDS URIs; data sets of derivatives have names of their own."""

# Entities that BIDS allows in derivatives only.
_DERIVED = {"desc", "space", "label", "res", "den", "atlas", "seg", "scale", "hemi", "from", "to"}


@dataclass(frozen=True)
class Scan:
    """One image file; `entities` are those of its name, with BIDS' short keys ("acq", "run");
    `data_set` is the name of the data set that it lies in."""

    path: Path
    suffix: str
    entities: dict[str, str]
    data_set: str = RAW

    @staticmethod
    def from_path(path: Path, data_set: str = RAW) -> "Scan":
        """Read the name `key-value_..._suffix.nii.gz`; parts without a hyphen are dropped."""
        *pairs, suffix = path.name.removesuffix(".gz").removesuffix(".nii").split("_")
        entities = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
        return Scan(path, suffix, entities, data_set)

    @property
    def is_derived(self) -> bool:
        """Whether it comes from a data set of derivatives."""
        return self.data_set != RAW


@dataclass(frozen=True)
class ScanGroup(OfSession):
    """The scans of one session (None: the subject has no session folder).

    scans: the representative of each contrast first, then (all_scans) its others; left_out: every
    other image in `anat/` with the reason in words; problem: why the session will fail, where that
    is known before it is begun.
    """

    scans: tuple[Scan, ...]
    left_out: tuple[tuple[Path, str], ...] = ()
    problem: str = ""

    @property
    def repeated(self) -> tuple[str, ...]:
        """Contrasts that `anat/` has several usable images of, taken or left out."""
        scans = [*self.scans, *(Scan.from_path(path) for path, _ in self.left_out)]
        counts = Counter(scan.suffix for scan in scans if unusable(scan, self.key) is None)
        return tuple(name for name in CONTRASTS if counts[name] > 1)

    @property
    def derived(self) -> tuple[str, ...]:
        """Contrasts whose scan comes from a data set of derivatives."""
        taken = {scan.suffix for scan in self.scans if scan.is_derived}
        return tuple(name for name in CONTRASTS if name in taken)

    @property
    def by_contrast(self) -> dict[str, list[Scan]]:
        """Scans of each contrast that there is, the representative first."""
        found = {name: [s for s in self.scans if s.suffix == name] for name in CONTRASTS}
        return {name: scans for name, scans in found.items() if scans}


def choose_scans(
    subject: str,
    session: str | None,
    paths: Iterable[Path],
    contrasts: Sequence[str] = CONTRASTS,
    all_scans: bool = False,
    *,
    excluded: Collection[Path] = (),
    quality: Mapping[Path, str] = MappingProxyType({}),
    derived: Sequence[Scan] = (),
) -> ScanGroup:
    """Apply the rule of this module to the images of one raw `anat/` folder, and to those that
    data sets of derivatives have of the session.

    excluded: raw images that the user's filters do not let pass. quality: raw image -> what the
    chosen column of scans.tsv says of it. derived: data set after data set, in the user's order.
    """
    scans = [*(Scan.from_path(path) for path in sorted(set(paths))), *derived]
    there = {scan.path for scan in scans}

    def objection(scan: Scan) -> str | None:
        if reason := unusable(scan, (subject, session)):
            return reason
        if scan.suffix not in contrasts:
            return f"{scan.suffix} was not asked for"
        if scan.path in excluded:
            return "excluded by the filter file"
        if excludes(quality.get(scan.path)):
            return f"its quality in scans.tsv is '{quality[scan.path]}'"
        if scan.path.suffix == ".nii" and scan.path.with_suffix(".nii.gz") in there:
            return "the same name exists as .nii.gz"
        return None

    objections = [(scan, objection(scan)) for scan in scans]
    left_out = [(scan.path, reason) for scan, reason in objections if reason]
    # The last data set named goes first, the raw one last.
    precedence = dict.fromkeys([RAW, *(scan.data_set for scan in derived)])
    places = {name: -place for place, name in enumerate(precedence)}
    taken: list[Scan] = []
    for contrast in CONTRASTS:
        candidates = [s for s, reason in objections if not reason and s.suffix == contrast]
        ranked = sorted(candidates, key=lambda s: (places[s.data_set], *_rank(s, quality)))
        kept = [s for s in ranked if all_scans and s.data_set == ranked[0].data_set] or ranked[:1]
        taken += kept
        left_out += [(s.path, _why_not(s, kept[0], quality)) for s in ranked if s not in kept]
    return ScanGroup(subject, session, tuple(taken), tuple(sorted(left_out)))


def unusable(scan: Scan, key: Key) -> str | None:
    """Why this file cannot be a scan of the session to segment, whatever the user asks for."""
    if scan.suffix not in CONTRASTS:
        return f"suffix {scan.suffix} is not T1w or T2w"
    if reason := _foreign(scan):
        return reason
    if (scan.entities.get("sub"), scan.entities.get("ses")) != key:
        return "its name and its folder disagree about subject or session"
    if scan.entities.get("part", "mag") != "mag":
        return f"part-{scan.entities['part']} is not a magnitude image"
    return None


def _foreign(scan: Scan) -> str | None:
    """Why a derivative is none to segment: any in raw data, in derivatives what was resampled."""
    found = _DERIVED & set(scan.entities)
    if not scan.is_derived:
        names = ", ".join(sorted(found))
        return f"a derivative ({names} in its name), not a raw scan" if found else None
    own = {"desc", "space"} if scan.entities.get("space") == scan.suffix else {"desc"}
    names = ", ".join(sorted(found - own))
    return f"not the scan on a grid of its own ({names} in its name)" if names else None


def _number(value: str | None) -> tuple:
    """Absent first, then by number, then what is no number."""
    return (value is not None, int(value) if value and value.isdigit() else 10**9, value or "")


def _name(value: str | None) -> tuple:
    return (value is not None, value or "")


def _reconstruction(value: str | None) -> tuple:
    return ({"norm": 0, None: 1}.get(value, 2), value or "")


def _description(value: str | None) -> tuple:
    return ({"preproc": 0, None: 1}.get(value, 2), value or "")


_CRITERIA: tuple[tuple[str, Callable[[str | None], tuple], str], ...] = (
    ("rec", _reconstruction, "rec-norm is preferred, then no rec"),
    ("part", _name, "an image without part is preferred to part-mag"),
    ("ce", _name, "an image without contrast agent is preferred"),
    ("echo", _number, "no echo is preferred, then the lowest"),
    ("acq", _name, "no acq is preferred, then the first by name"),
    ("run", _number, "no run is preferred, then the lowest"),
    ("desc", _description, "desc-preproc is preferred, then no desc"),
)


def _rank(scan: Scan, quality: Mapping[Path, str]) -> tuple:
    ranks = tuple(key(scan.entities.get(entity)) for entity, key, _ in _CRITERIA)
    return (quality_rank(scan.path, quality), *ranks, len(scan.entities), scan.path.name)


def _why_not(scan: Scan, chosen: Scan, quality: Mapping[Path, str]) -> str:
    if scan.data_set != chosen.data_set:
        return f"{chosen.path.name} of --derivatives {chosen.data_set} takes its place"
    if quality_rank(scan.path, quality) != quality_rank(chosen.path, quality):
        one, other = quality[chosen.path], quality.get(scan.path, "n/a")
        return f"{chosen.path.name} was taken: its quality in scans.tsv is {one}, against {other}"
    for entity, key, words in _CRITERIA:
        if key(scan.entities.get(entity)) != key(chosen.entities.get(entity)):
            return f"{chosen.path.name} was taken: {words}"
    return f"{chosen.path.name} was taken: fewer entities are preferred, then the first by name"
