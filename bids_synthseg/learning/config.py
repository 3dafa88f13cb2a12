"""What a training run is told: plain fields with units, from a TOML file.

An unknown key is an error that names it.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from bids_synthseg.errors import BadData, InputMissing
from bids_synthseg.models.heads import KINDS
from bids_synthseg.models.unet import NetworkConfig
from bids_synthseg.synthesis.recipe import SynthesisConfig

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

Config = TypeVar("Config")


@dataclass(frozen=True)
class TrainConfig:
    """One run.

    `shape`: working grid in voxels; `fill`: fraction of it that the brain's box takes; `pool`:
    samples are painted on a grid finer by this factor; `target`: "labels", or "brain" for a
    locator; `head`: kind of models.heads.Head; `batch`: samples per step; `rate`: highest learning
    rate of Adam, reached after `warm_up` steps; `rate_end`: the final one as a fraction of it;
    `finest_rate`: multiple of the rate for the finest level (a level that was grown starts from
    zero, and Adam's steps are no longer than the rate: at 1 it sleeps for hundreds of steps);
    `clip`: largest norm of the gradient; `average`: decay of the exponential moving average of the
    weights; `loss_step`: the loss looks at every so many voxels of the first two axes, at places
    that change; `start_from`: a model file to start from, of the same architecture or without its
    finest level (then trained on a grid half of `shape`); `weights`:
    relative share of each data set by folder name (1 where absent).
    """

    shape: tuple[int, int, int] = (80, 112, 96)
    fill: float = 0.92
    pool: int = 1
    target: str = "labels"
    head: str = "sided"
    steps: int = 10_000
    batch: int = 2
    rate: float = 1e-3
    rate_end: float = 0.02
    finest_rate: float = 1.0
    warm_up: int = 100
    clip: float = 1.0
    average: float = 0.998
    seed: int = 1
    loss_step: int = 1
    start_from: str = ""
    checkpoint_minutes: float = 3.0
    validate_minutes: float = 10.0
    weights: dict[str, float] = field(default_factory=dict)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)

    def __post_init__(self) -> None:
        if self.target not in ("labels", "brain"):
            raise ValueError(f"target must be 'labels' or 'brain', not {self.target!r}")
        if self.head not in KINDS:
            raise ValueError(f"head must be one of {KINDS}, not {self.head!r}")
        if min(self.steps, self.batch, self.pool, self.loss_step) < 1 or not 0 < self.fill <= 1:
            raise ValueError("steps, batch, pool and loss_step must be at least 1, fill in 0..1")
        if min(self.rate, self.finest_rate, self.clip) <= 0 or not 0 <= self.average < 1:
            raise ValueError(
                "rate, finest_rate and clip must be above 0, average at least 0 and below 1"
            )
        if len(self.shape) != 3 or any(n < 1 or n % self.network.divisor for n in self.shape):
            raise ValueError(
                f"shape {list(self.shape)}: each of 3 sides must be a multiple of "
                f"{self.network.divisor} for {len(self.network.features)} levels"
            )


def read_config(path: Path) -> TrainConfig:
    """A TrainConfig from a TOML file. Raises InputMissing, or BadData naming file and key."""
    if not path.is_file():
        raise InputMissing(f"{path}: no such configuration file; check --config")
    try:
        return build(TrainConfig, tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as problem:
        raise BadData(f"{path}: {problem}") from problem


def build(kind: type[Config], values: dict[str, Any], where: str = "") -> Config:
    """A configuration dataclass from nested dictionaries; keys left out take their defaults.

    Raises ValueError naming a key that is unknown or whose value is of another type.
    """
    hints = get_type_hints(kind)
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    arguments = {}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"unknown key {where + key!r}; known are {', '.join(sorted(known))}")
        if is_dataclass(hints[key]) and isinstance(value, dict):
            arguments[key] = build(hints[key], value, f"{where}{key}.")
        elif _fits(value, hints[key]):
            arguments[key] = tuple(value) if isinstance(value, list) else value
        else:
            named = getattr(hints[key], "__name__", "value")
            wanted = "table of keys" if is_dataclass(hints[key]) else _WORDS.get(named, named)
            raise ValueError(f"key {where + key!r}: {value!r} is no {wanted}")
    return kind(**arguments)


_WORDS = {
    "int": "whole number",
    "float": "number",
    "str": "text in quotes",
    "tuple": "list of whole numbers",
    "dict": "table of numbers",
}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a TOML value may stand for a field; tuples are lists there, 1 is a float as well."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(one, inner[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(one, inner[1]) for one in value.values())
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)
