"""The label table: which structures a segmentation holds, and how their numbers relate.

Left and right are paired by id (`mirror`), never by position. Ids and names are FreeSurfer's
(FreeSurferColorLUT); `mapping` is the BIDS tissue number of a discrete segmentation
(0 background, 2 white matter, 3 CSF, 8 cortical, 9 subcortical grey matter, 10 brain stem,
11 cerebellum).
"""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path

import numpy as np

from bids_synthseg.errors import BadData
from bids_synthseg.tsv import read_rows

CSF_ID = 24
"""Label of the fluid around the brain."""

FLUID = 3
"""BIDS tissue number of fluid, that in ventricles included."""

SIDES = ("left", "right", "midline")


@dataclass(frozen=True)
class Label:
    """One row: `mirror` is the id on the other side, `aseg` the id written to desc-aseg."""

    index: int
    name: str
    abbreviation: str
    color: str
    mapping: int
    structure: str
    side: str
    mirror: int
    aseg: int


@dataclass(frozen=True)
class LabelTable:
    """Labels in channel order; row 0 is background.

    Raises ValueError where ids repeat, a mirror id is missing or mirroring is no involution.
    """

    rows: tuple[Label, ...]

    def __post_init__(self) -> None:
        by_id = {row.index: row for row in self.rows}
        if not self.rows or self.rows[0].index != 0:
            raise ValueError("the first label must be background, id 0")
        if len(by_id) != len(self.rows):
            raise ValueError("label ids must be unique")
        for row in self.rows:
            twin = by_id.get(row.mirror)
            if twin is None or twin.mirror != row.index or twin.structure != row.structure:
                raise ValueError(f"label {row.index}: its mirror {row.mirror} does not answer")
            if row.side not in SIDES or (row.side == "midline") != (row.mirror == row.index):
                raise ValueError(f"label {row.index}: side {row.side!r} does not fit its mirror")

    @staticmethod
    @lru_cache(maxsize=1)
    def default() -> "LabelTable":
        """The shipped table: aseg ids, and the corpus callosum by side (1004, 2004)."""
        return LabelTable.from_tsv(files("bids_synthseg") / "data" / "labels.tsv")

    @staticmethod
    def from_tsv(path: Path) -> "LabelTable":
        """Read a table with the columns of `Label`; raises BadData naming the column missing."""
        records = read_rows(path, *Label.__dataclass_fields__)
        try:
            return LabelTable.from_records(records)
        except ValueError as problem:
            raise BadData(f"{path}: not a label table ({problem})") from problem

    @staticmethod
    def from_records(records: list[dict]) -> "LabelTable":
        """The table from dictionaries, as `records()` gives them."""
        return LabelTable(tuple(_label(record) for record in records))

    def records(self) -> list[dict]:
        """One plain dictionary per row, in channel order."""
        return [vars(row).copy() for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def ids(self) -> np.ndarray:
        """(C,) label id of every channel."""
        return np.array([row.index for row in self.rows], dtype=np.int32)

    @cached_property
    def _channels(self) -> dict[int, int]:
        return {row.index: channel for channel, row in enumerate(self.rows)}

    def channel_of(self, index: int) -> int:
        """Channel of a label id; KeyError where the table has none."""
        return self._channels[index]

    @cached_property
    def mirror_channels(self) -> np.ndarray:
        """(C,) channel of each label's twin on the other side."""
        return np.array([self.channel_of(row.mirror) for row in self.rows])

    @cached_property
    def structures(self) -> tuple[str, ...]:
        """Structures without side, in order of first appearance."""
        return tuple(dict.fromkeys(row.structure for row in self.rows))

    def fold(self, column: str = "aseg") -> tuple["LabelTable", np.ndarray]:
        """The table after every label has become the one that `column` names.

        Returns the folded table and, (C,), the folded channel of every channel of this table.
        """
        targets = [getattr(row, column) for row in self.rows]
        kept = [row for row in self.rows if row.index in set(targets)]
        folded = LabelTable(tuple(replace(row, aseg=row.index) for row in kept))
        return folded, np.array([folded.channel_of(target) for target in targets])


def _label(record: dict) -> Label:
    words = ("name", "abbreviation", "color", "structure", "side")
    try:
        numbers = {key: int(record[key]) for key in ("index", "mapping", "mirror", "aseg")}
        texts = {key: str(record[key]) for key in words}
    except (KeyError, TypeError, OverflowError) as problem:
        raise ValueError(f"a label that is not described ({problem!r})") from problem
    if unfit := [key for key, number in numbers.items() if not 0 <= number < 2**31]:
        raise ValueError(f"{unfit[0]} {numbers[unfit[0]]:.3g} is no number of a label")
    return Label(**numbers, **texts)
