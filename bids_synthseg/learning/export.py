"""Synthetic images with their labels as files, for other programs or as a training set."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bids_synthseg import __version__
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.volume import Grid, Volume
from bids_synthseg.errors import CannotCreate
from bids_synthseg.learning.config import TrainConfig
from bids_synthseg.learning.maps import TrainingMap
from bids_synthseg.learning.preview import Painted, paint
from bids_synthseg.nifti import new_image, write_image
from bids_synthseg.storage import write_json, write_text
from bids_synthseg.synthesis.head import Donor

BIDS_VERSION = "1.10.0"
FIRST_SET = 20_001
"""Index of the first label that may be several labels of the model; FreeSurfer's end below."""
RANDOM_SUFFIX = "PDw"
"""Suffix of images of no contrast that exists: BIDS has none for them, and as T1w or T2w they would
be taken for what they are not."""

_README = """\
# Synthetic images

{n} images painted over label maps by bids_synthseg {version} (seed {seed}), none of them a scan:
`*_desc-synthetic_<T1w,T2w>.nii.gz` in a contrast like that, `*_desc-synthetic_PDw.nii.gz` in a
random contrast that no scanner makes (PDw only stands for "other"); `*_desc-synthetic_dseg.nii.gz`
are the labels. `participants.tsv` tells which map each was painted from. In `dseg.tsv` the column
`model_labels` holds the labels of the model that each label may be, so this folder can be trained
on. Terms of use are those of the label maps.
"""


def write_samples(
    maps: Sequence[TrainingMap],
    config: TrainConfig,
    table: LabelTable,
    out: Path,
    n: int,
    seed: int = 1,
    donors: Sequence[Donor] = (),
) -> list[Path]:
    """Write `n` pairs of image and label map as a BIDS derivative data set; returns the images.

    `table` is that of the maps' sets. The origin of the world is the centre of the grid. Raises
    CannotCreate where `out` holds a data set already, else errors as `storage.atomic_file`.
    """
    if (out / "dataset_description.json").exists():
        raise CannotCreate(f"{out}: holds a data set already; choose a new folder")
    index_of = set_indices(maps, table)
    rows, images = ["participant_id\tpainted_from\tcontrast\tage_weeks_pma"], []
    for number, one in enumerate(paint(maps, config, n, seed, donors), start=1):
        subject = f"sub-{number:04d}"
        images.append(_write_pair(out / subject / "anat", subject, one, index_of))
        age = one.map.age_weeks
        rows.append(
            f"{subject}\t{one.map.dataset}/{one.map.name}\t{one.contrast or 'random'}\t"
            f"{'n/a' if np.isnan(age) else f'{age:g}'}"
        )
    write_text(out / "participants.tsv", "\n".join(rows) + "\n")
    write_text(out / "dseg.tsv", _label_table(index_of, table))
    write_text(out / "README.md", _README.format(n=n, version=__version__, seed=seed))
    # Last: where it is, the rest is complete.
    description = {
        "Name": "Synthetic images and their labels",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "bids_synthseg", "Version": __version__}],
    }
    write_json(out / "dataset_description.json", description)
    return images


def set_indices(maps: Sequence[TrainingMap], table: LabelTable) -> dict[tuple[int, ...], int]:
    """Set of channels that a class of some map may be -> the index it is written as.

    A single label keeps its own id; sets of several are numbered from FIRST_SET on. With a set
    goes the mirrored one, so that the table is complete for either side.
    """
    rows = np.concatenate([one.sets for one in maps])
    both = np.unique(np.concatenate([rows, rows[:, table.mirror_channels]]), axis=0)
    sets = sorted(tuple(map(int, np.flatnonzero(row))) for row in both)
    single = {one: int(table.ids[one[0]]) for one in sets if len(one) == 1}
    several = {one: FIRST_SET + k for k, one in enumerate(s for s in sets if len(s) > 1)}
    return {(0,): 0} | single | several


def _write_pair(
    folder: Path, subject: str, one: Painted, index_of: dict[tuple[int, ...], int]
) -> Path:
    """Write image and labels; returns the image's path."""
    affine = np.diag([one.voxel_mm] * 3 + [1.0])
    affine[:3, 3] = -one.voxel_mm * (np.array(one.image.shape) - 1) / 2
    stem = f"{subject}_desc-synthetic"
    path = folder / f"{stem}_{one.contrast or RANDOM_SUFFIX}.nii.gz"
    like = new_image(Volume(one.image, Grid(one.image.shape, affine)), path)
    indices = np.array([index_of[tuple(map(int, np.flatnonzero(row)))] for row in one.map.sets])
    labels = indices[one.classes].astype(np.int16)
    write_image(folder / f"{stem}_dseg.nii.gz", labels, like, np.int16, intent="label")
    write_image(path, one.image, like, np.float32)
    return path


def _label_table(index_of: dict[tuple[int, ...], int], table: LabelTable) -> str:
    """The content of dseg.tsv, by index."""
    lines = ["index\tname\tmodel_labels"]
    for channels, index in sorted(index_of.items(), key=lambda item: item[1]):
        names = " or ".join(table.rows[channel].name for channel in channels)
        lines.append(f"{index}\t{names}\t{' '.join(str(table.ids[c]) for c in channels)}")
    return "\n".join(lines) + "\n"
