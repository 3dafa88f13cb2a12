"""What a training run is told: plain fields with units, from a TOML file.

An unknown key is an error that names it.
"""

import math
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from bids_synthseg.errors import BadData, InputMissing
from bids_synthseg.fields import MOST_STEPS, SHARE, build, check_ranges
from bids_synthseg.learning.loss import LossConfig
from bids_synthseg.learning.sampling import SamplingConfig
from bids_synthseg.learning.transfer import FREEZABLE
from bids_synthseg.models.heads import KINDS
from bids_synthseg.models.unet import NetworkConfig
from bids_synthseg.reading import is_there, read_toml
from bids_synthseg.synthesis.recipe import SynthesisConfig

MOST_VOXELS = 2**28
"""In one pass through the network, of a device: 64 grids of 160 voxels a side."""

SCHEDULES = ("cosine", "constant")
PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class TrainConfig:
    """One run.

    The grid: `shape` in voxels; `voxel_mm`: their side, or 0 where the brain decides: its box then
    takes `fill` of the grid; `pool`: samples are painted on a grid finer by this factor.

    The answer: `target`: "labels", or "brain" for a locator; `head`: kind of models.heads.Head.

    The steps: `steps` in all, of which the first `coarse_steps` on a grid half as fine, without the
    network's finest level or stem (learning.start); `batch`: samples per pass, on each device;
    `accumulate`: passes per step; `rate`: highest learning rate of Adam, reached after `warm_up`
    steps; `schedule`: "cosine" down to `rate_end` of the rate at the last of `steps`, or
    "constant"; `finest_rate`: multiple of the rate for the finest level (a level that was grown
    starts from zero, and Adam's steps are no longer than the rate: at 1 it sleeps for hundreds of
    steps); `clip`: largest norm of the gradient; `average`: decay of the exponential moving average
    of the weights; `loss_step`: the loss looks at every so many voxels of the first two axes, at
    places that change; `freeze`: parts of the network that stay as they are (learning.transfer);
    `precision`: "auto" is bf16 on a GPU and on CPUs with AMX, and fp32 elsewhere; `compile`: let
    torch.compile fuse the network.

    The rest: `seed` of everything random; `init_from`: a model file to start from, "shipped" for
    the weights that come with this version; `keep_network`: with its architecture and working grid,
    in one stage, whatever `network` says; `checkpoint_minutes`, `validate_minutes`: how often;
    `held_out`: share of the subjects kept for validation where no split is given; `floor`: Dice
    below which a structure counts as lost when checkpoints are compared.
    """

    shape: tuple[int, int, int] = (80, 112, 96)
    voxel_mm: float = 0.0
    fill: float = 0.92
    pool: int = 1
    target: str = "labels"
    head: str = "sided"
    steps: int = 10_000
    coarse_steps: int = 0
    batch: int = 2
    accumulate: int = 1
    rate: float = 1e-3
    rate_end: float = 0.02
    schedule: str = "cosine"
    finest_rate: float = 1.0
    warm_up: int = 100
    clip: float = 1.0
    average: float = 0.998
    loss_step: int = 1
    freeze: tuple[str, ...] = ()
    precision: str = "auto"
    compile: bool = False
    seed: int = 1
    init_from: str = ""
    keep_network: bool = False
    checkpoint_minutes: float = 3.0
    validate_minutes: float = 10.0
    held_out: float = 0.1
    floor: float = 0.2
    loss: LossConfig = field(default_factory=LossConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)

    def __post_init__(self) -> None:
        for name, allowed in (
            ("target", ("labels", "brain")),
            ("head", KINDS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, not {getattr(self, name)!r}")
        if self.coarse_steps and (self.coarse_steps < 0 or len(self.network.features) < 2):
            raise ValueError("coarse_steps: not negative, and 0 for a network of one level")
        if unknown := sorted(set(self.freeze) - set(FREEZABLE)):
            raise ValueError(f"freeze: {unknown[0]!r} is none of {', '.join(FREEZABLE)}")
        if self.keep_network and not self.init_from:
            raise ValueError("keep_network needs init_from: the model whose architecture it is")
        if self.freeze and self.coarse_steps:
            raise ValueError("freeze does not go with coarse_steps: a grown level must learn")
        counts = (self.steps, self.batch, self.accumulate, self.pool, self.loss_step)
        if min(counts) < 1 or not 0 < self.fill <= 1:
            raise ValueError(
                "steps, batch, accumulate, pool and loss_step must be at least 1, fill in 0..1"
            )
        if min(self.rate, self.finest_rate, self.clip) <= 0 or not 0 <= self.average < 1:
            raise ValueError(
                "rate, finest_rate and clip must be above 0, average at least 0 and below 1"
            )
        if not 0 <= self.held_out < 1 or self.voxel_mm < 0:
            raise ValueError("held_out must be at least 0 and below 1, voxel_mm not negative")
        if len(self.shape) != 3 or any(n < 1 or n % self.network.divisor for n in self.shape):
            raise ValueError(
                f"shape {list(self.shape)}: each of 3 sides must be a multiple of "
                f"{self.network.divisor} for {len(self.network.features)} levels"
            )
        check_ranges(self, _RANGES)
        if self.batch * math.prod(self.pool * n for n in self.shape) > MOST_VOXELS:
            raise ValueError(
                f"batch, shape and pool: {self.batch} times {list(self.shape)} is more than the "
                f"{MOST_VOXELS} voxels of a pass; lower one of them"
            )


_RANGES = {
    "shape": (1, 1024),
    "voxel_mm": (0, 100),
    "fill": SHARE,
    "pool": (1, 16),
    "steps": (1, MOST_STEPS),
    "coarse_steps": (0, MOST_STEPS),
    "batch": (1, 1024),
    "accumulate": (1, 1024),
    "rate": (0, 10),
    "rate_end": SHARE,
    "finest_rate": (0, 1e4),
    "warm_up": (0, MOST_STEPS),
    "clip": (0, 1e9),
    "average": SHARE,
    "loss_step": (1, 64),
    "seed": (0, 2**63 - 1),
    "checkpoint_minutes": (0, 1e12),
    "validate_minutes": (0, 1e12),
    "held_out": SHARE,
    "floor": SHARE,
}


def presets() -> tuple[str, ...]:
    """Names of the configurations that are shipped in data/presets."""
    found = (files("bids_synthseg") / "data" / "presets").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in found))


def read_config(source: str | Path) -> TrainConfig:
    """A TrainConfig from a TOML file or from the preset of that name.

    Raises InputMissing where neither exists, BadData naming file and key.
    """
    path = files("bids_synthseg") / "data" / "presets" / f"{source}.toml"
    if str(source) not in presets():
        path = Path(source)
    if not is_there(path):
        raise InputMissing(
            f"{source}: no such configuration file; give a TOML file, or one of the presets "
            f"{', '.join(presets())}"
        )
    try:
        return build(TrainConfig, read_toml(path))
    except ValueError as problem:
        raise BadData(f"{source}: {problem}") from problem
