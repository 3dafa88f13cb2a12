"""From a scan to a posterior field: locate, working grid, network, mirrored pass.

The working grid runs along the scan's own axes (in canonical order), is isotropic, and so large
that the brain's box fills the same part of it as in training.
"""

from dataclasses import dataclass

import numpy as np
import torch

from bids_synthseg.anatomy.islands import largest_component
from bids_synthseg.anatomy.volume import Volume, resample
from bids_synthseg.models.checkpoint import Model
from bids_synthseg.models.inputs import network_input
from bids_synthseg.segmentation.field import GridField
from bids_synthseg.segmentation.locate import BrainBox, box_of, locate

BOX_TOLERANCE = 0.06
"""The segmentation's own box may differ from the one it was made in by this fraction."""

MAX_PASSES = 3


@dataclass(frozen=True)
class Segmented:
    """One scan's posteriors on its working grid. `warnings` are for the user."""

    field: GridField
    box: BrainBox
    passes: int
    warnings: tuple[str, ...] = ()


def segment(scan: Volume, model: Model, locator: Model, mirror: bool = True) -> Segmented:
    """Segment one scan, in any orientation and field of view.

    If the box of the segmented brain disagrees with the box it was cut out by, the network runs
    again in the box that it found itself.
    """
    canonical, _ = scan.canonical()
    box = locate(canonical, locator)
    warnings = []
    if not box.found:
        warnings.append("the locator saw no brain: the whole field of view was searched")
    field = posteriors_in(canonical, box, model, mirror=False)
    for passes in range(1, MAX_PASSES + 1):
        own = brain_box(field)
        if own is None:
            warnings.append("no brain was segmented: check the scan")
            break
        settled = own.agrees_with(box, BOX_TOLERANCE)
        if settled or passes == MAX_PASSES:
            if not settled:
                warnings.append("the size of the brain did not settle: check the result")
            break
        box = own
        field = posteriors_in(canonical, box, model, mirror=False)
    if mirror:
        field = posteriors_in(canonical, box, model, mirror=True)
    return Segmented(field, box, passes, tuple(warnings))


def posteriors_in(scan: Volume, box: BrainBox, model: Model, mirror: bool) -> GridField:
    """The network's answer on the working grid of a box; averaged with the mirrored scan's."""
    shape = np.array(model.shape)
    voxel_mm = float((box.extent_mm / (model.fill * shape)).max())
    centre = scan.grid.to_voxel(box.centre_mm)
    working = resample(scan, scan.grid.window(centre, voxel_mm, model.shape))
    device = next(model.network.parameters()).device
    image = torch.from_numpy(working.data).to(device)
    with torch.inference_mode():
        data = _probabilities(image, model)
        if mirror:
            twins = torch.from_numpy(model.head.table.mirror_channels).to(device)
            data += _probabilities(image.flip(0), model).flip(1)[twins]
            data /= 2
    return GridField(data, working.grid, model.head.table)


def _probabilities(image: torch.Tensor, model: Model) -> torch.Tensor:
    half = image.device.type == "cuda"
    with torch.autocast(image.device.type, torch.bfloat16, enabled=half):
        logits = model.network(network_input(image))
    return model.head.probabilities(logits.float())[0]


def brain_box(field: GridField) -> BrainBox | None:
    """The box of the largest piece of brain in a field; None where there is none."""
    brain = (field.data[0] < 0.5).cpu().numpy()
    return box_of(largest_component(brain), field.grid) if brain.any() else None
