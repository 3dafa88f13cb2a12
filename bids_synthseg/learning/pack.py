"""Label maps in one file that torch and numpy read alone: for machines that have no more than that.

A numpy archive: arrays by `number/name`, and all else as JSON in `about`; nothing is pickled. Two
arrays are stored with less than they hold, or a hundred maps would be too large to carry: of the
distance to the brain every second voxel, of scans 256 greys.
"""

import json
import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.errors import BadData, InputMissing
from bids_synthseg.learning.features import FEATURES
from bids_synthseg.learning.maps import TrainingMap
from bids_synthseg.reading import parse_json
from bids_synthseg.storage import atomic_file
from bids_synthseg.synthesis import head
from bids_synthseg.synthesis.recipe import SourceMap

FORMAT = "bids_synthseg label maps, version 1"

GREYS = 255
"""Steps of a packed scan between 0 and 1."""

_MAP_ARRAYS = ("sets", "features")
_SOURCE_ARRAYS = ("tissues", "twins", "surrounding", "labels", "roles", "thresholds")
_MAP_FIELDS = ("name", "subject", "dataset", "split", "licence")
_SOURCE_FIELDS = ("contrasts", "has_csf", "voxel_mm", "centre", "extent_mm")


def write_pack(
    path: Path,
    maps: Sequence[TrainingMap],
    table: LabelTable,
    with_images: bool = True,
) -> None:
    """Write maps and the label table they are expressed in, whole or not at all.

    Without images, scans and their clusters are left out. Raises CannotCreate or StorageProblem
    where the disk refuses.
    """
    arrays: dict[str, np.ndarray] = {}
    records = []
    for number, one in enumerate(maps):
        source = one.source
        if not with_images:
            nothing = np.zeros((0, 1, 1, 1), dtype=np.float16)
            thresholds = source.thresholds[:0]
            source = replace(
                source, images=torch.from_numpy(nothing), contrasts=(), thresholds=thresholds
            )
        own = {name: getattr(one, name) for name in _MAP_ARRAYS}
        own |= {name: getattr(source, name) for name in _SOURCE_ARRAYS}
        own["classes"] = source.classes.numpy()
        own["outside"] = source.outside.numpy()[::2, ::2, ::2]
        own["images"] = (source.images.float() * GREYS).round().to(torch.uint8).numpy()
        arrays |= {f"{number}/{name}": array for name, array in own.items()}
        records.append(
            {name: getattr(one, name) for name in _MAP_FIELDS}
            | {name: getattr(source, name) for name in _SOURCE_FIELDS}
            | {"age_weeks": None if math.isnan(one.age_weeks) else one.age_weeks}
        )
    about = {
        "format": FORMAT,
        "features": FEATURES,
        "head_classes": head.N_CLASSES,
        "table": table.records(),
        "maps": records,
    }
    with atomic_file(path) as stream:
        np.savez_compressed(stream, about=np.array(json.dumps(about)), **arrays)


def read_pack(path: Path) -> tuple[list[TrainingMap], LabelTable]:
    """The maps and the table that `write_pack` wrote.

    Raises InputMissing, or BadData for a file that is truncated, foreign, or of another version.
    """
    if not path.is_file():
        raise InputMissing(f"{path}: no such pack of label maps; make it with 'pack'")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            about = parse_json(str(arrays["about"]))
            expected = FORMAT, list(FEATURES), head.N_CLASSES
            if (about["format"], about["features"], about["head_classes"]) != expected:
                raise BadData(f"{path}: packed by another version; pack the label maps again")
            maps = [_map(arrays, number, one) for number, one in enumerate(about["maps"])]
            return maps, LabelTable.from_records(about["table"])
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise _foreign(path) from problem
    except (zipfile.BadZipFile, zlib.error, IndexError, RuntimeError) as problem:
        raise _foreign(path) from problem


def _foreign(path: Path) -> BadData:
    return BadData(f"{path}: truncated, or no pack of label maps; copy it again or make it anew")


def _map(arrays: Any, number: int, record: dict[str, Any]) -> TrainingMap:
    own = {
        name: arrays[f"{number}/{name}"]
        for name in (*_MAP_ARRAYS, *_SOURCE_ARRAYS, "classes", "outside", "images")
    }
    classes = own["classes"]
    is_brain = ~own["surrounding"] & (np.arange(len(own["surrounding"])) > 0)
    images = torch.from_numpy(own["images"]).float() / GREYS
    source = SourceMap(
        classes=torch.from_numpy(classes),
        outside=torch.from_numpy(_filled(own["outside"], is_brain[classes])),
        images=images.half(),
        **{name: own[name] for name in _SOURCE_ARRAYS},
        **{
            name: tuple(record[name]) if isinstance(record[name], list) else record[name]
            for name in _SOURCE_FIELDS
        },
    )
    age = record["age_weeks"]
    return TrainingMap(
        **{name: record[name] for name in _MAP_FIELDS},
        **{name: own[name] for name in _MAP_ARRAYS},
        source=source,
        age_weeks=math.nan if age is None else age,
    )


def _filled(half: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """(X, Y, Z) uint8 distance from that of every second voxel: 0 in the brain, else at least 1.

    Off by less than two voxels next to the brain and by a fraction of one elsewhere, where heads
    have borders that are drawn some units uneven.
    """
    size = tuple(2 * n - 1 for n in half.shape)
    values = torch.from_numpy(half)[None, None].float()
    fine = F.interpolate(values, size=size, mode="trilinear", align_corners=True)[0, 0].numpy()
    # Where a side is even, its last voxel has no neighbour further out.
    pad = [(0, full - n) for full, n in zip(brain.shape, size, strict=True)]
    fine = np.pad(fine, pad, mode="edge")
    return np.where(brain, 0, fine.round().clip(1, 255)).astype(np.uint8)
