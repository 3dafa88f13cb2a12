"""Segmentations corrected by hand, in place of the network's.

A person copies `*_space-T1w_desc-aseg_dseg.nii.gz` of a session (or that of T2w, or both) from the
output to the same place in a folder of their own, `sub-01[/ses-a]/anat/`, corrects it there and
runs again with `--derivatives edits=FOLDER`. From the edited map follow mask, volumes and quality,
and the map of the other contrast, through the transform that the first run recorded; where both are
edited, each holds for its own space. The network does not run again.

What it had said of the spaces concerned is removed: its own finer labels, probabilities, and maps
and tables of how sure it was, as they contradict the edited map. Scans alone (`space-orig`),
preprocessed images and transforms stay. An edit that is new or has changed is always taken over; a
later run without the edits leaves the session as it is, and segments it anew with --redo-changed.
"""

import fnmatch
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_synthseg import __version__, nifti
from bids_synthseg.anatomy.agreement import asymmetry, edge_fraction, missing_structures
from bids_synthseg.anatomy.islands import fill_holes
from bids_synthseg.anatomy.label_maps import carry_labels
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.metrics import table_volumes_mm3
from bids_synthseg.anatomy.volume import Grid, Volume
from bids_synthseg.bids.ages import read_ages
from bids_synthseg.bids.derivatives import (
    SessionPaths,
    SessionWriter,
    Space,
    session_record,
    settle,
)
from bids_synthseg.bids.derived import EDITS
from bids_synthseg.bids.folders import names_in
from bids_synthseg.bids.growth import age_measures
from bids_synthseg.bids.provenance import made_with, options_sha256, resolve_uri
from bids_synthseg.bids.quality import Quality, judge
from bids_synthseg.bids.scans import CONTRASTS, Scan, ScanGroup
from bids_synthseg.bids.sessions import Key
from bids_synthseg.errors import BadData, InputMissing, NothingSelected, UsageProblem
from bids_synthseg.pipeline import Options, Segmenter, SessionResult, run_session, write_page
from bids_synthseg.reading import read_object
from bids_synthseg.segmentation.align import transform_of

_LARGEST_ID = 255
_SAME_PLACE = 0.1
"""Editors write affines anew: a tenth of a voxel is still the same grid."""

_OF_THE_SCANS = ("alignment_dice", "slice_mm")
"""Measures that the labels do not enter: those of the first run still hold."""

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Earlier:
    """What the sidecar of an earlier segmentation in one space tells: the image whose grid it is
    on, and what it was computed with."""

    reference: Path
    config_sha256: str
    weights_sha256: str


@dataclass(frozen=True, eq=False)
class Brain:
    """The labels (X, Y, Z) of one space, edited or carried there."""

    space: Space
    labels: np.ndarray


def find_edits(
    edits_dir: Path, groups: Iterable[ScanGroup], output_dir: Path
) -> dict[Key, tuple[Path, ...]]:
    """The edited label maps of every session that has any.

    Raises InputMissing where there is no such folder, UsageProblem where it lies in the output
    (which is rewritten), NothingSelected where it holds no edit of any of the sessions.
    """
    if not edits_dir.is_dir():
        raise InputMissing(f"{edits_dir}: no such folder; check --derivatives {EDITS}=PATH")
    if edits_dir.resolve().is_relative_to(output_dir.resolve()):
        raise UsageProblem(
            f"{edits_dir}: lies in the output, which is rewritten; copy the edited label maps to a "
            "folder elsewhere"
        )
    found = {}
    for group in groups:
        anat = SessionPaths(edits_dir, *group.key).anat
        if names := fnmatch.filter(names_in(anat), "sub-*_desc-aseg_dseg.nii*"):
            found[group.key] = tuple(anat / name for name in names)
    if not found:
        raise NothingSelected(
            f"{edits_dir}: no edited segmentation of the sessions selected; put it where the "
            "output has it (sub-01/anat/sub-01_space-T1w_desc-aseg_dseg.nii.gz)"
        )
    return found


def run_edited(
    group: ScanGroup,
    edited: Sequence[Path],
    bids_dir: Path,
    output_dir: Path,
    segmenter: Segmenter,
    options: Options,
) -> SessionResult:
    """Put the label maps `edited` in place of what the network said of one session.

    options.derivatives names the folder that they lie in. A session that is not in the output yet
    is segmented first. Raises AppError with one line for the user, BadData for an edit that cannot
    be used; the session is then as it was.
    """
    start = time.monotonic()
    paths = SessionPaths(output_dir, *group.key)
    settle(paths)
    record = session_record(paths)
    if record.finished_with() is None:
        run_session(group, bids_dir, output_dir, segmenter, options)
    spaces = _earlier(paths, bids_dir, options.derivatives)
    maps = _by_space(group, edited, spaces)
    first = spaces[next(iter(maps))]
    files = [*maps.values(), *(space.reference for space in spaces.values())]
    basis = made_with(
        [Scan.from_path(path) for path in files],
        __version__,
        first.weights_sha256,
        {"edited": list(maps)},
    )
    edits = basis["Inputs"][: len(maps)]
    before = record.read().get("MadeWith", {}).get("Inputs", [])
    reason = record.reason_to_skip(
        basis,
        overwrite=options.overwrite,
        redo_changed=options.redo_changed or before[: len(maps)] != edits,
    )
    if reason:
        page = [] if paths.report.exists() else write_page(group, bids_dir, output_dir, options)
        return SessionResult("skipped", time.monotonic() - start, "; ".join([reason, *page]))

    table = LabelTable.default().fold("aseg")[0]
    scans = {name: nifti.read_scan(space.reference) for name, space in spaces.items()}
    brains, warnings = _brains(paths, maps, scans, table)
    earlier = record.read()
    writer = SessionWriter(
        paths,
        bids_dir,
        config_sha256=first.config_sha256,
        weights_sha256=first.weights_sha256,
        links=options.derivatives,
    )
    redone = {brain.space.contrast for brain in brains}
    outputs = [output_dir / name for name in earlier["Outputs"]]
    writer.start(keep=[p for p in outputs if Scan.from_path(p).entities.get("space") not in redone])
    try:
        measures = [_write_space(writer, brain, table) for brain in brains]
        for warning in warnings:
            LOG.warning("%s: %s", group.label, warning)
        details = {
            "MadeWith": basis,
            "Warnings": warnings,
            "Notes": [note for scan in scans.values() for note in scan.notes],
            "Scans": earlier.get("Scans", []),
            "LeftOut": earlier.get("LeftOut", {}),
            "Edited": {name: writer.uri(path) for name, path in maps.items()},
            "Quality": _quality(group, bids_dir, earlier, measures[0], warnings).record(),
        }
        writer.finish(options_sha256(basis), details)
    finally:
        writer.discard()
    page = write_page(group, bids_dir, output_dir, options)
    return SessionResult("done", time.monotonic() - start, "; ".join([*warnings, *page]))


def _earlier(paths: SessionPaths, bids_dir: Path, links: Mapping[str, Path]) -> dict[str, Earlier]:
    """Space -> what the sidecar of its segmentation tells, T1w before T2w."""
    found = {}
    for contrast in CONTRASTS:
        sidecar = paths.file("dseg", ".json", space=contrast, desc="aseg")
        if not (about := read_object(sidecar)):
            continue
        try:
            reference = resolve_uri(
                str(about["SpatialReference"]), bids_dir, paths.output_dir, links
            )
            found[contrast] = Earlier(reference, about["ConfigSHA256"], about["WeightsSHA256"])
        except KeyError as error:
            raise BadData(f"{sidecar}: has no {error}; run the session with --overwrite") from error
    return found


def _by_space(
    group: ScanGroup, edited: Sequence[Path], spaces: Mapping[str, Earlier]
) -> dict[str, Path]:
    """Space -> edited map, T1w before T2w; raises BadData for maps that cannot be told apart or
    have no space to belong to."""
    found: dict[str, Path] = {}
    for path in edited:
        name = Scan.from_path(path).entities.get("space", "none")
        if not path.name.startswith(f"{group.label}_"):
            raise BadData(f"{path}: lies in the folder of {group.label}; move or rename it")
        if name not in spaces:
            raise BadData(
                f"{path}: the output has no segmentation in space {name} of this session, only in "
                f"{', '.join(spaces)}; rename the file"
            )
        if name in found:
            raise BadData(f"{path}: {found[name].name} is of the same space; keep one of them")
        found[name] = path
    return {name: found[name] for name in CONTRASTS if name in found}


def _brains(
    paths: SessionPaths,
    maps: Mapping[str, Path],
    scans: Mapping[str, nifti.Image],
    table: LabelTable,
) -> tuple[list[Brain], list[str]]:
    """The label maps of all spaces that the edits reach, T1w before T2w, and warnings."""
    warnings = [warning for scan in scans.values() for warning in scan.warnings]
    found = {}
    for name, path in maps.items():
        labels = _read_edit(path, scans[name].volume.grid, table)
        found[name] = Brain(Space(name, scans[name], (path,)), labels)
    for name in scans.keys() - maps.keys():
        (origin,) = found.values()
        source = origin.space.contrast
        xfm = paths.file("xfm", ".txt", **{"from": source, "to": name, "mode": "image"})
        if not xfm.is_file():
            warnings.append(f"{name} was not merged with {source}: its labels are not edited")
            continue
        space = Space(name, scans[name], (*origin.space.sources, xfm))
        # The transform takes points of this space to points of the edited one.
        moved = np.linalg.inv(_read_itk(xfm)) @ scans[source].volume.grid.affine
        seen = Volume(origin.labels, Grid(origin.labels.shape, moved))
        found[name] = Brain(space, carry_labels(seen, scans[name].volume.grid).data)
    return [found[name] for name in CONTRASTS if name in found], warnings


def _read_edit(path: Path, grid: Grid, table: LabelTable) -> np.ndarray:
    """The labels (X, Y, Z) of an edited map; BadData for what could not have come from editing."""
    edit = nifti.read_labels(path).volume
    if not edit.grid.same_as(grid, tol_mm=_SAME_PLACE * float(grid.voxel_size_mm.min())):
        raise BadData(
            f"{path}: not on the grid of the scan; edit a copy of the output's own label map, and "
            "do not resample it"
        )
    present = np.unique(edit.data)
    if beyond := [index for index in present.tolist() if not 0 <= index <= _LARGEST_ID]:
        raise BadData(f"{path}: label {beyond[0]} is not between 0 and {_LARGEST_ID}; correct it")
    if unknown := sorted(set(present.tolist()) - set(table.ids.tolist())):
        raise BadData(
            f"{path}: label {unknown[0]} is not in desc-aseg_dseg.tsv of the output; correct it"
        )
    if not edit.data.any():
        raise BadData(f"{path}: no voxel is labelled; edit a copy of the output's own label map")
    return edit.data


def _read_itk(path: Path) -> np.ndarray:
    """The (4, 4) transform of RAS mm in a file as the first run wrote it (ITK counts in LPS)."""
    try:
        return transform_of(path.read_text("utf-8"))
    except ValueError as error:
        raise BadData(f"{path}: not the transform that was written here; delete it") from error


def _write_space(writer: SessionWriter, brain: Brain, table: LabelTable) -> dict[str, float]:
    """Write the images and the table of one space; returns the measures that need no network."""
    grid, mask = brain.space.like.volume.grid, fill_holes(brain.labels > 0)
    hard_mm3 = table_volumes_mm3(brain.labels, table, grid.voxel_volume_mm3)
    writer.write_aseg(brain.space, brain.labels, manual=True)
    writer.write_mask(brain.space, mask)
    # Nobody knows probabilities of what a person drew.
    writer.write_volumes(brain.space, table, hard_mm3, np.full(len(table), np.nan))
    return {
        "edge_fraction": edge_fraction(mask, brain.space.like.volume.data, grid.voxel_size_mm),
        "asymmetry": asymmetry(hard_mm3, table),
        "missing_structures": float(missing_structures(hard_mm3, table)),
        "brain_ml": float(mask.sum()) * grid.voxel_volume_mm3 / 1000,
    }


def _quality(
    group: ScanGroup,
    bids_dir: Path,
    earlier: dict,
    measures: Mapping[str, float],
    warnings: Sequence[str],
) -> Quality:
    """The verdict on an edited session; `earlier` is the record of the run before."""
    before = Quality.of(earlier.get("Quality"))
    kept = {name: before.measures.get(name) for name in _OF_THE_SCANS} if before else {}
    age = read_ages(bids_dir, [group.key])[group.key]
    return judge({**kept, **measures, **age_measures(age, measures["brain_ml"])}, warnings)
