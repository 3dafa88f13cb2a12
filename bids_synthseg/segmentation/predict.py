"""From a scan to a posterior field: locate, working grid, bias field, network, mirrored pass.

The working grid runs along the scan's own axes (in canonical order), is isotropic, and so large
that the brain's box fills the same part of it as in training. Where these axes are turned far from
those of the world, as the head may be straight in either, both are tried and the surer is kept.
"""

import copy
import logging
import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from bids_synthseg.anatomy.extent import without_far_fluid
from bids_synthseg.anatomy.intensity import standardised, without_data
from bids_synthseg.anatomy.islands import largest_component
from bids_synthseg.anatomy.labels import CSF_ID, FLUID
from bids_synthseg.anatomy.volume import Grid, Volume, resample, working_voxel_mm
from bids_synthseg.models.checkpoint import Model
from bids_synthseg.models.inputs import network_input
from bids_synthseg.segmentation.bias import bias_field, field_range, without_field
from bids_synthseg.segmentation.field import GridField, SeenField
from bids_synthseg.segmentation.locate import BrainBox, box_of, locate
from bids_synthseg.segmentation.quality import aseg_agreement

LOG = logging.getLogger(__name__)

BOX_TOLERANCE = 0.06
"""The segmentation's own box may differ from the one it was made in by this fraction."""

FIELD_TOLERANCE = 0.1
"""The bias field that was taken off may differ from the one within the segmented tissue by this SD
of its logarithm. The first is found in the coarse mask of the locator, fluid included."""

MAX_PASSES = 4

OBLIQUE_DEG = 15.0
"""Scans turned farther than this in the world are looked at along the world's axes too: heads in
training are turned little farther."""

LARGEST_GRID = 1.5
"""A grid of fixed voxels may have this many times the sides of the model's own."""

GROWTH = 1.1
"""How much larger to look than the box of a brain that may be cut off."""

TWIN_SHIFT = 1
"""Voxels along every axis by which the grid of the mirrored pass lies elsewhere. A network sees the
voxels of a stem or of pooling in cubes and does not do equally well in all their corners: other
cubes, other errors, to average out (benchmarks/accuracy.md)."""

TEMPERATURE = 0.85
"""Of the mean of the plain and the mirrored pass: two answers that differ make a mean that is less
sure than it is right. Calibrated on newborns (benchmarks/accuracy.md)."""


@dataclass(frozen=True, eq=False)
class Segmented:
    """One scan's posteriors on its working grid, and its image there.

    `image` has no bias field any more, and intensities of `anatomy.intensity`; `bias_range` is how
    many times brighter the field made the same tissue in one place than in another, None where no
    field could be estimated or the model wants none taken off. `unseen` is true in voxels of the
    scan where nothing was measured (`anatomy.intensity.without_data`). `box` is the one the working
    grid was made for, `passes` how often it took to find it; `mirror_dice` (C,) is the agreement of
    the plain and the mirrored pass on the aseg labels, None without the latter; `warnings` are for
    the user. `found` is false where nothing of a brain's size was segmented.
    """

    field: GridField
    image: Volume
    unseen: Volume
    box: BrainBox
    passes: int
    mirror_dice: np.ndarray | None = None
    bias_range: float | None = None
    warnings: tuple[str, ...] = ()
    found: bool = True

    @property
    def answer(self) -> SeenField:
        """The field where the scan shows something: what labels are made of."""
        return SeenField(self.field, self.unseen)

    @cached_property
    def unseen_tissue_ml(self) -> dict[str, float]:
        """Tissue that the network expects where nothing was measured, by the names of aseg labels,
        the largest first: what is missing."""
        table, channels = self.field.table.fold("aseg")
        grid, tissue = self.field.grid, solid_tissue(self.field)
        empty = self.answer.is_empty(grid.to_world(np.argwhere(tissue)))
        labels = channels[self.field.channels[tissue][empty]]
        sizes_ml = np.bincount(labels, minlength=len(table)) * grid.voxel_volume_mm3 / 1000
        order = [channel for channel in np.argsort(-sizes_ml) if sizes_ml[channel] > 0]
        return {table.rows[channel].name: float(sizes_ml[channel]) for channel in order}


@dataclass(frozen=True, eq=False)
class _Look:
    """What the network says of a scan on its last working grid, before the mirrored pass; `bias` is
    the logarithm of the field, within `tissue`; `frame` has the axes of the working grid."""

    frame: Grid
    working: Volume
    field: GridField
    bias: np.ndarray | None
    tissue: np.ndarray
    box: BrainBox
    passes: int
    warnings: tuple[str, ...]
    found: bool

    @property
    def sureness(self) -> float:
        """Mean probability of the labels taken within the brain, 0 without one."""
        brain = self.field.data[:, self.field.data[0] < 0.5]
        return float(brain.max(0).values.mean()) if brain.numel() else 0.0


def segment(scan: Volume, model: Model, locator: Model, mirror: bool = True) -> Segmented:
    """Segment one scan, in any orientation, field of view and scale of intensities.

    If the box of the segmented brain disagrees with the box it was cut out by, or the bias field
    within it with the one that was taken off, the network runs again in the box and without the
    field that it found itself. `mirror`: average with what the network says of the mirrored image.
    A scan for which the memory of the GPU is too small, as others may use it at the moment, is done
    on the CPU: smaller tiles would change the answer, as normalisation and coordinates are those of
    the whole grid.
    """
    unseen = Volume(without_data(scan), scan.grid)
    canonical = standardised(scan.canonical()[0])
    try:
        return _segment(canonical, unseen, model, locator, mirror)
    except torch.cuda.OutOfMemoryError:
        # No more here: the exception holds on to what was on the GPU.
        LOG.info("%s: out of memory; this scan is segmented on the CPU", model.device)
    torch.cuda.empty_cache()
    return _segment(canonical, unseen, _on_cpu(model), _on_cpu(locator), mirror)


def _on_cpu(model: Model) -> Model:
    """A copy of a model that takes no memory of the GPU, not even while it is made."""
    copies: dict[int, torch.Tensor] = {id(one): one.cpu() for one in model.network.buffers()}
    for one in model.network.parameters():
        copies[id(one)] = torch.nn.Parameter(one.detach().cpu(), one.requires_grad)
    return replace(model, network=copy.deepcopy(model.network, copies))


def _segment(
    canonical: Volume, unseen: Volume, model: Model, locator: Model, mirror: bool
) -> Segmented:
    frames = [canonical.grid]
    if canonical.grid.obliqueness_deg > OBLIQUE_DEG:
        frames.append(canonical.grid.upright())
    looks = [_look(canonical, frame, model, locator) for frame in frames]
    look = max(looks, key=lambda look: (look.found, look.sureness))
    field, bias = look.field, look.bias
    mirror_dice = None
    if mirror:
        twin = twin_of(canonical, look.frame, look.box, field, model, bias)
        mirror_dice = aseg_agreement(field, twin)
        both = at_temperature((field.data + twin.data) / 2, TEMPERATURE)
        field = GridField(both, field.grid, field.table)
    return Segmented(
        field=field,
        image=without_field(look.working, bias),
        unseen=unseen,
        box=look.box,
        passes=look.passes,
        mirror_dice=mirror_dice,
        bias_range=field_range(bias, look.tissue) if bias is not None and look.found else None,
        warnings=look.warnings,
        found=look.found,
    )


def _look(canonical: Volume, frame: Grid, model: Model, locator: Model) -> _Look:
    """Look at a canonical, standardised scan along the axes of `frame` until box and bias field
    settle."""
    location = locate(canonical, frame, locator)
    box, seen = location.box, location.mask if location.box.found else None
    warnings = []
    if not box.found:
        warnings.append("the locator saw no brain: the whole field of view was searched")
    for passes in range(1, MAX_PASSES + 1):
        working = working_volume(canonical, frame, box, model)
        bias = None
        if model.correct_bias and seen is not None:
            bias = bias_field(working, resample(seen, working.grid).data > 0.5)
        field = posteriors_of(without_field(working, bias), model)
        own, tissue = brain_box(field), solid_tissue(field)
        if own is None:
            warnings.append("no brain was segmented: check the scan")
            break
        seen = Volume(tissue.astype(np.float32), working.grid)
        refined = bias_field(working, tissue) if model.correct_bias else None
        settled = _same_field(bias, refined, tissue)
        bias = refined
        if own.agrees_with(box, BOX_TOLERANCE) and settled:
            break
        if passes == MAX_PASSES:
            warnings.append("the size of the brain did not settle: check the result")
            break
        # A network sees little of what is cut off: a box that grows has further to grow.
        grows = own.extent_mm.max() > box.extent_mm.max()
        box = own.scaled(GROWTH) if grows else own
    return _Look(frame, working, field, bias, tissue, box, passes, tuple(warnings), own is not None)


def solid_tissue(field: GridField) -> np.ndarray:
    """(X, Y, Z) bool: voxels of brain, fluid left out."""
    fluid = np.array([row.mapping == FLUID for row in field.table.rows])
    return (field.channels > 0) & ~fluid[field.channels]


def _same_field(taken: np.ndarray | None, found: np.ndarray | None, mask: np.ndarray) -> bool:
    """Whether a field (its logarithm) that was taken off is the one that was found after."""
    if found is None:
        return True
    difference = found[mask] if taken is None else (found - taken)[mask]
    return bool(difference.std() < FIELD_TOLERANCE)


def working_volume(
    scan: Volume, frame: Grid, box: BrainBox, model: Model, shift: int = 0
) -> Volume:
    """A canonical, standardised scan on the working grid of a box, along the axes of `frame`,
    `shift` voxels from its middle on every axis.

    The box fills `model.fill` of it; a model of a fixed voxel size gets a larger grid where its own
    would cut the box, and larger voxels where that would take more memory than it is worth.
    """
    fitting_mm = working_voxel_mm(box.extent_mm, model.shape, model.fill)
    voxel_mm, shape = fitting_mm, model.shape
    if model.voxel_mm:
        voxel_mm = max(model.voxel_mm, fitting_mm / LARGEST_GRID)
        step = model.network.config.divisor
        needed = box.extent_mm / voxel_mm / model.fill
        shape = tuple(
            max(n, step * math.ceil(m / step)) for n, m in zip(shape, needed, strict=True)
        )
    centre = frame.to_voxel(box.centre_mm) + shift * voxel_mm / frame.voxel_size_mm
    return resample(scan, frame.window(centre, voxel_mm, shape))


def twin_of(
    scan: Volume,
    frame: Grid,
    box: BrainBox,
    field: GridField,
    model: Model,
    bias: np.ndarray | None = None,
    mirrored: bool = True,
) -> GridField:
    """A second answer for a canonical, standardised scan on the grid of `field`, which is that of
    `box` along the axes of `frame`: what the network says of the mirror image on another grid,
    `TWIN_SHIFT` voxels on.

    `bias`: logarithm of the field to take off, on the grid of `field`. The planes that the other
    grid lacks are those of `field` itself.
    """
    shared, there = slice(TWIN_SHIFT, None), slice(None, -TWIN_SHIFT)
    image = working_volume(scan, frame, box, model, TWIN_SHIFT)
    if bias is not None:
        # The field has no border to speak of: its last plane goes on.
        bias = np.pad(bias[shared, shared, shared], ((0, TWIN_SHIFT),) * 3, mode="edge")
    moved = posteriors_of(without_field(image, bias), model, mirrored)
    data = field.data.clone()
    data[:, shared, shared, shared] = moved.data[:, there, there, there]
    return GridField(data, field.grid, field.table)


def at_temperature(posteriors: torch.Tensor, temperature: float) -> torch.Tensor:
    """Probabilities (C, ...) to the power of 1 / temperature, scaled to sum to 1: sharper below 1
    and softer above (Guo et al. 2017)."""
    powers = posteriors.clamp(min=1e-12).pow_(1 / temperature)
    return powers.div_(powers.sum(0))


def posteriors_of(working: Volume, model: Model, mirrored: bool = False) -> GridField:
    """The network's answer; `mirrored`: what it says of the mirror image, mirrored back."""
    image = torch.from_numpy(working.data).to(model.device)
    with torch.inference_mode():
        if mirrored:
            twins = torch.from_numpy(model.head.table.mirror_channels).to(model.device)
            data = _probabilities(image.flip(0), model).flip(1)[twins]
        else:
            data = _probabilities(image, model)
    return GridField(data, working.grid, model.head.table)


def _probabilities(image: torch.Tensor, model: Model) -> torch.Tensor:
    half = image.device.type == "cuda"
    with torch.autocast(image.device.type, torch.bfloat16, enabled=half):
        logits = model.network(network_input(image, model.intensity))
    return model.head.probabilities(logits.float())[0]


def brain_box(field: GridField) -> BrainBox | None:
    """The box of the largest piece of brain in a field; None where there is none."""
    fluid = field.table.ids[field.channels] == CSF_ID
    return box_of(largest_component(without_far_fluid(field.brain, fluid)), field.grid)
