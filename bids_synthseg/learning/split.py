"""Which maps validate: as a table says, as the data sets say, or a share that is held out.

A subject is never on both sides.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bids_synthseg.errors import BadData, InputMissing
from bids_synthseg.learning.maps import TrainingMap
from bids_synthseg.tsv import read_rows

TRAINING, VALIDATION, NEITHER = "training", "validation", "none"
MEANING = {
    "train": TRAINING,
    "training": TRAINING,
    "val": VALIDATION,
    "validation": VALIDATION,
    "test": NEITHER,
    "none": NEITHER,
}
"""Word in a column `split` -> side; "test" is kept from training and from the choice of weights."""

FEWEST_SUBJECTS = 5
"""A data set of fewer subjects holds none out: it needs them all."""


@dataclass(frozen=True)
class Split:
    """Maps to train on and to validate on; `lines` tell how they were told apart."""

    training: tuple[TrainingMap, ...]
    validation: tuple[TrainingMap, ...]
    lines: tuple[str, ...]


def split_maps(
    maps: Sequence[TrainingMap], table: Path | None = None, share: float = 0.1, seed: int = 1
) -> Split:
    """Split maps by subject.

    `table`: TSV with columns participant_id, split and, where names repeat, dataset; subjects that
    it does not name are trained on. Without it the column `split` of each data set's
    participants.tsv counts, and where there is none, `share` of its subjects is held out, at least
    one, chosen by a hash of seed and name, so that the order of the maps does not matter.

    Raises InputMissing or BadData for a table that is not there, names an unknown subject, an
    unknown side or nobody to validate on, and where nothing is left to train on.
    """
    datasets = list(dict.fromkeys(one.dataset for one in maps))
    if table is not None:
        side_of = _from_table(table, maps)
        lines = [f"split as {table} says"]
    else:
        side_of, lines = {}, []
        for name in datasets:
            sides, line = _of_data_set(name, [m for m in maps if m.dataset == name], share, seed)
            side_of |= sides
            lines.append(line)
    kept: dict[str, list[TrainingMap]] = {TRAINING: [], VALIDATION: [], NEITHER: []}
    for one in maps:
        kept[side_of.get((one.dataset, one.subject), TRAINING)].append(one)
    if not kept[TRAINING]:
        where = table or "the column split of participants.tsv"
        raise BadData(f"{where}: leaves no label map to train on; call some subjects 'training'")
    if table is not None and not kept[VALIDATION]:
        raise BadData(f"{table}: names no subject to validate on; call one 'validation'")
    return Split(tuple(kept[TRAINING]), tuple(kept[VALIDATION]), tuple(lines))


Sides = dict[tuple[str, str], str]
"""(data set, subject) -> side."""


def _from_table(path: Path, maps: Sequence[TrainingMap]) -> Sides:
    if not path.is_file():
        raise InputMissing(f"{path}: no such table; write columns participant_id and split")
    known = {(one.dataset, one.subject) for one in maps}
    sides: Sides = {}
    for row in read_rows(path, "participant_id", "split"):
        dataset, word = row.get("dataset", ""), row["split"]
        full = f"sub-{row['participant_id'].strip().removeprefix('sub-')}"
        found = {one for one in known if one[1] == full and dataset in ("", one[0])}
        if not found:
            who = f"{dataset}/{full}" if dataset else full
            raise BadData(f"{path}: no label map of {who}; correct or remove its row")
        for one in found:
            side = _side(word, f"{path}: {full}")
            if sides.setdefault(one, side) != side:
                raise BadData(f"{path}: {full} is on two sides; keep one of its rows")
    return sides


def _of_data_set(
    name: str, maps: Sequence[TrainingMap], share: float, seed: int
) -> tuple[Sides, str]:
    """The sides of one data set, and a line about them."""
    stated = {one.subject: one.split for one in maps if one.split}
    if stated:
        where = f"{name}/participants.tsv"
        sides = {(name, s): _side(word, f"{where}: {s}") for s, word in stated.items()}
        return sides, f"{name}: split as its participants.tsv says"
    subjects = sorted({one.subject for one in maps})
    if share == 0 or len(subjects) < FEWEST_SUBJECTS:
        why = "nothing is to be held out" if share == 0 else f"only {len(subjects)} subjects"
        return {}, f"{name}: all to train on, {why}"
    count = max(1, round(share * len(subjects)))

    def rank(subject: str) -> str:
        text = f"{seed}/{name}/{subject}".encode("utf-8", "backslashreplace")
        return hashlib.sha256(text).hexdigest()

    order = sorted(subjects, key=rank)
    held_out = sorted(order[:count])
    line = f"{name}: {count} of {len(subjects)} subjects held out: {', '.join(held_out)}"
    return {(name, subject): VALIDATION for subject in held_out}, line


def _side(word: str, where: str) -> str:
    side = MEANING.get(word.strip().lower())
    if side is None:
        raise BadData(f"{where}: split is {word!r}; write training, validation or test")
    return side
