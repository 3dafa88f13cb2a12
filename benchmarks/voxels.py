"""What working grids of several voxel sizes can keep of reference labels: one table.

    python benchmarks/voxels.py BIDS_DIR VOXEL_MM...

The reference labels of `derivatives/reference` are taken to isotropic voxels, through posteriors as
a network would give them, and back to their own grid. "nearest": every voxel is certain of the
label at its centre; "shares": it knows the share of every label in it, which no network sees. Dice
is the mean over structures and sessions.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.volume import Grid, Volume, resample
from bids_synthseg.evaluation import compare, comparison, find_references, mean
from bids_synthseg.learning.label_sets import read_source_labels
from bids_synthseg.nifti import read_labels
from bids_synthseg.segmentation.field import GridField, slabs

PARTS = 3
"""Along every axis, of a voxel whose shares are counted."""


def posteriors(reference: Volume, voxel_mm: float, table: LabelTable, parts: int) -> GridField:
    """Shares of the labels on a grid of `voxel_mm` over all of the reference, from `parts`^3 points
    per voxel."""
    extent_mm = np.array(reference.grid.shape) * reference.grid.voxel_size_mm
    shape = tuple(int(n) for n in np.ceil(extent_mm / voxel_mm))
    middle = (np.array(reference.grid.shape) - 1) / 2
    fine = reference.grid.window(middle, voxel_mm / parts, tuple(n * parts for n in shape))
    labels = resample(reference, fine, order=0).data
    channels = np.searchsorted(table.ids, labels)
    data = torch.stack(
        [
            F.avg_pool3d(torch.from_numpy(channels == k).float()[None], parts)[0]
            for k in range(len(table))
        ]
    )
    return GridField(data, reference.grid.window(middle, voxel_mm, shape), table)


def back(field: GridField, grid: Grid) -> np.ndarray:
    """The most probable label at every voxel of a grid."""
    parts = [field.table.ids[data.argmax(0)] for _, data in slabs(field, grid)]
    return np.concatenate(parts)


def main(bids_dir: Path, sizes_mm: list[float]) -> None:
    """Print the table."""
    folder = bids_dir / "derivatives/reference"
    table = LabelTable.default()
    match = comparison(read_source_labels(folder / "dseg.tsv", table), table.ids.tolist(), table)
    references = [read_labels(path).volume for _, path in find_references(folder)]
    print(f"{len(references)} sessions of {bids_dir.name}")
    print("| voxel mm | nearest | shares |")
    print("|--:|--:|--:|")
    for voxel_mm in sizes_mm:
        cells = []
        for parts in (1, PARTS):
            scores = []
            for reference in references:
                field = posteriors(reference, voxel_mm, table, parts)
                labels = back(field, reference.grid)
                spacing_mm = reference.grid.voxel_size_mm.tolist()
                found = compare(labels, reference.data, match, spacing_mm)
                scores.append(mean(score for score, *_ in found.values()))
            cells.append(f"{mean(scores):.3f}")
        print(f"| {voxel_mm:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        print("not run: it takes BIDS_DIR VOXEL_MM...")
    else:
        main(Path(sys.argv[1]), [float(size) for size in sys.argv[2:]])
