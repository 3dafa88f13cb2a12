"""One step of the optimiser: draw, render, network, loss, gradient, average.

Everything random about a sample comes from (seed, step, number in the step), so a resumed run
sees the samples it would have seen, and a team of processes sees those that one would have seen.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from bids_synthseg.learning.config import TrainConfig
from bids_synthseg.learning.distributed import Team
from bids_synthseg.learning.loss import training_loss
from bids_synthseg.learning.maps import TrainingMap
from bids_synthseg.learning.states import State
from bids_synthseg.models.heads import Head
from bids_synthseg.models.inputs import network_input
from bids_synthseg.models.unet import Lattice, UNet
from bids_synthseg.synthesis.head import Donor, donor_of
from bids_synthseg.synthesis.recipe import draw, render, working_voxel


@dataclass(frozen=True)
class Material:
    """What samples are made of: `maps` on the device, the chance of each, heads to borrow."""

    maps: Sequence[TrainingMap]
    chances: np.ndarray
    donors: Sequence[Donor]
    head: Head


@dataclass(frozen=True)
class Sample:
    """`image` (1, channels, X, Y, Z) as the network sees it; `classes` (X, Y, Z) rows of `sets`."""

    image: torch.Tensor
    classes: torch.Tensor
    sets: np.ndarray


def donors_of(maps: Sequence[TrainingMap]) -> list[Donor]:
    """The heads that can be borrowed from these maps, sharing their volumes."""
    sources = [one.source for one in maps]
    found = (donor_of(s.classes, s.surrounding, s.voxel_mm, s.centre, s.extent_mm) for s in sources)
    return [donor for donor in found if donor is not None]


def make_sample(material: Material, config: TrainConfig, step: int, number: int) -> Sample:
    """Sample `number` of a step."""
    rng = np.random.default_rng([config.seed, step, number])
    chosen = material.maps[rng.choice(len(material.maps), p=material.chances)]
    voxel_mm = working_voxel(chosen.source, config.shape, config.fill, config.voxel_mm)
    drawn = draw(
        chosen.source,
        config.synthesis,
        config.shape,
        voxel_mm,
        rng,
        config.pool,
        material.donors,
        chosen.age_weeks,
    )
    unsure = bool(chosen.sets[0].sum() > 1)
    image, classes = render(chosen.source, drawn, material.donors, certain_air=unsure)
    return Sample(network_input(image, config.network.intensity), classes, chosen.sets)


def optimiser_of(network: UNet, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam, with a rate of its own for the finest level: see `TrainConfig.finest_rate`."""
    finest, rest = network.by_level()
    return torch.optim.Adam(
        [{"params": finest, "scale": config.finest_rate}, {"params": rest, "scale": 1.0}],
        lr=config.rate,
    )


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then constant or half a cosine down to `rate_end` of the rate."""
    if step < config.warm_up:
        return config.rate * (step + 1) / config.warm_up
    if config.schedule == "constant":
        return config.rate
    progress = min(1.0, (step - config.warm_up) / max(1, config.steps - config.warm_up))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.rate * (config.rate_end + (1 - config.rate_end) * cosine)


def train_step(
    state: State, forward: nn.Module, material: Material, config: TrainConfig, team: Team
) -> tuple[torch.Tensor, float]:
    """One step; returns the loss of this process's samples, and the seconds spent making them.

    `forward` gives the pyramid of the state's network, as the team runs it. Where the gradient is
    not finite the weights stay as they are.
    """
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(config, state.step) * group["scale"]
    state.optimiser.zero_grad(set_to_none=True)
    total, making = torch.zeros((), device=team.device), 0.0
    for turn in range(config.accumulate):
        first = (turn * team.size + team.rank) * config.batch
        started = time.monotonic()
        samples = [
            make_sample(material, config, state.step, first + k) for k in range(config.batch)
        ]
        making += time.monotonic() - started
        loss = _loss(forward, samples, material.head, config, state.step) / config.accumulate
        loss.backward()
        total += loss.detach()
    norm = nn.utils.clip_grad_norm_(state.network.parameters(), config.clip)
    if torch.isfinite(norm):
        state.optimiser.step()
    state.step += 1
    decay = min(config.average, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        pairs = zip(state.average.parameters(), state.network.parameters(), strict=True)
        for mean, new in pairs:
            mean.lerp_(new, 1 - decay)
    return total, making


def uses_bf16(config: TrainConfig, device: torch.device) -> bool:
    """Whether the network runs in bf16: "auto" does where the hardware multiplies it natively."""
    if config.precision != "auto":
        return config.precision == "bf16"
    if device.type != "cpu":
        return device.type == "cuda"
    # Tiles of AMX; elsewhere on CPUs bf16 gains little or nothing.
    known = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(known and known())


def _loss(
    forward: nn.Module, samples: Sequence[Sample], head: Head, config: TrainConfig, step: int
) -> torch.Tensor:
    images = torch.cat([sample.image for sample in samples])
    # On a fine grid neighbouring voxels say much the same: a lattice of them tells the loss enough.
    corner = np.random.default_rng([config.seed, step]).integers(config.loss_step, size=2)
    lattice = Lattice(config.loss_step, int(corner[0]), int(corner[1]))
    with torch.autocast(
        images.device.type, torch.bfloat16, enabled=uses_bf16(config, images.device)
    ):
        pyramid = forward(images, lattice)
    losses = [
        training_loss(
            [logits[k : k + 1] for logits in pyramid],
            sample.classes,
            sample.sets,
            head,
            config.loss,
            step,
            lattice,
        )
        for k, sample in enumerate(samples)
    ]
    return torch.stack(losses).mean()
