"""One session of scans -> derivatives.

Each scan is segmented alone; the others are aligned to the first (T1w, else T2w) by their
posteriors; per point the surest contrast gives its whole posterior vector; the merged brain is
labelled on the grid of every contrast and written.
"""

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from bids_synthseg import __version__, nifti
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.bids.derivatives import SessionPaths, SessionWriter, Space, is_finished
from bids_synthseg.bids.methods import Methods
from bids_synthseg.bids.provenance import bids_uri, options_sha256, session_signature
from bids_synthseg.bids.query import CONTRASTS, Scan, ScanGroup
from bids_synthseg.errors import BadData, UsageProblem
from bids_synthseg.models.checkpoint import Model, load_model, shipped_folder
from bids_synthseg.models.registry import compare_checksums
from bids_synthseg.models.tasks import SEGMENTATION, check_model
from bids_synthseg.segmentation.align import Alignment, align, itk_text
from bids_synthseg.segmentation.bias import correct_bias
from bids_synthseg.segmentation.field import MergedField, MovedField, PosteriorField
from bids_synthseg.segmentation.labelling import LabelledVolume, label_volume
from bids_synthseg.segmentation.predict import Segmented, segment
from bids_synthseg.storage import file_sha256

LOG = logging.getLogger(__name__)

SMALLEST_BRAIN_ML = 15.0
"""Less than a 20-week fetus has: whatever was found is no brain."""


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
    n_cpus: int | None = None

    def that_matter(self) -> dict:
        """Those that change an output, as plain values."""
        names = ("mirror", "save_posteriors", "save_per_image", "write_preproc", "all_scans")
        return {name: getattr(self, name) for name in names}

    def preproc(self, group: ScanGroup) -> tuple[str, ...]:
        """Contrasts whose image is written as well.

        Of several images of a contrast NiBabies makes a template and puts our label map on it
        unregistered, unless it finds the image that the labels belong to.
        """
        there = tuple(group.by_contrast)
        if self.write_preproc == "always":
            return there
        return tuple(name for name in group.repeated if name in there)


@dataclass(frozen=True)
class SessionResult:
    """`status` is "done" or "skipped"; `message` sums up the warnings."""

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
            torch.set_num_threads(options.n_cpus)
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(options.n_cpus)
        shipped = shipped_folder()
        chosen = options.model or shipped / "segmentation.safetensors"
        paths = (chosen, shipped / "locator.safetensors")
        model, locator = (_ready(load_model(path), device) for path in paths)
        check_model(chosen, model, SEGMENTATION)
        checksums = [file_sha256(path) for path in paths]
        own = {} if options.model else {"segmentation.safetensors": checksums[0]}
        # The checksums are needed anyway, so comparing them costs nothing.
        compare_checksums(shipped, own | {"locator.safetensors": checksums[1]})
        checksum = hashlib.sha256("".join(checksums).encode()).hexdigest()
        LOG.info("network on %s, weights %s", device, checksum[:12])
        return Segmenter(model, locator, checksum)


def _ready(model: Model, device: torch.device) -> Model:
    model.network.to(device).eval().to(memory_format=torch.channels_last_3d)
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
    group: ScanGroup, bids_dir: Path, output_dir: Path, segmenter: Segmenter, options: Options
) -> SessionResult:
    """Segment one session and write its derivatives, unless that is done already.

    Raises AppError with one line for the user; the outputs then carry no mark of completion.
    """
    start = time.monotonic()
    paths = SessionPaths(output_dir, group.subject, group.session)
    settings = options.that_matter()
    preproc = options.preproc(group)
    signature = session_signature(
        group.scans, __version__, segmenter.weights_sha256, settings | {"preproc": preproc}
    )
    if not options.overwrite and is_finished(paths, signature):
        return SessionResult("skipped", time.monotonic() - start, "already done")
    for path, reason in group.left_out:
        LOG.info("%s: left out: %s", path.name, reason)
    writer = SessionWriter(
        paths,
        bids_dir,
        config_sha256=options_sha256(settings),
        weights_sha256=segmenter.weights_sha256,
    )
    writer.start()
    images = [nifti.read_scan(scan.path) for scan in group.scans]
    results = [_segment(image, segmenter, options) for image in images]
    alignments = [Alignment.of_the_first(), *(align(results[0], one) for one in results[1:])]
    parts = [Part(*of) for of in zip(group.scans, images, results, alignments, strict=True)]
    warnings = _warnings(parts)

    contrasts = [next(p for p in parts if p.scan.suffix == name) for name in group.by_contrast]
    # Contrasts on one grid share one segmentation.
    spaces: dict[tuple, list[Part]] = {}
    for part in contrasts:
        spaces.setdefault(part.place, []).append(part)
    for alike in spaces.values():
        _write_spaces(writer, alike, parts, options, preproc)
    if len(contrasts) == 2 and all(part.alignment.accepted for part in contrasts):
        t1w, t2w = contrasts
        # An ITK transform maps points of the target to points of the image that is moved.
        writer.write_transform("T2w", "T1w", itk_text(t2w.seen_from(t1w)))
        writer.write_transform("T1w", "T2w", itk_text(t1w.seen_from(t2w)))
    if options.save_per_image:
        for part in parts:
            labelled = label_volume(part.result.field, part.image.volume.grid)
            writer.write_per_image(part.scan, part.image, labelled.aseg, labelled.native)
    for part in parts:
        if part.alignment.accepted and part.alignment.moved_mm:
            LOG.info("%s: %s", part.scan.path.name, part.alignment.summary)
    for warning in warnings:
        LOG.warning("%s: %s", group.label, warning)
    writer.finish(signature, _details(group, warnings, bids_dir, output_dir))
    return SessionResult("done", time.monotonic() - start, "; ".join(warnings))


@dataclass(frozen=True, eq=False)
class Part:
    """One scan of a session; `alignment` is to the session's first scan."""

    scan: Scan
    image: nifti.Image
    result: Segmented
    alignment: Alignment

    @property
    def place(self) -> tuple:
        """Equal for two parts of a session that see the same brain on the same grid."""
        alignment = self.alignment
        return self.image.volume.grid, alignment.transform.tobytes(), alignment.accepted

    def seen_from(self, viewer: "Part") -> np.ndarray:
        """(4, 4) transform from points of the viewer's world to points of this scan's."""
        if np.array_equal(self.alignment.transform, viewer.alignment.transform):
            return np.eye(4)
        return self.alignment.transform @ np.linalg.inv(viewer.alignment.transform)

    def merged_with(self, other: "Part") -> bool:
        """Whether both scans speak for the same brain."""
        return self is other or (self.alignment.accepted and other.alignment.accepted)


def _details(group: ScanGroup, warnings: list[str], bids_dir: Path, output_dir: Path) -> dict:
    """What the record of a session tells beside its outputs."""

    def uri(path: Path) -> str:
        return bids_uri(path, bids_dir, output_dir)

    return {
        "Warnings": warnings,
        "Scans": [uri(scan.path) for scan in group.scans],
        "LeftOut": {uri(path): reason for path, reason in group.left_out},
    }


def _segment(image: nifti.Image, segmenter: Segmenter, options: Options) -> Segmented:
    result = segment(image.volume, segmenter.model, segmenter.locator, options.mirror)
    voxel_ml = result.field.grid.voxel_volume_mm3 / 1000
    brain_ml = float((1 - result.field.data[0]).sum()) * voxel_ml
    if brain_ml < SMALLEST_BRAIN_ML:
        raise BadData(
            f"{image.path}: no brain found ({brain_ml:.0f} ml); look at the scan, "
            "or leave it out with --bids-filter-file"
        )
    return result


def _write_spaces(
    writer: SessionWriter,
    alike: list[Part],
    parts: list[Part],
    options: Options,
    preproc: Sequence[str],
) -> None:
    """Label the brain on the one grid of the parts `alike` and write it for each of them, with the
    image itself for the contrasts in `preproc`."""
    viewer = alike[0]
    together = [part for part in parts if part.merged_with(viewer)]
    field = MergedField([_view(part, viewer) for part in together])
    keep = options.save_posteriors != "none"
    labelled = label_volume(field, viewer.image.volume.grid, keep)
    for part in alike:
        sources = tuple(source.scan.path for source in together)
        reference = None
        if part.scan.suffix in preproc:
            reference = _write_preproc(writer, part, labelled.mask)
        space = Space(part.scan.suffix, part.image, sources, reference)
        write_space(writer, space, labelled, field.table, options)


def _write_preproc(writer: SessionWriter, part: Part, mask: np.ndarray) -> Path:
    """The image of a part, on its own grid, without its bias field; returns the file."""
    how = (
        f"The scan that was segmented ({part.scan.path.name}), not averaged with others, not "
        "resampled; corrected for the bias field by N4 within the brain mask"
    )
    space = Space(part.scan.suffix, part.image, (part.scan.path,))
    return writer.write_preproc(space, correct_bias(part.image.volume, mask), how)


def _view(part: Part, viewer: Part) -> PosteriorField:
    transform = part.seen_from(viewer)
    field = part.result.field
    return field if np.array_equal(transform, np.eye(4)) else MovedField(field, transform)


def _warnings(parts: list[Part]) -> list[str]:
    found = [warning for part in parts for warning in part.image.warnings]
    for part in parts:
        found += [f"{part.scan.path}: {warning}" for warning in part.result.warnings]
        if not part.alignment.accepted:
            found.append(
                f"{part.scan.path}: not merged, its segmentation overlaps that of "
                f"{parts[0].scan.path.name} by a Dice of {part.alignment.dice:.2f} only; "
                "look at both"
            )
    return found


def write_space(
    writer: SessionWriter,
    space: Space,
    labelled: LabelledVolume,
    table: LabelTable,
    options: Options,
) -> None:
    """All images and tables of one brain on one grid."""
    writer.write_aseg(space, labelled.aseg)
    writer.write_native(space, labelled.native)
    writer.write_mask(space, labelled.mask)
    writer.write_volumes(space, labelled.aseg_table, labelled.hard_mm3, labelled.soft_mm3)
    if labelled.posteriors is not None and options.save_posteriors == "tissue":
        writer.write_tissues(space, labelled.posteriors, table)
    if labelled.posteriors is not None and options.save_posteriors == "all":
        writer.write_posteriors(space, labelled.posteriors, table)
