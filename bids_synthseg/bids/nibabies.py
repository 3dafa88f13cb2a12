"""What NiBabies will take from a derivatives folder (`--derivatives name=DIR`), and what not.

NiBabies finds precomputed anatomy by file name alone: one pybids query per key within a subject
and session. The same queries are asked here, with the few entities that decide them, so that what
is said holds for NiBabies: two files for one key break its workflow, `seg-` is invisible to it, a
label above 255 is beyond its table (NiBabies and niworkflows as of mid 2026).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bids_synthseg.bids.scans import CONTRASTS, Scan
from bids_synthseg.errors import AppError, InputMissing
from bids_synthseg.nifti import Image, read_labels, read_scan
from bids_synthseg.reading import is_there, read_object

if TYPE_CHECKING:
    from bids import BIDSLayout

TISSUES = ("CSF", "GM", "WM")
_NIFTI = [".nii.gz", ".nii"]
_TRANSFORMS = [".txt", ".h5"]
_TRANSFORM_KEYS = ("t1w2t2w_xfm", "t2w2t1w_xfm")
_GRID_TOLERANCE = 1e-4


def _ids(ranges: str) -> frozenset[int]:
    """'2-4 7' -> {2, 3, 4, 7}"""
    pairs = (part.partition("-") for part in ranges.split())
    return frozenset(n for low, _, high in pairs for n in range(int(low), int(high or low) + 1))


HAS_TISSUE = _ids("2-5 7-20 24 26-39 41-44 46-72 77-79 250-255")
"""FreeSurfer numbers that NiBabies reduces to GM, WM or CSF; others become background."""
HAS_SURFACE_CODE = _ids("1-8 10-18 24 26 28 30-31 41-44 46-47 49-54 58 60 62-63 77 85 172 253")
"""FreeSurfer numbers that its M-CRIB-S surfaces translate; others pass as false numbers."""


@dataclass(frozen=True)
class Finding:
    """What one query finds: files, what is noted of them, why it fails, what it loses."""

    key: str
    files: tuple[Path, ...]
    note: str = ""
    failures: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class SessionView:
    """One session as NiBabies sees it; `ignored` are images and transforms with the reason."""

    label: str
    findings: tuple[Finding, ...]
    ignored: tuple[tuple[Path, str], ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """Why NiBabies would not use the session; none where it would."""
        if not self.findings:
            return ("its images lie outside the sessions of the subject",)
        found = [f"{one.key}: {text}" for one in self.findings for text in one.failures]
        keys = {one.key for one in self.findings if one.files}
        if not keys & {f"{name.lower()}_{kind}" for name in CONTRASTS for kind in ("aseg", "mask")}:
            found.append("neither a segmentation nor a mask in space T1w or T2w")
        return tuple(found)


def view_folder(derivatives: Path, participants: Sequence[str] = ()) -> list[SessionView]:
    """Every session of a derivatives folder as NiBabies sees it; images are read.

    participants: labels with or without "sub-"; empty means all. Raises InputMissing where there is
    no such folder, no wanted subject, or none with images.
    """
    if not derivatives.is_dir():
        raise InputMissing(f"{derivatives}: no such folder; give the output of bids_synthseg")
    layout = _layout(derivatives)
    anat = {"datatype": "anat"}
    subjects = set(layout.get(return_type="id", target="subject", **anat))
    wanted = {label.removeprefix("sub-") for label in participants} or subjects
    if missing := sorted(wanted - subjects) or ([] if subjects else ["*"]):
        raise InputMissing(
            f"{derivatives}: no sub-{missing[0]} with an anat folder; check folder and labels"
        )
    views = []
    for subject in sorted(wanted):
        who = anat | {"subject": subject}
        sessions = sorted(layout.get(return_type="id", target="session", **who))
        views += [_view(layout, who, session) for session in sessions or [None]]
        loose = layout.get(return_type="filename", session=None, extension=_NIFTI, **who)
        if sessions and loose:
            reason = "NiBabies does not look outside the sessions"
            ignored = tuple((Path(name), reason) for name in sorted(loose))
            views.append(SessionView(f"sub-{subject}", (), ignored))
    return views


def describe(view: SessionView) -> str:
    """Lines for people: the verdict, what is taken, what is ignored and why."""
    problems = view.problems
    lines = [f"{view.label}: {'not used: ' + '; '.join(problems) if problems else 'used'}"]
    taken = [one for one in view.findings if one.files]
    for one in taken:
        names = ", ".join(path.name for path in one.files)
        lines.append(f"  {one.key:<12} {names}{one.note and f' ({one.note})'}")
        lines += [f"  {'':<12} warning: {text}" for text in one.warnings]
    for contrast in CONTRASTS:
        keys = {one.key.split("_")[0] for one in taken}
        if contrast.lower() in keys and f"{contrast.lower()}_preproc" not in {o.key for o in taken}:
            lines.append(
                f"  {contrast.lower() + ' image':<12} the raw {contrast} (there is no "
                f"desc-preproc_{contrast}): the session must have one only"
            )
    lines += [f"  ignored      {path.name}: {reason}" for path, reason in view.ignored]
    return "\n".join(lines)


def queries() -> dict[str, dict]:
    """Key of NiBabies -> filters of its query; None means that the entity is absent."""
    found: dict[str, dict] = {}
    for name in CONTRASTS:
        kinds: dict[str, dict] = {
            "preproc": {"space": None, "desc": "preproc", "suffix": name},
            "mask": {"space": name, "desc": "brain", "suffix": "mask"},
            "aseg": {"space": name, "desc": "aseg", "suffix": "dseg"},
            "dseg": {"space": name, "desc": None, "suffix": "dseg"},
            "tpms": {"space": name, "label": list(TISSUES), "suffix": "probseg"},
        }
        for kind, entities in kinds.items():
            found[f"{name.lower()}_{kind}"] = entities | {"extension": _NIFTI}
    for key, (start, end) in zip(_TRANSFORM_KEYS, (CONTRASTS, CONTRASTS[::-1]), strict=True):
        ends = {"from": start, "to": end, "mode": "image"}
        found[key] = ends | {"suffix": "xfm", "extension": _TRANSFORMS}
    return found


def _layout(root: Path) -> "BIDSLayout":
    from bids import BIDSLayout, BIDSLayoutIndexer

    value = "([a-zA-Z0-9+]+)"
    patterns = {
        name: rf"[_/\\]{key}-{value}"
        for name, key in (("session", "ses"), ("space", "space"), ("label", "label"),
                          ("desc", "desc"))
    }  # fmt: skip
    patterns |= {name: rf"_{name}-{value}.*_xfm\." for name in ("from", "to", "mode")}
    patterns |= {
        "subject": rf"[/\\]sub-{value}",
        "datatype": r"[/\\](anat|figures)[/\\]",
        "suffix": r"_([a-zA-Z0-9]+)\.[^/\\]+$",
        "extension": r"(\.[^/\\]+)$",
    }
    entities = [{"name": name, "pattern": pattern} for name, pattern in patterns.items()]
    # Not `seg`, `res`, `run` and others: NiBabies does not tell files apart by them either.
    return BIDSLayout(
        root,
        config={"name": "nibabies", "entities": entities},
        validate=False,
        indexer=BIDSLayoutIndexer(validate=False, index_metadata=False),
    )


def _view(layout: "BIDSLayout", who: dict, session: str | None) -> SessionView:
    where = who | ({"session": session} if session else {})
    hits = {
        key: tuple(sorted(map(Path, layout.get(return_type="filename", **where, **query))))
        for key, query in queries().items()
    }
    findings = tuple(_judge(key, hits) for key in hits)
    taken = {path for files in hits.values() for path in files}
    there = layout.get(return_type="filename", extension=_NIFTI + _TRANSFORMS, **where)
    ignored = [(path, why_ignored(path)) for path in sorted(map(Path, there)) if path not in taken]
    label = f"sub-{who['subject']}" + (f" ses-{session}" if session else "")
    return SessionView(label, findings, tuple(ignored))


def why_ignored(path: Path) -> str:
    """Why a file that no query finds is not looked at, from its name."""
    scan = Scan.from_path(path.with_name(path.name.split(".")[0]))
    desc, space = scan.entities.get("desc"), scan.entities.get("space")
    wanted = {"dseg": "aseg", "mask": "brain", "T1w": "preproc", "T2w": "preproc"}.get(scan.suffix)
    if scan.suffix == "xfm":
        return "only transforms with mode-image between T1w and T2w are read"
    if scan.suffix == "probseg" and scan.entities.get("label") not in TISSUES:
        return "only probabilities of label-GM, label-WM and label-CSF are read"
    if wanted is None and scan.suffix != "probseg":
        return f"{scan.suffix} is nothing that NiBabies reads"
    if scan.suffix in CONTRASTS and space is not None:
        return "a preprocessed image is read without space- only"
    if scan.suffix not in CONTRASTS and space not in CONTRASTS:
        return "only space-T1w and space-T2w are read"
    return f"desc-{desc} is not desc-{wanted}" if desc else f"it has no desc-{wanted}"


def _judge(key: str, hits: dict[str, tuple[Path, ...]]) -> Finding:
    """The verdict on what one query found; `hits` are those of all."""
    files = hits[key]
    if not files:
        return Finding(key, ())
    contrast, kind = key.split("_")
    if kind == "tpms":
        labels = [Scan.from_path(path).entities.get("label", "") for path in files]
        if sorted(labels) != list(TISSUES):
            return Finding(key, files, "", (f"one each of GM, WM, CSF is needed, not {labels}",))
        return Finding(key, files, "", (), ("read in this order, which NiBabies does not expect",))
    if len(files) > 1:
        return Finding(key, files, "", (f"{len(files)} files where NiBabies needs one",))
    if kind == "xfm":
        need = ("t1w_preproc", "t2w_preproc", *_TRANSFORM_KEYS)
        missing = [name for name in need if len(hits[name]) != 1]
        lost = (f"not used without {', '.join(missing)}",) if missing else ()
        return Finding(key, files, "", (), lost)
    if kind == "preproc":
        return Finding(key, files)
    return _judge_image(key, files, hits, contrast, kind)


def _judge_image(
    key: str,
    files: tuple[Path, ...],
    hits: dict[str, tuple[Path, ...]],
    contrast: str,
    kind: str,
) -> Finding:
    try:
        image = read_labels(files[0])
        note, failures, warnings = _judge_values(kind, image.volume.data)
        reference = hits[f"{contrast}_preproc"]
        if len(reference) == 1 and not _same_grid(image, read_scan(reference[0])):
            failures.append(f"is not on the grid of {reference[0].name}")
    except AppError as error:
        return Finding(key, files, "", (str(error),))
    warnings += _sidecar_faults(files[0])
    partner = {"aseg": "mask", "mask": "aseg"}.get(kind)
    if partner and not hits[f"{contrast}_{partner}"]:
        warnings.append(f"there is no {contrast}_{partner}")
    return Finding(key, files, note, tuple(failures), tuple(warnings))


def _judge_values(kind: str, data: np.ndarray) -> tuple[str, list[str], list[str]]:
    """Note, failures and warnings on the values of an aseg, a tissue map or a mask."""
    values = [int(value) for value in np.unique(data)]
    low, high = values[0], values[-1]
    note = f"{len(values)} values, {low} to {high}"
    if kind == "mask":
        return "", [], [] if set(values) <= {0, 1} else ["is not binary (0, 1)"]
    if kind == "dseg":
        if low < 0 or high > 3:
            wrong = f"is read as the GM, WM, CSF map but holds labels {low} to {high}; add a desc-"
            return note, [wrong], []
        return note, [], ["is read as the tissue map: must be 1 GM, 2 WM, 3 CSF"]
    failures = [] if low >= 0 and high <= 255 else ["labels outside 0 to 255"]
    present = {value for value in values if 0 < value <= 255}
    warnings = [] if present else ["has no label at all"]
    if lost := sorted(present - HAS_TISSUE):
        note += f"; background in the tissue map: {_numbers(lost)}"
    if unknown := sorted(present - HAS_SURFACE_CODE):
        warnings.append(f"unknown to the M-CRIB-S surfaces: {_numbers(unknown)}")
    return note, failures, warnings


def _sidecar_faults(path: Path) -> list[str]:
    """NiBabies' manual asks for SpatialReference, though its code does not read it."""
    sidecar = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    try:
        if not is_there(sidecar):
            return ["no JSON sidecar next to it"]
        content = read_object(sidecar)
    except AppError:
        return ["its JSON sidecar cannot be read"]
    return [] if content.get("SpatialReference") else ["its sidecar has no SpatialReference"]


def _numbers(values: Sequence[int]) -> str:
    return " ".join(map(str, values))


def _same_grid(first: Image, second: Image) -> bool:
    one, other = first.volume.grid, second.volume.grid
    return one.shape == other.shape and np.allclose(
        one.affine, other.affine, rtol=0, atol=_GRID_TOLERANCE
    )
