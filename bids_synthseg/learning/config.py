"""What a training run is told: plain fields with units, from a TOML file.

An unknown key is an error that names it.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from bids_synthseg.errors import BadData, InputMissing
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

    `shape`: working grid; `fill`: fraction of it that the brain's box takes; `pool`: samples are
    painted on a grid finer by this factor; `weights`: relative share of each data set by folder
    name (1 where absent); `average`: decay of the exponential moving average of the weights;
    `rate_end`: final learning rate as a fraction of `rate`; `grow_from`: a coarser model to start
    from, whose grid is half of `shape`; `target`: "labels", or "brain" for a locator.
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
    warm_up: int = 100
    clip: float = 1.0
    average: float = 0.998
    seed: int = 1
    grow_from: str = ""
    checkpoint_minutes: float = 3.0
    validate_minutes: float = 10.0
    weights: dict[str, float] = field(default_factory=dict)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)

    def __post_init__(self) -> None:
        if self.target not in ("labels", "brain"):
            raise ValueError(f"target must be 'labels' or 'brain', not {self.target!r}")
        if any(n % self.network.divisor for n in self.shape):
            raise ValueError(
                f"shape {list(self.shape)}: every side must be a multiple of "
                f"{self.network.divisor} for {len(self.network.features)} levels"
            )


def read_config(path: Path) -> TrainConfig:
    """A TrainConfig from a TOML file. Raises InputMissing, or BadData naming file and key."""
    try:
        return build(TrainConfig, tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as problem:
        raise InputMissing(f"{path}: no such configuration file; check --config") from problem
    except (ValueError, TypeError) as problem:
        raise BadData(f"{path}: {problem}") from problem


def build(kind: type[Config], values: dict[str, Any], where: str = "") -> Config:
    """A configuration dataclass from nested dictionaries; ValueError names an unknown key."""
    hints = get_type_hints(kind)
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    arguments = {}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"unknown key {where + key!r}; known are {', '.join(sorted(known))}")
        if is_dataclass(hints[key]):
            value = build(hints[key], value, f"{where}{key}.")
        elif isinstance(value, list):
            value = tuple(value)
        arguments[key] = value
    return kind(**arguments)
