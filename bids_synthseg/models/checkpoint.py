"""Weights that describe themselves: safetensors with architecture, labels, grid and record.

A model file rebuilds its network alone: the metadata holds one JSON document under the key
`bids_synthseg`.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.errors import BadData, InputMissing
from bids_synthseg.models.heads import Head
from bids_synthseg.models.unet import NetworkConfig, UNet
from bids_synthseg.storage import atomic_file

METADATA_KEY = "bids_synthseg"


@dataclass(frozen=True)
class Model:
    """A network with all that is needed to use it.

    `shape` is the working grid and `fill` the fraction of it that the brain's box takes;
    `record` tells how it was trained.
    """

    network: UNet
    head: Head
    shape: tuple[int, int, int]
    fill: float
    record: dict = field(default_factory=dict)


def save_model(path: Path, model: Model) -> None:
    """Write a model file; an existing one is replaced only once the new one is complete."""
    description = {
        "network": asdict(model.network.config),
        "labels": model.head.table.records(),
        "head": model.head.kind,
        "shape": list(model.shape),
        "fill": model.fill,
        "record": model.record,
    }
    tensors = {k: v.contiguous().cpu() for k, v in model.network.state_dict().items()}
    with atomic_file(path) as stream:
        stream.write(save(tensors, metadata={METADATA_KEY: json.dumps(description)}))


def load_model(path: Path) -> Model:
    """Read a model file. Raises InputMissing, or BadData for a file that is no complete model."""
    if not path.is_file():
        raise InputMissing(f"{path}: no such weights file; check --model")
    try:
        with safe_open(path, framework="pt") as stored:
            description = json.loads((stored.metadata() or {})[METADATA_KEY])
            state = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        config = NetworkConfig(**description["network"])
        table = LabelTable.from_records(description["labels"])
        head = Head(table, description["head"])
        network = UNet(config)
        network.load_state_dict(state)
        shape = tuple(int(n) for n in description["shape"])
        return Model(network, head, shape, float(description["fill"]), description["record"])
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as problem:
        reason = str(problem).splitlines()[0]
        raise BadData(f"{path}: not a complete bids_synthseg model ({reason})") from problem
