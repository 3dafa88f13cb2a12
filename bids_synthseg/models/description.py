"""What model files say about themselves, in words and numbers for people and programs."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bids_synthseg.models.checkpoint import load_model
from bids_synthseg.models.registry import card_of
from bids_synthseg.models.tasks import task_of
from bids_synthseg.storage import file_sha256

COLUMNS = ("name", "task", "parameters", "size_mib", "sha256", "steps")
NOT_RECORDED = "not recorded"


def facts(path: Path) -> dict[str, Any]:
    """All that a model file says, and where its card is; plain values, ready for TOML.

    `maps` counts the label maps of each data set; `record` holds what has no place of its own.
    Errors as `load_model`.
    """
    model = load_model(path)
    table, card = model.head.table, card_of(path)
    record = dict(model.record)
    maps = record.pop("maps", [])
    names = maps if isinstance(maps, list) else []
    datasets = Counter(str(name).partition("/")[0] for name in names)
    see = f"{NOT_RECORDED}; see the card" if card else NOT_RECORDED
    return {
        "name": path.stem,
        "task": task_of(model),
        "file": str(path),
        "card": str(card) if card else "none beside the file",
        "sha256": file_sha256(path),
        "size_mib": round(path.stat().st_size / 2**20, 2),
        "parameters": sum(values.numel() for values in model.network.parameters()),
        "steps": record.pop("steps", NOT_RECORDED),
        "version": record.pop("version", NOT_RECORDED),
        "terms": record.pop("terms", see),
        "scores": record.pop("scores", see),
        "network": asdict(model.network.config),
        "labels": {
            "head": model.head.kind,
            "number": len(table),
            "ids": table.ids.tolist(),
            "structures": list(table.structures),
        },
        "grid": {"shape": list(model.shape), "voxel_mm": model.voxel_mm, "fill": model.fill},
        "correct_bias": model.correct_bias,
        "maps": dict(sorted(datasets.items())),
        "config": record.pop("config", {}),
        **({"record": record} if record else {}),
    }


def overview(paths: Iterable[Path]) -> str:
    """A table of model files with a line of COLUMNS; columns are padded with blanks."""
    found = [facts(path) for path in paths]
    rows = [COLUMNS, *(tuple(str(one[key]) for key in COLUMNS) for one in found)]
    rows = [tuple(cell.replace(" ", "-") for cell in row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (zip(row, widths, strict=True) for row in rows)
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in one).rstrip() for one in lines)
