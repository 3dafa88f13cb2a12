"""One scan in all 48 axis orders and directions, and on grids that are turned: same segmentation?

    python benchmarks/orientations.py [SCAN.nii.gz [REFERENCE_dseg.nii.gz]]

Without an argument a phantom newborn is used, whose labels are the reference. Prints the agreement
of voxels with the segmentation of the scan as it is, compared voxel by voxel in the world; and for
12 turns of the grid, to which the scan is interpolated, the median Dice of structures with the
segmentation of the scan as it is, and with the reference.
"""

import sys
from itertools import permutations, product
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from bids_synthseg import nifti
from bids_synthseg.anatomy.agreement import channel_dice, structure_median
from bids_synthseg.anatomy.volume import Grid, Reorientation, Volume, resample
from bids_synthseg.phantom import phantom_image, phantom_labels
from bids_synthseg.pipeline import Options, Segmenter
from bids_synthseg.segmentation.labelling import label_volume
from bids_synthseg.segmentation.predict import segment

TURNS_DEG = (-40, -20, 20, 40)
"""About each axis of the scan."""


def main(arguments: list[str]) -> None:
    """Segment 48 and 12 times, print the tables."""
    segmenter = Segmenter.load(Options())
    name = arguments[0] if arguments else "phantom"
    scan = (
        nifti.read_scan(Path(name)).volume
        if arguments
        else phantom_image(phantom_labels(), "T2w", np.random.default_rng(0))
    )
    reference = nifti.read_labels(Path(arguments[1])).volume if arguments[1:] else None
    if not arguments:
        reference = phantom_labels()

    def labels(volume: Volume) -> np.ndarray:
        result = segment(volume, segmenter.model, segmenter.locator, mirror=False)
        return label_volume(result.answer, volume.grid).aseg

    expected = labels(scan)
    agreement = []
    for axes, flips in product(permutations(range(3)), product((False, True), repeat=3)):
        turn = Reorientation(axes, flips)
        found = labels(Volume(turn.apply(scan.data), scan.grid.reoriented(turn)))
        agreement.append(float((turn.undo(found) == expected).mean()))
    print(f"48 orientations of {Path(name).name}, {len(np.unique(expected)) - 1} labels")
    print("lowest agreement of voxels\tmean agreement")
    print(f"{min(agreement):.6f}\t{np.mean(agreement):.6f}\n")

    print("turn\tDice with the segmentation as it is\tDice with the reference")
    truth = None if reference is None else resample(reference, scan.grid, order=0).data

    def tell(name: str, found: np.ndarray) -> None:
        known = "n/a" if truth is None else f"{median_dice(found, truth):.3f}"
        print(f"{name}\t{median_dice(found, expected):.3f}\t{known}", flush=True)

    tell("none", expected)
    for axis, degrees in product("xyz", TURNS_DEG):
        grid = turned(scan.grid, Rotation.from_euler(axis, degrees, degrees=True))
        found = Volume(labels(resample(scan, grid)), grid)
        tell(f"{axis} {degrees:+d}", resample(found, scan.grid, order=0).data)


def turned(grid: Grid, turn: Rotation) -> Grid:
    """Isotropic grid of the finest voxels, turned about the middle of this one, which it holds."""
    axes = turn.as_matrix() @ (grid.affine[:3, :3] / grid.voxel_size_mm)
    voxel_mm = float(grid.voxel_size_mm.min())
    corners = np.array(list(product(*((-0.5, n - 0.5) for n in grid.shape))))
    along = (grid.to_world(corners) - grid.centre_mm) @ axes
    x, y, z = np.ceil(np.ptp(along, axis=0) / voxel_mm).astype(int).tolist()
    affine = np.eye(4)
    affine[:3, :3] = axes * voxel_mm
    affine[:3, 3] = grid.centre_mm - affine[:3, :3] @ ((np.array([x, y, z]) - 1) / 2)
    return Grid((x, y, z), affine)


def median_dice(found: np.ndarray, truth: np.ndarray) -> float:
    """Over the structures that both maps of aseg labels know."""
    shared = np.intersect1d(np.unique(found), np.unique(truth))
    channels = [
        np.where(np.isin(labels, shared), np.searchsorted(shared, labels), 0)
        for labels in (found, truth)
    ]
    return structure_median(channel_dice(*channels, len(shared)))


if __name__ == "__main__":
    main(sys.argv[1:])
