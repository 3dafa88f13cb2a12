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


@dataclass(frozen=True)
class SourceLabel:
    """`labels`: the model labels that this source label may be."""

    index: int
    name: str
    labels: frozenset[int]


def read_source_labels(path: Path, table: LabelTable) -> tuple[SourceLabel, ...]:
    """The labels of `dseg.tsv`, background first.

    Raises InputMissing where the file is absent, BadData where a label's meaning is unknown.
    """
    if not path.is_file():
        raise InputMissing(f"{path}: label table missing; write one with columns index and name")
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    try:
        named = {int(row["index"]): row["name"] for row in rows}
        own = {int(row["index"]): row["model_labels"] for row in rows if "model_labels" in row}
    except (KeyError, ValueError, TypeError) as problem:
        raise BadData(f"{path}: needs whole-number column index and column name") from problem
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
        ids = frozenset(int(word) for word in meaning[index].split())
        if not ids or not ids <= known:
            raise BadData(f"{path}: label {index}: model_labels {meaning[index]!r} not in the model")
        labels.append(SourceLabel(index, named[index], ids))
    return tuple(labels)


def _known_scheme(named: dict[int, str]) -> dict[int, str] | None:
    for scheme in sorted(
        (files("bids_synthseg") / "data" / "schemes").iterdir(), key=lambda file: file.name
    ):
        with scheme.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        known = {int(row["index"]): row for row in rows}
        if all(i in known and known[i]["name"] == name for i, name in named.items()):
            return {index: known[index]["labels"] for index in named}
    return None


def twin_classes(labels: tuple[SourceLabel, ...]) -> np.ndarray:
    """(K,) class of the other side, paired by Left/Right in the names; itself where there is none."""
    place = {label.name: k for k, label in enumerate(labels)}
    swap = {"Left": "Right", "Right": "Left", "left": "right", "right": "left", "lh": "rh", "rh": "lh"}
    twins = []
    for k, label in enumerate(labels):
        other = "-".join(swap.get(word, word) for word in label.name.split("-"))
        twins.append(place.get(other, k))
    return np.array(twins)


def tissue_classes(labels: tuple[SourceLabel, ...], table: LabelTable) -> np.ndarray:
    """(K,) tissue (TISSUE_OF) of each class, from the BIDS tissue of its first model label."""
    by_mapping = {0: "other", 2: "white", 3: "csf", 8: "grey", 9: "grey", 10: "white", 11: "grey"}
    white = {"cerebellar white matter", "pallidum", "ventral diencephalon"}
    tissues = []
    for label in labels:
        row = table.rows[table.channel_of(min(label.labels))]
        tissue = "white" if row.structure in white else by_mapping.get(row.mapping, "other")
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
