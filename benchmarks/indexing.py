"""Choosing scans in a large data set: seconds for one subject, and for the plan of all.

    python benchmarks/indexing.py [SUBJECTS]

1,000 subjects unless told otherwise, each with two sessions, and in each session 12 files: T1w and
T2w with sidecars, two runs of BOLD with sidecars, diffusion with gradients and sidecar. The files
are empty. Time is that of the call, for one subject the best of three. pybids, whose import is
measured by itself, is needed for filter files alone.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from bids_synthseg.bids.plan import plan_text
from bids_synthseg.bids.query import find_scan_groups

NAMES = {
    "anat": ("T1w.nii.gz", "T1w.json", "T2w.nii.gz", "T2w.json"),
    "func": tuple(f"task-rest_run-{n}_bold.{kind}" for n in (1, 2) for kind in ("nii.gz", "json")),
    "dwi": ("dwi.nii.gz", "dwi.json", "dwi.bval", "dwi.bvec"),
}


def write_files(root: Path, n_subjects: int) -> int:
    """Write the data set; returns how many files it has."""
    root.mkdir()
    (root / "dataset_description.json").write_text('{"Name": "empty", "BIDSVersion": "1.10.0"}')
    for number in range(1, n_subjects + 1):
        for session in ("early", "late"):
            label = f"sub-{number}_ses-{session}"
            for folder, names in NAMES.items():
                place = root / f"sub-{number}" / f"ses-{session}" / folder
                place.mkdir(parents=True)
                for name in names:
                    (place / f"{label}_{name}").touch()
    return 1 + 2 * n_subjects * sum(map(len, NAMES.values()))


def seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """The shortest time of several calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def main(n_subjects: int) -> None:
    """Write, call, print the table."""
    filters = {"t1w": {"acquisition": None}}
    with TemporaryDirectory() as folder:
        root = Path(folder) / "bids"
        n_files = write_files(root, n_subjects)
        start = time.perf_counter()
        import bids  # noqa: F401

        rows = [("import of pybids", time.perf_counter() - start)]
        for words, chosen in (("", None), (", with a filter file", filters)):
            one = seconds(lambda c=chosen: find_scan_groups(root, participants=["1"], filters=c))
            every = seconds(lambda c=chosen: plan_text(find_scan_groups(root, filters=c), root), 1)
            rows.append((f"one subject{words}", one))
            rows.append((f"plan of {n_subjects:,} subjects{words}", every))
    print(f"Choosing scans out of {n_files:,} files")
    print("task\tseconds")
    for task, took in rows:
        print(f"{task}\t{took:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
