"""What strong bias fields cost, with and without the correction: one table of mean Dice.

    python benchmarks/bias.py BIDS_DIR SUBJECT ...

BIDS_DIR has T1w and T2w of the subjects and reference labels on their grids, in
derivatives/reference. Every scan is segmented alone, as it is and multiplied by two smooth fields
that run from 0.5 to 2.0 within the brain: a bright rim, as surface coils see it, and one bright
side. Dice is the mean over structures, as of `bids_synthseg_tools evaluate`.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.volume import Volume
from bids_synthseg.evaluation import compare, comparison, mean
from bids_synthseg.learning.label_sets import read_source_labels
from bids_synthseg.nifti import read_labels, read_scan
from bids_synthseg.pipeline import Options, Segmenter
from bids_synthseg.segmentation.labelling import label_volume
from bids_synthseg.segmentation.predict import segment

RANGE = (0.5, 2.0)
"""Least and largest factor within the brain."""

COIL = (-1.6, 0.5, 0.4)
"""Where the one-sided coil is, in half sides of the brain's box from its middle."""


def bright_rim(places: np.ndarray) -> np.ndarray:
    """Distance from the middle, squared; `places` (3, X, Y, Z) in half sides of the brain's box."""
    return np.square(places).sum(axis=0)


def one_sided(places: np.ndarray) -> np.ndarray:
    """Closeness to a coil on one side; `places` as above."""
    return -np.linalg.norm(places - np.reshape(COIL, (3, 1, 1, 1)), axis=0)


def field(brain: np.ndarray, shape_of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """(X, Y, Z) factors that run over RANGE within the brain (bool), and do not leave it outside;
    their logarithm follows `shape_of` places."""
    found = np.argwhere(brain)
    low, high = found.min(axis=0), found.max(axis=0)
    middle, half = (low + high) / 2, (high - low + 1) / 2
    places = np.indices(brain.shape) - middle.reshape(3, 1, 1, 1)
    shape = shape_of(places / half.reshape(3, 1, 1, 1))
    within = shape[brain]
    share = np.clip((shape - within.min()) / np.ptp(within), 0, 1)
    least, largest = RANGE
    return (least * (largest / least) ** share).astype(np.float32)


FIELDS = {"bright rim": bright_rim, "one-sided": one_sided}


def main(bids_dir: Path, subjects: list[str]) -> None:
    """Segment every scan in six ways, print the table."""
    segmenter = Segmenter.load(Options())
    reference_dir = bids_dir / "derivatives" / "reference"
    labels = read_source_labels(reference_dir / "dseg.tsv", LabelTable.default())
    match = comparison(labels, segmenter.table.ids.tolist(), segmenter.table)

    def mean_dice(scan: Volume, truth: Volume, correct_bias: bool) -> float:
        model = replace(segmenter.model, correct_bias=correct_bias)
        result = segment(scan, model, segmenter.locator)
        found = label_volume(result.field, scan.grid).native
        scores = compare(found, truth.data, match, scan.grid.voxel_size_mm.tolist())
        return mean(dice for dice, *_ in scores.values())

    columns = [f"{name}{how}" for name in ("no field", *FIELDS) for how in ("", ", corrected")]
    print(f"Mean Dice; fields of {RANGE[0]} to {RANGE[1]} within the brain")
    print("scan\t" + "\t".join(columns))
    rows = []
    for subject in subjects:
        anat = Path(f"sub-{subject}") / "anat"
        truth = read_labels(reference_dir / anat / f"sub-{subject}_dseg.nii.gz").volume
        brain = truth.data > 0
        factors = [np.float32(1), *(field(brain, shape_of) for shape_of in FIELDS.values())]
        for path in sorted((bids_dir / anat).glob(f"sub-{subject}_T[12]w.nii.gz")):
            scan = read_scan(path).volume
            scans = [Volume(scan.data * factor, scan.grid) for factor in factors]
            rows.append([mean_dice(s, truth, how) for s in scans for how in (False, True)])
            name = path.name.removesuffix(".nii.gz")
            print(name + "".join(f"\t{dice:.3f}" for dice in rows[-1]), flush=True)
    print("mean" + "".join(f"\t{dice:.3f}" for dice in np.mean(rows, axis=0)))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        print("not run: it takes BIDS_DIR SUBJECT ..., newborns with reference labels")
    else:
        main(Path(sys.argv[1]), sys.argv[2:])
