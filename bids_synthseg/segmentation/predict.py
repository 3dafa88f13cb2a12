"""From a scan to a posterior field: locate, working grid, network, mirrored pass.

The working grid runs along the scan's own axes (in canonical order), is isotropic, and so large
that the brain's box fills the same part of it as in training.
"""

import copy
import logging
import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from bids_synthseg.anatomy.extent import without_far_fluid
from bids_synthseg.anatomy.islands import largest_component
from bids_synthseg.anatomy.labels import CSF_ID
from bids_synthseg.anatomy.volume import Volume, resample, working_voxel_mm
from bids_synthseg.models.checkpoint import Model
from bids_synthseg.models.inputs import network_input
from bids_synthseg.segmentation.field import GridField
from bids_synthseg.segmentation.locate import BrainBox, air_value, box_of, locate
from bids_synthseg.segmentation.quality import aseg_agreement

LOG = logging.getLogger(__name__)

BOX_TOLERANCE = 0.06
"""The segmentation's own box may differ from the one it was made in by this fraction."""

MAX_PASSES = 4

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

    `box` is the one the working grid was made for, `passes` how often it took to find it;
    `mirror_dice` (C,) is the agreement of the plain and the mirrored pass on the aseg labels, None
    without the latter; `warnings` are for the user.
    """

    field: GridField
    image: Volume
    box: BrainBox
    passes: int
    mirror_dice: np.ndarray | None = None
    warnings: tuple[str, ...] = ()


def segment(scan: Volume, model: Model, locator: Model, mirror: bool = True) -> Segmented:
    """Segment one scan, in any orientation and field of view.

    If the box of the segmented brain disagrees with the box it was cut out by, the network runs
    again in the box that it found itself. `mirror`: average with what the network says of the
    mirrored image. A scan for which the memory of the GPU is too small, as others may use it at the
    moment, is done on the CPU: smaller tiles would change the answer, as normalisation and
    coordinates are those of the whole grid.
    """
    canonical, _ = scan.canonical()
    try:
        return _segment(canonical, model, locator, mirror)
    except torch.cuda.OutOfMemoryError:
        # No more here: the exception holds on to what was on the GPU.
        LOG.info("%s: out of memory; this scan is segmented on the CPU", model.device)
    torch.cuda.empty_cache()
    return _segment(canonical, _on_cpu(model), _on_cpu(locator), mirror)


def _on_cpu(model: Model) -> Model:
    """A copy of a model that takes no memory of the GPU, not even while it is made."""
    copies: dict[int, torch.Tensor] = {id(one): one.cpu() for one in model.network.buffers()}
    for one in model.network.parameters():
        copies[id(one)] = torch.nn.Parameter(one.detach().cpu(), one.requires_grad)
    return replace(model, network=copy.deepcopy(model.network, copies))


def _segment(canonical: Volume, model: Model, locator: Model, mirror: bool) -> Segmented:
    box = locate(canonical, locator)
    warnings = []
    if not box.found:
        warnings.append("the locator saw no brain: the whole field of view was searched")
    for passes in range(1, MAX_PASSES + 1):
        working = working_volume(canonical, box, model)
        field = posteriors_of(working, model)
        own = brain_box(field)
        if own is None:
            warnings.append("no brain was segmented: check the scan")
            break
        if own.agrees_with(box, BOX_TOLERANCE):
            break
        if passes == MAX_PASSES:
            warnings.append("the size of the brain did not settle: check the result")
            break
        # A network sees little of what is cut off: a box that grows has further to grow.
        grows = own.extent_mm.max() > box.extent_mm.max()
        box = own.scaled(GROWTH) if grows else own
    mirror_dice = None
    if mirror:
        twin = twin_of(canonical, box, field, model)
        mirror_dice = aseg_agreement(field, twin)
        both = at_temperature((field.data + twin.data) / 2, TEMPERATURE)
        field = GridField(both, field.grid, field.table)
    return Segmented(field, working, box, passes, mirror_dice, tuple(warnings))


def working_volume(scan: Volume, box: BrainBox, model: Model, shift: int = 0) -> Volume:
    """A canonical scan on the working grid of a box, `shift` voxels from its middle on every axis.

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
    centre = scan.grid.to_voxel(box.centre_mm) + shift * voxel_mm / scan.grid.voxel_size_mm
    window = scan.grid.window(centre, voxel_mm, shape)
    return resample(scan, window, fill=air_value(scan))


def twin_of(
    scan: Volume, box: BrainBox, field: GridField, model: Model, mirrored: bool = True
) -> GridField:
    """A second answer for a canonical scan on the grid of `field`, which is that of `box`: what the
    network says of the mirror image on another grid, `TWIN_SHIFT` voxels on.

    The planes that the other grid lacks are those of `field` itself.
    """
    moved = posteriors_of(working_volume(scan, box, model, TWIN_SHIFT), model, mirrored)
    data = field.data.clone()
    shared, there = slice(TWIN_SHIFT, None), slice(None, -TWIN_SHIFT)
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
    fluid = field.table.ids[field.data.argmax(0).cpu().numpy()] == CSF_ID
    return box_of(largest_component(without_far_fluid(field.brain, fluid)), field.grid)
