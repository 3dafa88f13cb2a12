"""One scan stored in all 48 axis orders and directions: does the segmentation stay the same?

    python benchmarks/orientations.py [SCAN.nii.gz]

Without an argument a phantom newborn is used. Prints the agreement of voxels with the segmentation
of the scan as it is, compared voxel by voxel in the world.
"""

import sys
from itertools import permutations, product
from pathlib import Path

import numpy as np

from bids_synthseg import nifti
from bids_synthseg.anatomy.volume import Reorientation, Volume
from bids_synthseg.phantom import phantom_image, phantom_labels
from bids_synthseg.pipeline import Options, Segmenter
from bids_synthseg.segmentation.labelling import label_volume
from bids_synthseg.segmentation.predict import segment


def main(arguments: list[str]) -> None:
    """Segment 48 times, print the table."""
    segmenter = Segmenter.load(Options())
    name = arguments[0] if arguments else "phantom"
    scan = (
        nifti.read_scan(Path(name)).volume
        if arguments
        else phantom_image(phantom_labels(), "T2w", np.random.default_rng(0))
    )

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
    print(f"{min(agreement):.6f}\t{np.mean(agreement):.6f}")


if __name__ == "__main__":
    main(sys.argv[1:])
