"""Tables as BIDS wants them: tab-separated, described by a JSON file, "n/a" for what is missing."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.storage import write_json, write_text

TISSUES = ("GM", "WM", "CSF")
_TISSUE_OF_MAPPING = {1: "GM", 2: "WM", 3: "CSF", 8: "GM", 9: "GM", 10: "WM", 11: "GM"}

_ESCAPED = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})

VOLUME_COLUMNS = {
    "index": {"Description": "Label in the segmentation"},
    "name": {"Description": "FreeSurfer name of the structure"},
    "volume_mm3": {"Description": "Volume of all voxels with this label", "Units": "mm^3"},
    "volume_soft_mm3": {
        "Description": "Sum of the label's posterior probability over all voxels, times the "
        "volume of a voxel: less sensitive to voxel size than volume_mm3",
        "Units": "mm^3",
    },
}


def format_table(columns: Mapping[str, Sequence]) -> str:
    """Tab-separated text with a header line; numbers keep four decimals at most.

    Tabs and line breaks within a cell, as in odd names, are escaped. Raises ValueError where
    columns differ in length.
    """
    lines = ["\t".join(columns)]
    for row in zip(*columns.values(), strict=True):
        lines.append("\t".join(map(_cell, row)))
    return "\n".join(lines) + "\n"


def write_table(path: Path, columns: Mapping[str, Sequence], about: Mapping[str, dict]) -> None:
    """Write `path` (.tsv), then beside it the JSON that describes each column.

    Raises ValueError where a column lacks its description or one describes no column.
    """
    if set(about) != set(columns):
        raise ValueError(f"columns {sorted(columns)} but descriptions of {sorted(about)}")
    write_text(path, format_table(columns))
    write_json(path.with_suffix(".json"), {name: about[name] for name in columns})


def volume_columns(
    table: LabelTable, hard_mm3: Sequence[float], soft_mm3: Sequence[float]
) -> dict[str, list]:
    """One row per label but background, in the order of the table; the volumes are (C,)."""
    rows = list(zip(table.rows, hard_mm3, soft_mm3, strict=True))[1:]
    return {
        "index": [label.index for label, _, _ in rows],
        "name": [label.name for label, _, _ in rows],
        "volume_mm3": [hard for _, hard, _ in rows],
        "volume_soft_mm3": [soft for _, _, soft in rows],
    }


def label_table_text(table: LabelTable) -> str:
    """The content of a BIDS `dseg.tsv`; `mapping` is the BIDS tissue number."""
    columns = ("index", "name", "abbreviation", "color", "mapping")
    return format_table({name: [getattr(row, name) for row in table.rows] for name in columns})


def tissue_channels(table: LabelTable) -> dict[str, np.ndarray]:
    """GM, WM, CSF -> channels of the labels that belong to it.

    Brain stem and cerebellar white matter count as white matter, as NiBabies has it.
    """

    def tissue(mapping: int, structure: str) -> str | None:
        return "WM" if "white matter" in structure else _TISSUE_OF_MAPPING.get(mapping)

    found = [tissue(row.mapping, row.structure) for row in table.rows]
    return {name: np.flatnonzero([name == one for one in found]) for name in TISSUES}


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float | np.floating) and not math.isfinite(value)):
        return "n/a"
    if isinstance(value, float | np.floating):
        # Adding zero turns -0.0, which rounding may give, into 0.0.
        return f"{round(float(value), 4) + 0.0:.4f}".rstrip("0").rstrip(".")
    return str(value).translate(_ESCAPED) or "n/a"
