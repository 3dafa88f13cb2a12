"""What the labels of a data set mean to the model: sets of model labels (Fidon et al. 2021).

A source label such as "fetal white matter" stands for several model labels; training then asks
for their summed probability and nothing more. Schemes for common sources lie in
`data/schemes/*.tsv`; a data set's own `dseg.tsv` may carry a column `model_labels` instead.
"""

import csv
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.errors import BadData, InputMissing
from bids_synthseg.synthesis.contrast import TISSUE_OF

BRAIN_FRACTION = 1 / 500
"""A structure counts as labelled in a map if it takes this fraction of the labelled voxels."""

TISSUE_OF_MAPPING = {2: "white", 3: "csf", 8: "grey", 9: "grey", 10: "white", 11: "grey"}
"""BIDS tissue number of a model label -> name in TISSUE_OF."""

WHITE_STRUCTURES = {"cerebellar white matter", "pallidum", "ventral diencephalon"}
"""White on T1w other than their BIDS tissue number tells."""

OTHER_SIDE = {
    "Left": "Right",
    "Right": "Left",
    "left": "right",
    "right": "left",
    "lh": "rh",
    "rh": "lh",
}
"""Words of label names, split at hyphens, that change with the side."""


@dataclass(frozen=True)
class SourceLabel:
    """`labels`: the model labels that this source label may be."""

    index: int
    name: str
    labels: frozenset[int]


def read_source_labels(path: Path, table: LabelTable) -> tuple[SourceLabel, ...]:
    """The labels of `dseg.tsv`, background first.

    A column `model_labels` holds the ids of model labels, separated by blanks. Raises InputMissing
    where the file is absent, BadData where it is no such table or a label's meaning is unknown.
    """
    if not path.is_file():
        raise InputMissing(f"{path}: label table missing; write one with columns index and name")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        named = {int(row["index"]): row["name"] or "" for row in rows}
    except (KeyError, ValueError, TypeError) as problem:
        raise BadData(
            f"{path}: not a label table; write columns index (whole numbers) and name, "
            "separated by tabs"
        ) from problem
    if len(named) < len(rows) or min(named, default=0) < 0:
        raise BadData(f"{path}: an index is negative or stands twice; give each label its own")
    own = {int(row["index"]): row["model_labels"] or "" for row in rows if "model_labels" in row}
    meaning = own or _known_scheme(named)
    if not meaning:
        raise BadData(
            f"{path}: labels of no known scheme; add a column model_labels "
            "with the model label ids that each label may be"
        )
    named.setdefault(0, "Background")
    meaning.setdefault(0, "0")
    known = set(table.ids.tolist())
    labels = []
    for index in sorted(named):
        words = meaning[index].split()
        ids = frozenset(int(word) for word in words if word.isdecimal())
        if len(ids) < len(set(words)) or not ids or not ids <= known:
            raise BadData(
                f"{path}: label {index}: model_labels {meaning[index]!r} are not ids of the model; "
                f"give some of {' '.join(map(str, sorted(known)))}"
            )
        labels.append(SourceLabel(index, named[index], ids))
    return tuple(labels)


def _known_scheme(named: dict[int, str]) -> dict[int, str] | None:
    for scheme in sorted(
        (files("bids_synthseg") / "data" / "schemes").iterdir(), key=lambda file: file.name
    ):
        with scheme.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        known = {int(row["index"]): row for row in rows}
        if named and all(i in known and known[i]["name"] == name for i, name in named.items()):
            return {index: known[index]["labels"] for index in named}
    return None


def twin_classes(labels: tuple[SourceLabel, ...], table: LabelTable) -> np.ndarray:
    """(K,) class of the other side, an involution; itself for a class without sides.

    Classes are paired by Left and Right in their names, else by what they mean: one whose model
    labels are the mirrored ones. Raises ValueError for a class of one side whose twin is not there,
    because a mirrored sample would then teach the wrong side.
    """
    mirror = dict(zip(table.ids.tolist(), table.ids[table.mirror_channels].tolist(), strict=True))
    twins = np.arange(len(labels))
    waiting = []
    names = {label.name: k for k, label in enumerate(labels)}
    for k, label in enumerate(labels):
        other = names.get("-".join(OTHER_SIDE.get(word, word) for word in label.name.split("-")), k)
        if other != k and names[label.name] == k:
            twins[k] = other
        elif label.labels != frozenset(mirror[i] for i in label.labels):
            waiting.append(k)
    while waiting:
        first = waiting.pop(0)
        wanted = frozenset(mirror[i] for i in labels[first].labels)
        other = next((k for k in waiting if labels[k].labels == wanted), None)
        if other is None:
            label = labels[first]
            raise ValueError(
                f"label {label.index} ({label.name}) lies on one side and no label on the other "
                "answers it; add the other side, or model_labels of both sides"
            )
        waiting.remove(other)
        twins[first], twins[other] = other, first
    return twins


def tissue_classes(labels: tuple[SourceLabel, ...], table: LabelTable) -> np.ndarray:
    """(K,) tissue (TISSUE_OF) of each class, from the BIDS tissue of its first model label."""
    tissues = []
    for label in labels:
        row = table.rows[table.channel_of(min(label.labels))]
        tissue = TISSUE_OF_MAPPING.get(row.mapping, "other")
        if row.structure in WHITE_STRUCTURES:
            tissue = "white"
        tissues.append(TISSUE_OF["background" if label.index == 0 else tissue])
    return np.array(tissues)


def target_sets(
    labels: tuple[SourceLabel, ...], voxels: np.ndarray, table: LabelTable
) -> np.ndarray:
    """(K, C) bool: the model channels each class may be in one map, given its `voxels` per class.

    Where a class is known by its own id, other labels of its set are dropped if the map shows that
    it tells them apart: vermis is no part of a cerebellar hemisphere in a map that labels both.
    """
    told_apart = {
        label.index
        for label, count in zip(labels, voxels, strict=True)
        if count > BRAIN_FRACTION * voxels[1:].sum() and label.index > 0
    }
    sets = np.zeros((len(labels), len(table)), dtype=bool)
    for k, label in enumerate(labels):
        kept = label.labels
        if label.index in label.labels:
            kept = {i for i in label.labels if i == label.index or i not in told_apart}
        sets[k, [table.channel_of(i) for i in kept]] = True
    return sets
