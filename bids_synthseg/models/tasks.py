"""What a model is for, and whether it has all that its task needs."""

import math
from collections import Counter
from pathlib import Path

from bids_synthseg.anatomy.labels import SIDES, LabelTable
from bids_synthseg.errors import BadData
from bids_synthseg.models.checkpoint import Model
from bids_synthseg.models.inputs import CHANNELS

SEGMENTATION, LOCATOR = "segmentation", "locator"

LARGEST_ASEG_ID = 255
"""NiBabies reads desc-aseg as bytes."""

MOST_VOXELS = 2**26
"""Of a working grid: 400 a side, beyond any memory that the network is run in."""

LARGEST_ID = 32767
"""Native labels are written as 16-bit integers."""


def task_of(model: Model) -> str:
    """LOCATOR for a model that tells brain from background and no more, else SEGMENTATION."""
    rows = model.head.table.rows
    return LOCATOR if len(rows) == 2 and rows[1].structure == "brain" else SEGMENTATION


def check_model(path: Path, model: Model, task: str) -> None:
    """Raises BadData, naming the file of the model, where it cannot serve the task."""
    own = task_of(model)
    if own != task:
        does = {LOCATOR: "only tells brain from background", SEGMENTATION: "labels structures"}
        raise BadData(
            f"{path}: is a model for another task ({own}: it {does[own]}); give one for {task}"
        )
    problem = _unfit_grid(model) or _unfit_labels(model)
    if problem:
        raise BadData(
            f"{path}: cannot be used for {task} ({problem}); give another model, or train this one "
            "anew with that mended"
        )


def _unfit_grid(model: Model) -> str | None:
    config = model.network.config
    if config.channels_in != CHANNELS:
        return f"it wants {config.channels_in} input channels, there are {CHANNELS}"
    if len(model.shape) != 3 or any(n < 2 or n % config.divisor for n in model.shape):
        return f"the sides of its grid {model.shape} must be multiples of {config.divisor}"
    if math.prod(model.shape) > MOST_VOXELS:
        return f"its grid {model.shape} has more than {MOST_VOXELS} voxels"
    if not 0 < model.fill <= 1:
        return f"its fill is {model.fill:g}, not above 0 and at most 1"
    if not (math.isfinite(model.voxel_mm) and model.voxel_mm >= 0):
        return f"its voxel size is {model.voxel_mm:g} mm"
    return None


def _unfit_labels(model: Model) -> str | None:
    table = model.head.table
    for row in table.rows:
        if not 0 <= row.index <= LARGEST_ID:
            return f"label id {row.index} is not between 0 and {LARGEST_ID}"
        if not 0 <= row.aseg <= LARGEST_ASEG_ID:
            return f"label {row.index}: aseg id {row.aseg} is not between 0 and {LARGEST_ASEG_ID}"
        if row.aseg not in table.ids:
            return f"label {row.index} becomes aseg {row.aseg}, which is no label of its own"
    try:
        table.fold("aseg")
    except ValueError as problem:
        return f"folded to aseg: {problem}"
    return _sides_missing(table) if model.head.kind == "sided" else None


def _sides_missing(table: LabelTable) -> str | None:
    """Why a sided head's probabilities would not sum to 1."""
    rows = Counter((row.structure, row.side) for row in table.rows)
    for structure in table.structures:
        found = tuple(rows[structure, side] for side in SIDES)
        if found not in {(1, 1, 0), (0, 0, 1)}:
            return f"{structure} needs one label in the middle, or one on each side"
    return None
