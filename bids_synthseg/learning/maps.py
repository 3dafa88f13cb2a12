"""A label map ready for training, with what its classes mean to the model."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bids_synthseg.anatomy.labels import Label, LabelTable
from bids_synthseg.synthesis.recipe import SourceMap

BRAIN_TABLE = LabelTable(
    (
        Label(0, "Background", "BG", "#000000", 0, "background", "midline", 0, 0),
        Label(1, "Brain", "BRAIN", "#cd3e4e", 1, "brain", "midline", 1, 1),
    )
)
"""What a locator tells apart."""


@dataclass(frozen=True)
class TrainingMap:
    """`sets` (K + head classes, C) bool: which model channels each class may be; `age_weeks` after
    conception, NaN where unknown; `features` (F,) float32: features.FEATURES, NaN where unknown;
    `split`: what participants.tsv says in its column of that name; `licence` of the data set."""

    name: str
    subject: str
    dataset: str
    source: SourceMap
    sets: np.ndarray
    age_weeks: float = float("nan")
    features: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    split: str = ""
    licence: str = ""


def of_brain(maps: Sequence[TrainingMap]) -> list[TrainingMap]:
    """The maps in terms of BRAIN_TABLE: brain is what cannot be background; "background or CSF"
    stays either."""
    return [
        replace(one, sets=np.stack([one.sets[:, 0], one.sets[:, 1:].any(axis=1)], axis=1))
        for one in maps
    ]
