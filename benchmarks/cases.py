"""Data sets that once failed: what the App makes of each of them now.

    python benchmarks/cases.py CASES_DIR [CASE ...] [--seen README.md] [--out DIR]

CASES_DIR holds a data set per case. Each is planned (`--dry-run`) and segmented by a run of its
own. One row per case: status and verdict of its sessions, brain volume, messages and reasons; how
far its labels agree with those of the first case that has the same grid; and whether the dry run
knew of a failure. `--seen`: a Markdown file with a table `| case | seen | ...`, whose second column
is printed beside. Without CASES_DIR there are two, a phantom newborn whole and with a file cut off.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bids_synthseg.bids.status import read_status
from bids_synthseg.demo import write_demo
from bids_synthseg.errors import AppError
from bids_synthseg.nifti import read_labels

APP = [sys.executable, "-m", "bids_synthseg"]
LONGEST = 300


def run(case: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The App on one case, in a process of its own."""
    call = [*APP, str(case), str(out), "participant", "--quiet", *options]
    return subprocess.run(call, capture_output=True, text=True, errors="backslashreplace")


def records(out: Path) -> Iterator[dict]:
    """What the sessions' records tell of their quality."""
    for path in sorted((out / "logs").glob("sub-*.json")):
        if quality := json.loads(path.read_text(encoding="utf-8")).get("Quality"):
            yield quality


def outcome(case: Path, out: Path) -> str:
    """What became of a case, in one line."""
    planned = run(case, out, "--dry-run")
    done = run(case, out, "--viewer", "none")
    rows = read_status(out / "logs" / "status.tsv")
    words = [f"exit {done.returncode}"]
    for row in rows:
        message = "" if row["message"] == "n/a" else f": {row['message']}"
        words.append(f"{row['status']}{message}")
    for quality in records(out):
        brain_ml = (quality.get("Measures") or {}).get("brain_ml")
        volume = f"{brain_ml:.0f} ml" if brain_ml else "no brain"
        reasons = "; ".join(quality.get("Reasons") or ())
        words.append(f"{quality.get('Verdict', 'not judged')}, {volume}{reasons and ': '}{reasons}")
    if not rows:
        words += done.stderr.strip().splitlines()[-1:]
    if "Traceback" in done.stderr + planned.stderr:
        words.append("TRACEBACK")
    foreseen = planned.returncode > 1 or "fails: " in planned.stdout
    if done.returncode and not foreseen:
        words.append("not foreseen by the dry run")
    text = " / ".join(words).replace(str(case) + os.sep, "")
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."


def labels(out: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Contrast -> affine and labels (X, Y, Z) of the segmentation in its space."""
    found = {}
    for path in sorted(out.glob("sub-*/**/*_space-*_desc-aseg_dseg.nii.gz")):
        volume = read_labels(path).volume
        found[path.name.split("_space-")[1][:3]] = (volume.grid.affine, volume.data)
    return found


def agreement(own: dict, others: dict[str, dict]) -> str:
    """How far labels agree with those of the first other case on the same grid; "" without one."""
    for name, maps in others.items():
        for contrast, (affine, data) in own.items():
            if contrast not in maps or maps[contrast][1].shape != data.shape:
                continue
            if np.allclose(maps[contrast][0], affine, atol=1e-3):
                differing = int((maps[contrast][1] != data).sum())
                return f" / {differing} voxels differ from {name}" if differing else f" = {name}"
    return ""


def seen_before(path: Path) -> dict[str, str]:
    """Case -> what was seen of it, by the tables of a Markdown file; a row may name several."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and len(cells) > 1:
            names = [name for name in cells[0].split(", ") if re.fullmatch(r"[\w?-]+", name)]
            found |= {name: cells[1] for name in names}
    return found


def main() -> None:
    """Run every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("cases", nargs="?", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seen", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        cases, out = given.cases, given.out or Path(folder) / "out"
        if cases is None:
            cases = Path(folder) / "cases"
            write_demo(cases / "phantom")
            write_demo(cases / "cut-off")
            scan = next((cases / "cut-off").glob("sub-infant/**/anat/*_T2w.nii.gz"))
            scan.write_bytes(scan.read_bytes()[:10_000])
        seen = seen_before(given.seen) if given.seen else {}
        print("case\tseen\tnow" if seen else "case\tnow")
        maps: dict[str, dict] = {}
        for case in sorted(path for path in cases.iterdir() if path.is_dir()):
            name = case.name.encode("utf-8", "backslashreplace").decode()
            if given.names and name not in given.names:
                continue
            now = outcome(case, out / case.name)
            try:
                own = labels(out / case.name)
            except AppError as error:
                own, now = {}, f"{now} / {error}"
            now += agreement(own, maps)
            maps[name] = own
            known = [seen.get(name, seen.get("not-utf8-?", "") if "\\u" in name else "")]
            print("\t".join([name, *(known if seen else []), now]), flush=True)


if __name__ == "__main__":
    main()
