"""One session of scans -> derivatives.

Each scan is segmented alone; the others are aligned to the first (T1w, else T2w) by their
posteriors; per point the surest contrast gives its whole posterior vector; the merged brain is
labelled on the grid of every contrast and written.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from bids_synthseg import __version__, nifti
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.bids.ages import read_ages
from bids_synthseg.bids.derivatives import SessionPaths, SessionWriter, session_record, settle
from bids_synthseg.bids.growth import age_measures
from bids_synthseg.bids.methods import Methods
from bids_synthseg.bids.provenance import made_with, options_sha256
from bids_synthseg.bids.quality import EMPTY_TISSUE_ML, Quality, judge
from bids_synthseg.bids.scans import CONTRASTS, Scan, ScanGroup
from bids_synthseg.errors import AppError, BadData, UsageProblem
from bids_synthseg.models.checkpoint import Model, load_model, shipped_folder
from bids_synthseg.models.registry import compare_checksums
from bids_synthseg.models.tasks import SEGMENTATION, check_model
from bids_synthseg.reading import fingerprint
from bids_synthseg.resources import limit_threads
from bids_synthseg.segmentation.align import Alignment, align, itk_text
from bids_synthseg.segmentation.labelling import label_volume
from bids_synthseg.segmentation.predict import Segmented, segment
from bids_synthseg.segmentation.quality import worst
from bids_synthseg.spaces import Part, write_spaces
from bids_synthseg.storage import file_sha256

LOG = logging.getLogger(__name__)

SMALLEST_BRAIN_ML, LARGEST_BRAIN_ML = 15.0, 2500.0
"""Less than a 20-week fetus has, more than an adult with the fluid around the brain: whatever was
found is no brain."""


@dataclass(frozen=True)
class Options:
    """What the user chose; fields as on the command line."""

    device: str = "auto"
    mirror: bool = True
    save_posteriors: str = "none"
    save_per_image: bool = False
    write_preproc: str = "several"
    model: Path | None = None
    all_scans: bool = False
    overwrite: bool = False
    redo_changed: bool = False
    viewer: str = "niivue"
    derivatives: Mapping[str, Path] = field(default_factory=dict)
    n_cpus: int | None = None

    def that_matter(self) -> dict:
        """Those that change an output, as plain values."""
        names = ("mirror", "save_posteriors", "save_per_image", "write_preproc", "all_scans")
        return {name: getattr(self, name) for name in names}

    def preproc(self, group: ScanGroup) -> tuple[str, ...]:
        """Contrasts whose image is written as well.

        Of several images of a contrast NiBabies makes a template and puts our label map on it
        unregistered, unless it finds the image that the labels belong to; an image that is none of
        the raw ones it cannot find otherwise.
        """
        there = tuple(group.by_contrast)
        if self.write_preproc == "always":
            return there
        return tuple(name for name in there if name in (*group.repeated, *group.derived))


@dataclass(frozen=True)
class SessionResult:
    """`status` is "done" or "skipped"; `message` sums up warnings and notes."""

    status: str
    seconds: float
    message: str = ""


@dataclass(frozen=True)
class Segmenter:
    """The networks, on their device, and the checksum of their files."""

    model: Model
    locator: Model
    weights_sha256: str

    @property
    def table(self) -> LabelTable:
        """The labels the model knows."""
        return self.model.head.table

    @staticmethod
    def load(options: Options) -> "Segmenter":
        """Load the shipped weights, or `options.model`.

        Raises BadData for a file that is broken, not the one that was shipped, or no model of
        structures.
        """
        device = choose_device(options.device)
        if options.n_cpus:
            limit_threads(options.n_cpus)
        shipped = shipped_folder()
        chosen = options.model or shipped / "segmentation.safetensors"
        paths = (chosen, shipped / "locator.safetensors")
        model, locator = (_ready(load_model(path), device) for path in paths)
        check_model(chosen, model, SEGMENTATION)
        checksums = [file_sha256(path) for path in paths]
        own = {} if options.model else {"segmentation.safetensors": checksums[0]}
        # The checksums are needed anyway, so comparing them costs nothing.
        compare_checksums(shipped, own | {"locator.safetensors": checksums[1]}, shipped=True)
        checksum = hashlib.sha256("".join(checksums).encode()).hexdigest()
        LOG.info("network on %s, weights %s", device, checksum[:12])
        return Segmenter(model, locator, checksum)


def _ready(model: Model, device: torch.device) -> Model:
    model.network.to(device).eval()
    return model


def choose_device(name: str) -> torch.device:
    """The torch device for "auto", "cpu", "cuda[:n]" or "mps"; UsageProblem if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise UsageProblem(f"--device {name}: not available here; use --device cpu or auto")
    return device


def devices(name: str) -> list[str]:
    """All devices that "auto", "cpu", "cuda[:n]" or "mps" stands for: every GPU where no number is
    given; UsageProblem if there is none."""
    device = choose_device(name)
    if device.type == "cuda" and device.index is None:
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [str(device)]


def methods_of(groups: Sequence[ScanGroup], segmenter: Segmenter, options: Options) -> Methods:
    """What the methods text of a run over these sessions has to tell."""
    return Methods(
        version=__version__,
        weights_sha256=segmenter.weights_sha256,
        contrasts=tuple(name for name in CONTRASTS if any(name in g.by_contrast for g in groups)),
        aligned=any(len(group.scans) > 1 for group in groups),
        all_scans=options.all_scans,
        mirror=options.mirror,
        preproc=any(options.preproc(group) for group in groups),
        own_model=options.model is not None,
    )


def run_session(
    group: ScanGroup,
    bids_dir: Path,
    output_dir: Path,
    segmenter: Segmenter,
    options: Options,
    observe: Callable[[Sequence[Part]], None] | None = None,
) -> SessionResult:
    """Segment one session and write its derivatives, unless that is done already.

    observe: is shown the scans with their posteriors, which no file holds as they are. Raises
    AppError with one line for the user; the outputs are then those of before.
    """
    start = time.monotonic()
    paths = SessionPaths(output_dir, group.subject, group.session)
    settle(paths)
    settings = options.that_matter()
    as_found = {scan.path: fingerprint(scan.path) for scan in group.scans}
    basis = made_with(
        group.scans,
        __version__,
        segmenter.weights_sha256,
        settings | {"preproc": options.preproc(group)},
    )
    reason = session_record(paths).reason_to_skip(
        basis, overwrite=options.overwrite, redo_changed=options.redo_changed
    )
    if reason:
        page = [] if paths.report.exists() else write_page(group, bids_dir, output_dir, options)
        return SessionResult("skipped", time.monotonic() - start, "; ".join([reason, *page]))
    for path, why in group.left_out:
        LOG.info("%s: left out: %s", path.name, why)
    writer = SessionWriter(
        paths,
        bids_dir,
        config_sha256=options_sha256(settings),
        weights_sha256=segmenter.weights_sha256,
        links=options.derivatives,
    )
    writer.start()
    try:
        warnings = _make(group, writer, segmenter, options, basis, as_found, observe)
    finally:
        writer.discard()
    page = write_page(group, bids_dir, output_dir, options)
    return SessionResult("done", time.monotonic() - start, "; ".join([*warnings, *page]))


def _make(
    group: ScanGroup,
    writer: SessionWriter,
    segmenter: Segmenter,
    options: Options,
    basis: dict,
    as_found: Mapping[Path, tuple[int, ...]],
    observe: Callable[[Sequence[Part]], None] | None,
) -> list[str]:
    """Segment, write, and put in place; returns warnings and notes.

    as_found: fingerprints of the scans from before their checksums in `basis` were taken.
    """
    preproc = options.preproc(group)
    images = [nifti.read_scan(scan.path) for scan in group.scans]
    if changed := _changed(as_found):
        raise BadData(f"{changed[0]}: has changed while it was read; run again when it is complete")
    results = [_segment(image, segmenter, options) for image in images]
    alignments = [Alignment.of_the_first(), *(align(results[0], one) for one in results[1:])]
    repeats = [_repeated(number, group.scans, images) for number in range(len(images))]
    parts = [
        Part(*of) for of in zip(group.scans, images, results, alignments, repeats, strict=True)
    ]
    if observe:
        observe(parts)
    warnings = _warnings(parts)
    notes = [note for part in parts for note in part.image.notes]

    contrasts = [next(p for p in parts if p.scan.suffix == name) for name in group.by_contrast]
    # Contrasts on one grid share one segmentation.
    spaces: dict[tuple, list[Part]] = {}
    for part in contrasts:
        spaces.setdefault(part.place, []).append(part)
    measured = [
        write_spaces(writer, alike, parts, options.save_posteriors, preproc)
        for alike in spaces.values()
    ]
    if len(contrasts) == 2 and all(part.alignment.accepted for part in contrasts):
        t1w, t2w = contrasts
        # An ITK transform maps points of the target to points of the image that is moved.
        writer.write_transform("T2w", "T1w", itk_text(t2w.seen_from(t1w)))
        writer.write_transform("T1w", "T2w", itk_text(t1w.seen_from(t2w)))
    if options.save_per_image:
        for part in parts:
            labelled = label_volume(part.result.answer, part.image.volume.grid)
            writer.write_per_image(part.scan, part.image, labelled.aseg, labelled.native)
    for part in parts:
        if part.alignment.accepted and part.alignment.moved_mm:
            LOG.info("%s: %s", part.scan.path.name, part.alignment.summary)
    warnings += [
        f"{path}: has changed since it was read; the results are those of what was read: run again"
        for path in _changed(as_found)
    ]
    for note in (*warnings, *notes):
        LOG.warning("%s: %s", group.label, note)
    quality = _quality(group, parts, worst(measured), warnings, writer.bids_dir)
    LOG.info("%s: quality: %s", group.label, "; ".join((quality.verdict, *quality.reasons)))
    details = _details(group, warnings, notes, quality, writer)
    writer.finish(options_sha256(basis), {"MadeWith": basis, **details})
    return [*warnings, *notes]


def _changed(as_found: Mapping[Path, tuple[int, ...]]) -> list[Path]:
    """Scans that are gone or no longer as they were found."""
    changed = []
    for path, before in as_found.items():
        try:
            same = fingerprint(path) == before
        except AppError:
            same = False
        if not same:
            changed.append(path)
    return changed


def _details(
    group: ScanGroup,
    warnings: list[str],
    notes: list[str],
    quality: Quality,
    writer: SessionWriter,
) -> dict:
    """What the record of a session tells beside its outputs."""
    return {
        "Warnings": warnings,
        "Notes": notes,
        "Scans": [writer.uri(scan.path) for scan in group.scans],
        "LeftOut": {writer.uri(path): reason for path, reason in group.left_out},
        "Quality": quality.record(),
    }


def _quality(
    group: ScanGroup,
    parts: Sequence[Part],
    measures: Mapping[str, float],
    warnings: Sequence[str],
    bids_dir: Path,
) -> Quality:
    """The verdict on a session; `measures` are those of its spaces."""
    age = read_ages(bids_dir, [group.key])[group.key]
    dices = [part.alignment.dice for part in parts[1:] if part.repeats is None]
    sides_mm = [float(part.image.volume.grid.voxel_size_mm.max()) for part in parts]
    fields = [p.result.bias_range for p in parts if p.result.bias_range is not None]
    more = {
        "alignment_dice": min(dices, default=None),
        "slice_mm": max(sides_mm),
        "bias_range": max(fields, default=None),
        "empty_tissue_ml": max(sum(part.result.unseen_tissue_ml.values()) for part in parts),
    }
    return judge({**measures, **more, **age_measures(age, measures["brain_ml"])}, warnings)


def write_page(group: ScanGroup, bids_dir: Path, output_dir: Path, options: Options) -> list[str]:
    """The page of a finished session; returns the warning if there is none.

    The results stand without it, whatever goes wrong (no folder for matplotlib's cache, a full
    disk), and the next run makes the page that is missing.
    """
    try:
        from bids_synthseg.bids.report import write_report  # matplotlib is slow to load

        write_report(
            bids_dir,
            output_dir,
            group.key,
            viewer=options.viewer,
            table_of_links=options.derivatives,
        )
    except AppError as error:
        warning = f"no report: {error}"
    except Exception as error:
        warning = f"no report: unexpected {type(error).__name__}: {error}"
        LOG.debug("traceback", exc_info=True)
    else:
        return []
    LOG.warning("%s: %s", group.label, warning)
    return [warning]


def _segment(image: nifti.Image, segmenter: Segmenter, options: Options) -> Segmented:
    result = segment(image.volume, segmenter.model, segmenter.locator, options.mirror)
    voxel_ml = result.field.grid.voxel_volume_mm3 / 1000
    brain_ml = float((1 - result.field.data[0]).sum()) * voxel_ml
    if not (result.found and SMALLEST_BRAIN_ML <= brain_ml <= LARGEST_BRAIN_ML):
        raise BadData(
            f"{image.path}: no brain found (what was taken for one has {brain_ml:.0f} ml); look at "
            "the scan, cut the head out if it shows more (a fetus in its mother), or leave it out "
            "with --bids-filter-file"
        )
    return result


def _repeated(number: int, scans: Sequence[Scan], images: Sequence[nifti.Image]) -> Scan | None:
    """The scan before the one of this number that has the same voxels, in whatever order."""
    data = images[number].volume.canonical()[0].data
    for scan, image in zip(scans[:number], images, strict=False):
        if np.array_equal(image.volume.canonical()[0].data, data):
            return scan
    return None


def _warnings(parts: list[Part]) -> list[str]:
    found = [warning for part in parts for warning in part.image.warnings]
    for part in parts:
        found += [f"{part.scan.path}: {warning}" for warning in part.result.warnings]
        missing = part.result.unseen_tissue_ml
        if sum(missing.values()) > EMPTY_TISSUE_ML:
            named = ", ".join(f"{name} ({ml:.0f} ml)" for name, ml in missing.items() if ml >= 1)
            found.append(
                f"{part.scan.path}: the image is empty where these are expected, which are left "
                f"out: {named or 'many structures'}"
            )
        if part.repeats:
            found.append(
                f"{part.scan.path}: has the same voxels as {part.repeats.path.name}: one scan "
                "under two names, which counts once"
            )
        if part.alignment.mirrored:
            found.append(
                f"{part.scan.path}: not merged, it is the mirror image of "
                f"{parts[0].scan.path.name} (overlap by a Dice of {part.alignment.dice:.2f}, "
                f"mirrored {part.alignment.mirrored_dice:.2f}): the header of one of them "
                "exchanges left and right"
            )
        elif not part.alignment.accepted:
            found.append(
                f"{part.scan.path}: not merged, its segmentation overlaps that of "
                f"{parts[0].scan.path.name} by a Dice of {part.alignment.dice:.2f} only; "
                "look at both"
            )
    return found
