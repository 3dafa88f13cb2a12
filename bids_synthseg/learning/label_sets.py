"""What the labels of a data set mean to the model: sets of model labels (Fidon et al. 2021).

A source label such as "fetal white matter" stands for several model labels; training then asks
for their summed probability and nothing more. Schemes for common sources lie in
`data/schemes/*.tsv`; a data set's own `dseg.tsv` may carry a column `model_labels` instead.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from bids_synthseg.anatomy.labels import CSF_ID, LabelTable
from bids_synthseg.errors import BadData, InputMissing
from bids_synthseg.synthesis.contrast import TISSUE_OF
from bids_synthseg.synthesis.priors import COMPONENT_OF
from bids_synthseg.synthesis.shape import ROLE_OF
from bids_synthseg.tsv import read_rows

VENTRICLE_IDS = {4, 43}
"""Model labels of the lateral ventricles."""

BRAIN_FRACTION = 1 / 500
"""A structure counts as labelled in a map if it takes this fraction of the labelled voxels."""

TISSUE_OF_MAPPING = {2: "white", 3: "csf", 8: "grey", 9: "grey", 10: "white", 11: "grey"}
"""BIDS tissue number of a model label -> name in TISSUE_OF."""

WHITE_STRUCTURES = {"cerebellar white matter", "pallidum", "ventral diencephalon"}
"""White on T1w other than their BIDS tissue number tells."""

STRUCTURES_OF_ROLE = {
    "ventricle": ("lateral ventricle", {"third ventricle", "fourth ventricle"}),
    "cortex": ("cerebral cortex", {"hippocampus", "amygdala"}),
    "white": ("cerebral white matter", {"corpus callosum"}),
    "csf": ("cerebrospinal fluid", {"third ventricle", "fourth ventricle"}),
}
"""Role in shape.ROLE_OF -> the structure that a class must hold, and those that it may hold too."""

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

    A column `model_labels` holds ids or names of model labels, or of structures, which mean both
    sides; separated by blanks, commas or semicolons. Raises InputMissing where the file is absent,
    BadData where it is no such table or a label's meaning is unknown.
    """
    if not path.is_file():
        raise InputMissing(f"{path}: label table missing; write one with columns index and name")
    rows = read_rows(path, "index", "name")
    try:
        named = {int(row["index"]): row["name"] for row in rows}
    except ValueError as problem:
        raise BadData(
            f"{path}: not a label table ({problem}); write index as whole numbers"
        ) from problem
    if len(named) < len(rows) or min(named, default=0) < 0:
        raise BadData(f"{path}: an index is negative or stands twice; give each label its own")
    own = {int(row["index"]): row["model_labels"] for row in rows if "model_labels" in row}
    meaning = own or _known_scheme(named)
    if not meaning:
        raise BadData(
            f"{path}: labels of no known scheme; add a column model_labels "
            "with the model label ids that each label may be"
        )
    named.setdefault(0, "Background")
    meaning.setdefault(0, "0")
    labels = []
    for index in sorted(named):
        ids = _model_labels(meaning[index], table)
        if not ids:
            raise BadData(
                f"{path}: label {index}: model_labels {meaning[index]!r} are not labels of the "
                f"model; give some of the ids {' '.join(map(str, table.ids))}, or their names"
            )
        labels.append(SourceLabel(index, named[index], ids))
    return (*labels, *_absent_twins(labels, table))


def _absent_twins(labels: Sequence[SourceLabel], table: LabelTable) -> list[SourceLabel]:
    """Labels of no voxel that answer, on the other side, those that may also be background.

    A remainder such as "vessel or basal forebrain, left" need not occur on both sides of a data
    set; a structure that lacks its other side is a mistake in the table, for `twin_classes` to
    tell.
    """
    mirror = _mirror_ids(table)
    meanings = {label.labels for label in labels}
    twins: list[SourceLabel] = []
    for label in labels:
        mirrored = frozenset(mirror[i] for i in label.labels)
        if 0 in label.labels and mirrored not in meanings:
            twins.append(SourceLabel(-1 - len(twins), f"{label.name} (other side)", mirrored))
    return twins


def _mirror_ids(table: LabelTable) -> dict[int, int]:
    return dict(zip(table.ids.tolist(), table.ids[table.mirror_channels].tolist(), strict=True))


def _model_labels(text: str, table: LabelTable) -> frozenset[int]:
    """The model labels that a cell names; none where a word of it is unknown.

    Capitals do not matter, and blanks, hyphens and underscores in a name are the same.
    """
    known: dict[str, set[int]] = {}
    for row in table.rows:
        for name in (str(row.index), _plain(row.name), _plain(row.structure)):
            known.setdefault(name, set()).add(row.index)
    found: set[int] = set()
    for part in re.split("[,;]", text):
        # A name may hold blanks, and blanks may part names.
        words = [part] if _plain(part) in known else part.split()
        if not words or not all(_plain(word) in known for word in words):
            return frozenset()
        found.update(*(known[_plain(word)] for word in words))
    return frozenset(found)


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.strip().lower()))


def _known_scheme(named: dict[int, str]) -> dict[int, str] | None:
    for scheme in sorted(
        (files("bids_synthseg") / "data" / "schemes").iterdir(), key=lambda file: file.name
    ):
        known = {int(row["index"]): row for row in read_rows(scheme)}
        if named and all(i in known and known[i]["name"] == name for i, name in named.items()):
            return {index: known[index]["labels"] for index in named}
    return None


def twin_classes(labels: tuple[SourceLabel, ...], table: LabelTable) -> np.ndarray:
    """(K,) class of the other side, an involution; itself for a class without sides.

    Classes are paired by Left and Right in their names, else by what they mean: one whose model
    labels are the mirrored ones. Raises ValueError for a class of one side whose twin is not there,
    because a mirrored sample would then teach the wrong side.
    """
    mirror = _mirror_ids(table)
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


def class_labels(labels: tuple[SourceLabel, ...]) -> np.ndarray:
    """(K,) model label, or component of one (priors.COMPONENT_OF), that stands for each class; 0
    for background and for what may be background."""
    standing = []
    for label in labels:
        own = {label.index, COMPONENT_OF.get(label.index, label.index)}
        if 0 in label.labels:
            standing.append(0)
        elif own & label.labels:
            standing.append(label.index)
        elif CSF_ID in label.labels and not VENTRICLE_IDS & label.labels:
            standing.append(CSF_ID)
        else:
            standing.append(min(label.labels))
    return np.array(standing)


def shape_roles(labels: tuple[SourceLabel, ...], table: LabelTable) -> np.ndarray:
    """(K,) int8 role (shape.ROLE_OF) of each class, "other" where it holds much else."""
    roles = np.full(len(labels), ROLE_OF["other"], dtype=np.int8)
    for k, label in enumerate(labels):
        structures = {table.rows[table.channel_of(i)].structure for i in label.labels}
        for role, (needed, allowed) in STRUCTURES_OF_ROLE.items():
            if needed in structures and structures <= {needed} | allowed:
                roles[k] = ROLE_OF[role]
    return roles


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
