"""What the tests of synthesis, models and learning share: a small brain ready for synthesis."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from conftest import RAS_OBLIQUE, nifti, write_tree

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.learning.config import TrainConfig
from bids_synthseg.learning.maps import TrainingMap
from bids_synthseg.learning.start import empty_state, stage_of
from bids_synthseg.learning.states import State, restore_state, saved_step
from bids_synthseg.learning.validation import UNTOUCHED
from bids_synthseg.models.unet import NetworkConfig
from bids_synthseg.synthesis import head
from bids_synthseg.synthesis.contrast import TISSUE_OF
from bids_synthseg.synthesis.parts import MOST
from bids_synthseg.synthesis.recipe import Draw, SourceMap, SynthesisConfig, draw
from bids_synthseg.synthesis.shape import ROLE_OF

# Classes of `sphere`: background, left and right white matter, left and right cortex, CSF.
BACKGROUND, LEFT_WHITE, RIGHT_WHITE, LEFT_CORTEX, RIGHT_CORTEX, FLUID = range(6)
PHANTOM_ROWS = {
    0: "Background",
    2: "Left-Cerebral-White-Matter",
    3: "Left-Cerebral-Cortex",
    10: "Left-Thalamus",
    24: "CSF",
    41: "Right-Cerebral-White-Matter",
    42: "Right-Cerebral-Cortex",
    49: "Right-Thalamus",
}


def sphere(side: int = 24, scan: bool = False) -> SourceMap:
    """A ball of white matter in cortex in CSF, of 1 mm voxels; `outside` in steps of a voxel.

    The scan, where asked for, is a tenth of the class number.
    """
    x, y, z = np.meshgrid(*[np.arange(side) - (side - 1) / 2] * 3, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2) / (side / 2)
    classes = np.zeros((side,) * 3, dtype=np.uint8)
    classes[radius < 0.8] = FLUID
    classes[radius < 0.7] = RIGHT_CORTEX
    classes[radius < 0.45] = RIGHT_WHITE
    classes[(radius < 0.7) & (x < 0)] -= 1
    outside = np.maximum(0, (radius - 0.8) * side / 2).round().astype(np.uint8)
    images = [classes / 10] if scan else np.zeros((0, 1, 1, 1))
    tissues = [TISSUE_OF[t] for t in ("background", "white", "white", "grey", "grey", "csf")]
    roles = ("other", "white", "white", "cortex", "cortex", "csf")
    return SourceMap(
        classes=torch.from_numpy(classes),
        outside=torch.from_numpy(outside),
        images=torch.from_numpy(np.asarray(images, dtype=np.float16)),
        contrasts=("T1w",) if scan else (),
        tissues=np.array(tissues),
        twins=np.array([0, 2, 1, 4, 3, 5]),
        surrounding=np.zeros(6, dtype=bool),
        labels=np.array([0, 2, 41, 3, 42, 24]),
        roles=np.array([ROLE_OF[r] for r in roles], dtype=np.int8),
        thresholds=np.zeros((0, 5, MOST, MOST - 1), dtype=np.float32),
        has_csf=True,
        voxel_mm=(1.0, 1.0, 1.0),
        centre=((side - 1) / 2,) * 3,
        extent_mm=(0.8 * side,) * 3,
    )


def ball_map(name: str = "sub-01", dataset: str = "set", scan: bool = False) -> TrainingMap:
    """`sphere` with its labels; what the head paints is background, but for its fluid."""
    table = LabelTable.default()
    ids = [0, 2, 41, 3, 42, 24, *[0] * head.N_CLASSES]
    ids[6 + head.CSF] = 24
    sets = np.array([table.ids == one for one in ids])
    return TrainingMap(name, name, dataset, sphere(scan=scan), sets)


def still(source: SourceMap, shape: tuple[int, int, int], **changes: object) -> Draw:
    """A draw with every effect off and intensity = class number / 10, on the source's own grid
    where `shape` is that grid's."""
    drawn = draw(source, UNTOUCHED, shape, source.voxel_mm[0], np.random.default_rng(0))
    means = np.arange(len(drawn.means), dtype=np.float32) / 10
    painted = {"means": means, "spreads": np.zeros_like(means), "image": -1}
    return replace(drawn, **{**painted, **changes})


def phantom_folder(root: Path, labels: np.ndarray, scans: dict[str, np.ndarray] | None = None):
    """A BIDS folder of label maps with one subject and, beside its map, scans by suffix."""
    table = "index\tname\tmodel_labels\n"
    table += "".join(f"{i}\t{name}\t{i}\n" for i, name in PHANTOM_ROWS.items())
    anat = {"sub-01_dseg.nii.gz": nifti(labels.astype(np.int16), RAS_OBLIQUE)}
    for suffix, data in (scans or {}).items():
        anat[f"sub-01_{suffix}.nii.gz"] = nifti(data.astype(np.float32), RAS_OBLIQUE)
    return write_tree(root, {"dseg.tsv": table, "sub-01": {"anat": anat}})


def tiny_config(**changes: object) -> TrainConfig:
    """A run that takes a fraction of a second per step."""
    base = TrainConfig(
        shape=(16, 24, 16),
        steps=4,
        batch=1,
        warm_up=2,
        precision="fp32",
        network=NetworkConfig(features=(4, 8), convs=(1, 1)),
        synthesis=SynthesisConfig(),
    )
    return replace(base, **changes)


def trained(out: Path, config: TrainConfig) -> tuple[State, list[torch.Tensor]]:
    """The state of a run's checkpoint, and all its tensors: weights, average, Adam's memory."""
    state = empty_state(stage_of(config, saved_step(out)), torch.device("cpu"))
    restore_state(out, state)
    memory = state.optimiser.state_dict()["state"]
    tensors = [
        *state.network.state_dict().values(),
        *state.average.state_dict().values(),
        *(value for one in memory.values() for value in one.values()),
    ]
    return state, tensors
