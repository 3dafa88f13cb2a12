"""The model card of a training run: what went in, how it was made, how well it does, its limits."""

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from bids_synthseg import __version__
from bids_synthseg.learning.config import TrainConfig
from bids_synthseg.learning.maps import TrainingMap
from bids_synthseg.toml import toml_text

NO_LICENCE = "not stated"


@dataclass(frozen=True)
class DataSet:
    """Numbers of `maps` and `subjects`; `licence` and `ages` in words."""

    name: str
    maps: int
    subjects: int
    licence: str
    ages: str


def data_sets(maps: Sequence[TrainingMap]) -> tuple[DataSet, ...]:
    """The data sets of some maps, by name."""
    members: dict[str, list[TrainingMap]] = {}
    for one in maps:
        members.setdefault(one.dataset, []).append(one)
    return tuple(
        DataSet(
            name,
            len(own),
            len({one.subject for one in own}),
            own[0].licence or NO_LICENCE,
            _ages([one.age_weeks for one in own]),
        )
        for name, own in sorted(members.items())
    )


def versions() -> dict[str, str]:
    """Of what decides how a run turns out."""
    return {
        "bids_synthseg": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "Python": platform.python_version(),
    }


@dataclass(frozen=True)
class RunRecord:
    """What a card tells. `held_out`: lines that say how validation was kept apart; `preset`: what
    the configuration was read from; `steps`, `minutes`: at the checkpoint that is kept; `judged`:
    lines of its validation table; `checksum`: SHA-256 of the model file."""

    name: str
    training: Sequence[DataSet]
    validation: Sequence[DataSet]
    held_out: Sequence[str]
    preset: str
    config: TrainConfig
    steps: int
    device: str
    minutes: float
    judged: Sequence[str]
    checksum: str
    versions: Mapping[str, str] = field(default_factory=versions)


def model_card(record: RunRecord) -> str:
    """The card as Markdown."""
    preset = Path(record.preset).name
    made_with = ", ".join(f"{name} {number}" for name, number in record.versions.items())
    sections = [
        f"# Model card: {_plain(record.name)}",
        f"`model.safetensors`, SHA-256 `{record.checksum}`",
        "**Intended use.** Research on T1w and T2w brain MRI. Not a medical device; not for "
        "diagnosis or treatment.",
        "## Training data",
        _sources(record.training),
        "The weights derive from these label maps; use them under terms that fit those above.",
        "## Validation",
        _sources(record.validation) if record.validation else "Nothing was held out.",
        "\n".join(f"* {line}" for line in record.held_out),
        "\n".join(["Dice, left and right averaged:", "", *record.judged]) if record.judged else "",
        "## Training",
        f"Configuration {preset or 'without a file: the defaults'}; {record.steps} of "
        f"{record.config.steps} steps in {record.minutes:.1f} minutes on {record.device}. "
        f"{made_with}.",
        "## Known limits",
        "\n".join(f"* {limit}" for limit in _limits(record)),
        "## Configuration",
        f"```toml\n{toml_of(record.config)}```",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def toml_of(config: TrainConfig) -> str:
    """A configuration as TOML that `read_config` reads back to an equal one."""
    return toml_text(asdict(config))


def _limits(record: RunRecord) -> list[str]:
    ages = "; ".join(dict.fromkeys(one.ages for one in record.training))
    limits = [
        f"Seen in training: {ages}. Other ages and pathology that the maps do not show are "
        "untested.",
        "Trained on painted images; real scans differ in ways that the generator does not know.",
    ]
    if record.judged:
        limits.append(
            "The validation scores chose the checkpoint: expect a little less on other data. They "
            "are taken on the working grid with the brain's place known, not on native scans."
        )
        if any("*" in line.replace("**", "") for line in record.judged):
            limits.append(
                f"Structures marked * have a Dice below {record.config.floor:g}: do not use them."
            )
    else:
        limits.append("No score on held-out data: check the model on your own before using it.")
    if record.steps < record.config.steps:
        limits.append(
            f"The checkpoint is of step {record.steps}, before the last of its schedule "
            f"({record.config.steps})."
        )
    return limits


def _sources(sets: Sequence[DataSet]) -> str:
    rows = ["| data set | maps | subjects | ages | licence |", "|---|--:|--:|---|---|"]
    for one in sets:
        cells = (one.name, str(one.maps), str(one.subjects), one.ages, one.licence)
        rows.append(f"| {' | '.join(map(_plain, cells))} |")
    return "\n".join(rows)


def _plain(text: str) -> str:
    """Text of others that cannot break a table or a heading."""
    return " ".join(text.split()).replace("|", "\\|")


def _ages(weeks: Sequence[float]) -> str:
    """Ages after conception in words."""
    known = sorted(age for age in weeks if not math.isnan(age))
    missing = len(weeks) - len(known)
    if not known:
        return "age not given"
    span = dict.fromkeys(f"{age:.0f}" for age in (known[0], known[-1]))
    words = f"{' to '.join(span)} weeks after conception"
    return f"{words}, {missing} not given" if missing else words
