"""Reports of two phantoms, a newborn of 0.86 mm and an adult-sized head of 1 mm: seconds and MB.

    python benchmarks/report.py [BIDS_DIR OUTPUT_DIR]

Each has T1w and T2w on grids of their own, which takes most: two sets of pictures and maps. With
folders, the reports of all sessions that are finished there are written anew instead. The first
report of a process also pays for loading matplotlib.
"""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.volume import Grid, Volume, resample
from bids_synthseg.bids.dataset import write_dataset_files
from bids_synthseg.bids.derivatives import SessionPaths, SessionWriter, Space
from bids_synthseg.bids.report import write_report
from bids_synthseg.bids.results import read_results
from bids_synthseg.bids.sessions import Key, session_label
from bids_synthseg.nifti import new_image, read_scan, write_image
from bids_synthseg.phantom import phantom_image, phantom_labels
from bids_synthseg.storage import write_json

# Name: voxel size in mm, and how much larger than the newborn phantom the head is.
HEADS = {"newborn": (0.86, 1.0), "adult": (1.0, 1.42)}


def write_head(raw: Path, out: Path, name: str) -> None:
    """Scans in `raw` and what level participant makes of them in `out`."""
    voxel_mm, scale = HEADS[name]
    table = LabelTable.default().fold("aseg")[0]
    rng = np.random.default_rng(5)
    own = phantom_labels()
    # As wide as a head: the phantom has little but the brain.
    shape = tuple(int(1.3 * scale * n / voxel_mm) for n in own.grid.shape)
    affine = np.diag([scale, scale, scale, 1.0]) @ own.grid.affine
    large = Volume(own.data, Grid(own.grid.shape, affine))
    paths = SessionPaths(out, name)
    writer = SessionWriter(paths, raw, config_sha256="c" * 64, weights_sha256="w" * 64)
    writer.start()
    for contrast, shift_mm in (("T1w", 0.0), ("T2w", 0.4)):
        middle = (np.array(large.grid.shape) - 1) / 2 + shift_mm
        grid = large.grid.window(middle, voxel_mm, shape)
        labels = resample(large, grid, order=0)
        folded = np.where(np.isin(labels.data, table.ids), labels.data, 2)
        path = raw / paths.anat.relative_to(out) / f"{paths.label}_{contrast}.nii.gz"
        scan = phantom_image(labels, contrast, rng)
        write_image(path, scan.data, new_image(scan, path), np.float32)
        space = Space(contrast, read_scan(path), (path,))
        writer.write_aseg(space, folded)
        volumes = [float((folded == row.index).sum()) * grid.voxel_volume_mm3 for row in table.rows]
        writer.write_volumes(space, table, volumes, volumes)
        writer.write_confidence(space, 1 - 0.5 * rng.random(grid.shape) ** 4)
        writer.write_disagreement(space, (rng.random(grid.shape) < 0.03) & (folded > 0))
    writer.finish("s" * 64)


def sessions_in(output_dir: Path) -> list[Key]:
    """Those that are finished."""
    return [result.key for result in read_results(output_dir) if result.status == "done"]


def main(raw: Path, out: Path) -> None:
    """Write the reports, print the table."""
    print("Report of a session, T1w and T2w, NiiVue")
    print("session\tseconds\tMB")
    for key in sessions_in(out):
        start = time.perf_counter()
        page = write_report(raw, out, key)
        seconds = time.perf_counter() - start
        print(f"{session_label(key)}\t{seconds:.1f}\t{page.stat().st_size / 1e6:.1f}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        with TemporaryDirectory() as folder:
            raw, out = Path(folder) / "raw", Path(folder) / "out"
            write_json(
                raw / "dataset_description.json", {"Name": "Phantoms", "BIDSVersion": "1.10.0"}
            )
            write_dataset_files(raw, out, LabelTable.default())
            for name in HEADS:
                write_head(raw, out, name)
            main(raw, out)
