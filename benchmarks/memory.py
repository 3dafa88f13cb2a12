"""Peak memory of a session against what the plan expects, by voxels and number of scans.

    python benchmarks/memory.py [BIDS_DIR PARTICIPANT ...]

Each participant is segmented by a process of its own. Without arguments these are a phantom newborn
on grids of several voxel sizes, with one scan and with two.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bids_synthseg.anatomy.volume import Grid, Volume, resample
from bids_synthseg.bids.plan import expected_memory_mb, largest_scan
from bids_synthseg.bids.query import find_scan_groups
from bids_synthseg.bids.status import read_status
from bids_synthseg.nifti import new_image, write_image
from bids_synthseg.phantom import phantom_image, phantom_labels
from bids_synthseg.storage import write_json

APP = [sys.executable, "-m", "bids_synthseg"]
SIDES = (120, 220, 300, 400)
"""Voxels along each axis of the phantom's grids."""


def write_phantoms(folder: Path) -> list[str]:
    """A BIDS data set with a participant for each grid and number of scans, and their labels."""
    write_json(folder / "dataset_description.json", {"Name": "memory", "BIDSVersion": "1.10.0"})
    labels, names = phantom_labels(), []
    extent_mm = max(np.array(labels.grid.shape) * labels.grid.voxel_size_mm)
    for contrasts in (("T2w",), ("T1w", "T2w")):
        for side in SIDES:
            affine = np.diag([*[extent_mm / side] * 3, 1.0])
            affine[:3, 3] = labels.grid.centre_mm - affine[:3, :3] @ np.full(3, (side - 1) / 2)
            names.append(f"{side}x{len(contrasts)}")
            for contrast in contrasts:
                scan = phantom_image(labels, contrast, np.random.default_rng(0))
                scan = resample(scan, Grid((side,) * 3, affine))
                data = Volume(np.rint(scan.data), scan.grid)
                path = folder / f"sub-{names[-1]}" / "anat" / f"sub-{names[-1]}_{contrast}.nii.gz"
                write_image(path, data.data, new_image(data, path), np.int16)
    return names


def main(arguments: list[str]) -> None:
    """Segment each participant, print the table."""
    with TemporaryDirectory() as folder:
        bids = Path(arguments[0]) if arguments else Path(folder) / "bids"
        names = arguments[1:] if arguments else write_phantoms(bids)
        print("participant\tscans\tmillion voxels\tmeasured MB\tplanned MB\tratio")
        for name in names:
            out = Path(folder) / name
            call = [str(bids), str(out), "participant", "--participant-label", name, "--quiet"]
            subprocess.run([*APP, *call], stdout=subprocess.DEVNULL)
            (group,) = find_scan_groups(bids, participants=[name])
            _, n_voxels = largest_scan(group)
            measured = float(read_status(out / "logs" / "status.tsv")[0]["peak_mb"])
            planned = expected_memory_mb(group)
            print(
                f"{name}\t{len(group.scans)}\t{n_voxels / 1e6:.1f}\t{measured:.0f}\t{planned:.0f}"
                f"\t{planned / measured:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
