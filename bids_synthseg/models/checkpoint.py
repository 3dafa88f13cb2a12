"""Weights that describe themselves: safetensors with architecture, labels, grid and record.

A model file rebuilds its network alone: the metadata holds one JSON document under the key
`bids_synthseg`.
"""

import json
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path

import torch

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.errors import BadData, InputMissing
from bids_synthseg.fields import build
from bids_synthseg.models.heads import Head
from bids_synthseg.models.unet import NetworkConfig, UNet
from bids_synthseg.reading import is_there, parse_json, read_head
from bids_synthseg.storage import atomic_file

METADATA_KEY = "bids_synthseg"

# What a description of other types, names or sizes than these leads to.
_FAULTS = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError)


@dataclass(frozen=True)
class Model:
    """A network with all that is needed to use it.

    `shape` is the working grid in voxels, `voxel_mm` their side, or 0 where the brain decides: its
    box then takes the fraction `fill` of the grid. `record` tells how it was trained (anything
    JSON can hold). `correct_bias`: the network is to see images without their bias field.
    """

    network: UNet
    head: Head
    shape: tuple[int, int, int]
    fill: float
    record: dict = field(default_factory=dict)
    voxel_mm: float = 0.0
    correct_bias: bool = True

    @property
    def device(self) -> torch.device:
        """Where the network's weights are, and its input must be."""
        return next(self.network.parameters()).device

    @property
    def intensity(self) -> str:
        """The scale on which the network sees an image: see models.inputs."""
        return self.network.config.intensity


def shipped_folder() -> Path:
    """The folder of the installed models."""
    # An installer of wheels unpacks them, so the resources are a folder.
    return Path(str(files("bids_synthseg.weights")))


def save_model(path: Path, model: Model) -> None:
    """Write a model file; an existing one is replaced only once the new one is complete."""
    description = {
        "network": asdict(model.network.config),
        "labels": model.head.table.records(),
        "head": model.head.kind,
        "shape": list(model.shape),
        "fill": model.fill,
        "voxel_mm": model.voxel_mm,
        "correct_bias": model.correct_bias,
        "record": model.record,
    }
    from safetensors.torch import save  # here: the training core must load without it

    tensors = {k: v.contiguous().cpu() for k, v in model.network.state_dict().items()}
    with atomic_file(path) as stream:
        stream.write(save(tensors, metadata={METADATA_KEY: json.dumps(description)}))


def load_model(path: Path) -> Model:
    """Read a model file onto the CPU.

    Raises InputMissing, or BadData for a file that is truncated, foreign or contradicts itself.
    """
    from safetensors import SafetensorError, safe_open

    if not is_there(path):
        raise InputMissing(f"{path}: no such weights file; check --model")
    read_head(path)
    try:
        with safe_open(path, framework="pt") as stored:
            written = (stored.metadata() or {}).get(METADATA_KEY)
            state = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as problem:
        raise BadData(
            f"{path}: truncated, or no safetensors file ({problem}); fetch or copy it again"
        ) from problem
    if written is None:
        raise BadData(f"{path}: weights of another program; give a model that this one has written")
    try:
        description = parse_json(written)
        config = build(NetworkConfig, description["network"])
        # Without memory: what the description asks for must be what the file holds.
        with torch.device("meta"):
            expected = {key: value.shape for key, value in UNet(config).state_dict().items()}
        if {key: value.shape for key, value in state.items()} != expected:
            raise ValueError("tensors of other names or shapes than its network has")
        network = UNet(config)
        head = Head(LabelTable.from_records(description["labels"]), description["head"])
        if head.n_channels != network.config.channels_out:
            raise ValueError(f"{network.config.channels_out} channels for {head.n_channels}")
        network.load_state_dict(state)
        shape = tuple(int(n) for n in description["shape"])
        # Older files lack the last two.
        voxel_mm = float(description.get("voxel_mm", 0.0))
        correct_bias = bool(description.get("correct_bias", True))
        fill = float(description["fill"])
        record = description["record"]
        if not isinstance(record, dict):
            raise ValueError(f"record: {record!r:.40} is no table")
        model = Model(network, head, shape, fill, record, voxel_mm, correct_bias)
    except _FAULTS as problem:
        reason = " ".join(str(problem).split())[:200]
        raise BadData(
            f"{path}: weights and their description do not fit ({reason}); fetch it again, or use "
            "the version of bids_synthseg that wrote it"
        ) from problem
    for name, values in state.items():
        if not values.isfinite().all():
            raise BadData(
                f"{path}: its weights {name} are not finite; fetch it again, or train it anew"
            )
    return model
