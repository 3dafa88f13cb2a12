"""Where a run begins: fresh weights, those of another model, or a coarse stage that grows.

For its first `coarse_steps` a run trains the network without its finest level, or without its stem,
on a grid half as fine, where steps are cheap; that is then grown onto the same weights, and so is
evidence.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from bids_synthseg.errors import BadData, UsageProblem
from bids_synthseg.learning.config import TrainConfig
from bids_synthseg.learning.states import State
from bids_synthseg.learning.step import optimiser_of
from bids_synthseg.learning.transfer import freeze, start_network
from bids_synthseg.models.checkpoint import Model, load_model, shipped_folder
from bids_synthseg.models.growth import add_evidence, add_stem, grow
from bids_synthseg.models.heads import Head
from bids_synthseg.models.unet import UNet

SHIPPED = "shipped"
"""`init_from` of the weights that come with this version."""


def stage_of(config: TrainConfig, step: int) -> TrainConfig:
    """The configuration that holds at a step: without the finest level at first."""
    if step >= config.coarse_steps:
        return config
    network = replace(config.network, stem=False, evidence=0)
    if not config.network.stem:
        network = replace(network, features=network.features[1:], convs=network.convs[1:])
    return replace(
        config,
        shape=tuple(n // 2 for n in config.shape),
        voxel_mm=2 * config.voxel_mm,
        pool=2 * config.pool,
        loss_step=max(1, config.loss_step // 2),
        network=network,
        finest_rate=1.0,
        coarse_steps=0,
    )


def settled(config: TrainConfig, head: Head) -> TrainConfig:
    """The configuration with the architecture and the grid of the model that it starts from, where
    `keep_network` asks for them. Raises BadData, InputMissing or UsageProblem for the model."""
    if not config.keep_network:
        return config
    model = _model(config.init_from)
    given = model.network.config
    network = replace(
        given,
        channels_out=head.n_channels,
        evidence=head.n_classes if given.evidence else 0,
    )
    return replace(
        config,
        network=network,
        shape=model.shape,
        fill=model.fill,
        voxel_mm=model.voxel_mm,
        coarse_steps=0,
        finest_rate=1.0,
        keep_network=False,
    )


def first_state(
    config: TrainConfig, head: Head, device: torch.device, progress: Callable[[str], None]
) -> State:
    """The state before the first step.

    Raises BadData where architecture and labels do not fit each other or the model to start from.
    """
    torch.manual_seed(config.seed)
    wanted = config.network
    if wanted.channels_out != head.n_channels:
        raise BadData(
            f"network.channels_out is {wanted.channels_out}; set it to {head.n_channels} for head "
            f"{head.kind!r} and {len(head.table)} labels"
        )
    if config.init_from:
        return _state(_transferred(config, head, progress), config, device)
    return _state(UNet(wanted), config, device)


def empty_state(config: TrainConfig, device: torch.device) -> State:
    """A state of the right architecture, for a checkpoint to be loaded into."""
    return _state(UNet(config.network), config, device)


def grown_state(state: State, config: TrainConfig, device: torch.device) -> State:
    """The state of the coarse stage with what `config` has beyond it grown onto it.

    Adam's memory begins anew, and so does the comparison of checkpoints: Dice on a finer grid is
    another measure.
    """
    torch.manual_seed(config.seed)
    network, wanted = state.average, config.network
    if wanted.stem:
        network = add_stem(network)
    else:
        network = grow(network, wanted.features[0], wanted.convs[0])
    if wanted.evidence:
        network = add_evidence(network, wanted.evidence)
    fresh = _state(network, config, device)
    fresh.step = state.step
    return fresh


def _state(network: UNet, config: TrainConfig, device: torch.device) -> State:
    network = network.to(device)
    freeze(network, config.freeze)
    average = UNet(network.config).to(device)
    average.load_state_dict(network.state_dict())
    return State(network, average, optimiser_of(network, config))


def _transferred(config: TrainConfig, head: Head, progress: Callable[[str], None]) -> UNet:
    name, wanted = config.init_from, config.network
    model = _model(name)
    if config.freeze and len(model.network.config.features) < len(wanted.features):
        raise BadData(f"{name}: has fewer levels; new ones cannot be frozen: take out freeze")
    try:
        found = start_network(model, wanted, head)
    except ValueError as problem:
        raise BadData(f"{name}: {problem}") from problem
    progress(f"started from {name}: {found.line}")
    return found.network


def _model(name: str) -> Model:
    path = shipped_folder() / "segmentation.safetensors" if name == SHIPPED else Path(name)
    try:
        return load_model(path)
    except ModuleNotFoundError as problem:
        raise UsageProblem(f"{name}: to read models install {problem.name}") from problem
