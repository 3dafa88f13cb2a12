"""One session of scans -> derivatives.

Each scan is segmented alone; the others are aligned to the first (T1w, else T2w) by their
posteriors; per point the surest contrast gives its whole posterior vector; the merged brain is
labelled on the grid of every contrast and written.
"""

import hashlib
import logging
import time
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch

from bids_synthseg import __version__, nifti
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.bids.derivatives import SessionPaths, SessionWriter, Space, is_finished
from bids_synthseg.bids.provenance import options_sha256, session_signature
from bids_synthseg.bids.query import Scan, ScanGroup
from bids_synthseg.errors import BadData, UsageProblem
from bids_synthseg.models.checkpoint import Model, load_model
from bids_synthseg.segmentation.align import Alignment, align, itk_text
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
    model: Path | None = None
    all_scans: bool = False
    overwrite: bool = False
    n_cpus: int | None = None

    def that_matter(self) -> dict:
        """Those that change an output, as plain values."""
        names = ("mirror", "save_posteriors", "save_per_image", "all_scans")
        return {name: getattr(self, name) for name in names}


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
        """Load the shipped weights, or `options.model`; raises BadData for a broken file."""
        device = choose_device(options.device)
        if options.n_cpus:
            torch.set_num_threads(options.n_cpus)
        shipped = files("bids_synthseg.weights")
        with (
            as_file(shipped / "segmentation.safetensors") as segmentation,
            as_file(shipped / "locator.safetensors") as location,
        ):
            chosen = options.model or segmentation
            models = [_ready(load_model(path), device) for path in (chosen, location)]
            both = "".join(file_sha256(path) for path in (chosen, location))
        checksum = hashlib.sha256(both.encode()).hexdigest()
        LOG.info("network on %s, weights %s", device, checksum[:12])
        return Segmenter(*models, checksum)


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


def run_session(
    group: ScanGroup, bids_dir: Path, output_dir: Path, segmenter: Segmenter, options: Options
) -> SessionResult:
    """Segment one session and write its derivatives, unless that is done already.

    Raises AppError with one line for the user; the outputs then carry no mark of completion.
    """
    start = time.monotonic()
    paths = SessionPaths(output_dir, group.subject, group.session)
    settings = options.that_matter()
    signature = session_signature(group.scans, __version__, segmenter.weights_sha256, settings)
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
    alignments = [align(results[0].field, other.field) for other in results[1:]]
    placed = [np.eye(4), *(alignment.transform for alignment in alignments)]
    merged = [True, *(alignment.accepted for alignment in alignments)]
    warnings = _warnings(group.scans, images, results, alignments)

    finished: dict[tuple, LabelledVolume] = {}
    for contrast, scans in group.by_contrast.items():
        number = group.scans.index(scans[0])
        parts = [i for i in range(len(images)) if i == number or (merged[i] and merged[number])]
        field = MergedField([_seen_from(results[i].field, placed, i, number) for i in parts])
        space = Space(contrast, images[number], tuple(group.scans[i].path for i in parts))
        grid = images[number].volume.grid
        key = (grid, placed[number].tobytes(), tuple(parts))
        if key not in finished:
            keep = options.save_posteriors != "none"
            finished[key] = label_volume(field, grid, keep)
        write_space(writer, space, finished[key], field.table, options)
    if len(group.by_contrast) == 2 and merged[group.scans.index(group.by_contrast["T2w"][0])]:
        transform = placed[group.scans.index(group.by_contrast["T2w"][0])]
        # ITK transforms map points of the target to points of the source image.
        writer.write_transform("T2w", "T1w", itk_text(transform))
        writer.write_transform("T1w", "T2w", itk_text(np.linalg.inv(transform)))
    if options.save_per_image:
        for scan, image, result in zip(group.scans, images, results, strict=True):
            labelled = label_volume(result.field, image.volume.grid)
            writer.write_per_image(scan, image, labelled.aseg)
    for warning in warnings:
        LOG.warning("%s: %s", group.label, warning)
    writer.finish(signature, {"Warnings": warnings})
    return SessionResult("done", time.monotonic() - start, "; ".join(warnings))


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


def _seen_from(
    field: PosteriorField, placed: list[np.ndarray], number: int, viewer: int
) -> PosteriorField:
    """Field of scan `number` in the world of scan `viewer`; `placed` leads from the first."""
    if np.array_equal(placed[number], placed[viewer]):
        return field
    return MovedField(field, placed[number] @ np.linalg.inv(placed[viewer]))


def _warnings(
    scans: tuple[Scan, ...],
    images: list[nifti.Image],
    results: list[Segmented],
    alignments: list[Alignment],
) -> list[str]:
    found = [
        f"{scan.path.name}: {warning}"
        for scan, image, result in zip(scans, images, results, strict=True)
        for warning in (*image.warnings, *result.warnings)
    ]
    for scan, alignment in zip(scans[1:], alignments, strict=True):
        if not alignment.accepted:
            found.append(
                f"{scan.path.name}: not merged, its segmentation overlaps that of "
                f"{scans[0].path.name} by a Dice of {alignment.dice:.2f} only"
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
