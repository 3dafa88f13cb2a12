"""Level group on the synthetic derivatives of many sessions: seconds and size of the page.

    python benchmarks/group.py [SESSIONS] [FOLDER]

2,000 sessions unless told otherwise, two to a subject, each with volumes in space T1w and T2w.
Brains grow as infants' do, one in a hundred is far off, one in fifty sessions failed, one in ten
has doubtful quality. With FOLDER the data set and its derivatives stay there, to look at the page.
"""

import json
import math
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.bids.dataset import write_dataset_files
from bids_synthseg.bids.derivatives import SessionPaths
from bids_synthseg.bids.group import write_group
from bids_synthseg.bids.quality import MEASURES, Quality
from bids_synthseg.bids.tables import format_table, volume_columns

FAILED = "out of memory on the GPU and on the CPU; give the job 8 GB"


def write(path: Path, text: str) -> None:
    """Plain writing: nobody needs these files to survive a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def brain_ml(months: float) -> float:
    """A curve of about the right shape, for this benchmark only."""
    return 380 + 750 * (1 - math.exp(-months / 9))


def quality(rng: np.random.Generator, warnings: list[str]) -> Quality:
    """Numbers that mean nothing, and the verdict that they might have given."""
    measures = dict(zip(MEASURES, rng.uniform(0, 1, len(MEASURES)).tolist(), strict=True))
    draw = rng.random()
    if draw < 0.02:
        reason = f"predicted Dice {measures['predicted_dice']:.2f} is below 0.70"
        return Quality("fail", (reason, *warnings), measures)
    if draw < 0.1 or warnings:
        reason = "the volume of the brain is 3.1 standard deviations above that of its age"
        return Quality("check", tuple(warnings) or (reason,), measures)
    return Quality("pass", (), measures)


def write_inputs(raw: Path, out: Path, n_sessions: int) -> None:
    """A raw data set without images, and what level participant would have made of it."""
    rng = np.random.default_rng(2026)
    write(
        raw / "dataset_description.json", '{"Name": "Synthetic infants", "BIDSVersion": "1.10.0"}'
    )
    table = LabelTable.default().fold("aseg")[0]
    shares = rng.dirichlet(np.full(len(table) - 1, 3.0))
    write_dataset_files(raw, out, LabelTable.default())
    rows: list[tuple[str, ...]] = []
    for subject in range(1, n_sessions // 2 + 1):
        ages = ["session_id\tage_months"]
        for session, months in (("early", rng.uniform(0, 6)), ("late", rng.uniform(9, 30))):
            paths = SessionPaths(out, f"{subject:04d}", session)
            ages.append(f"ses-{session}\t{months:.2f}")
            failed = rng.random() < 0.02
            status, message = ("failed", FAILED) if failed else ("done", "n/a")
            who = (f"sub-{subject:04d}", f"ses-{session}")
            rows.append((*who, status, f"{rng.uniform(15, 60):.1f}", "1200", message))
            write(paths.log, f"{status}\n")
            if failed:
                continue
            factor = rng.lognormal(0, 0.08) * (0.45 if rng.random() < 0.01 else 1)
            volumes = [0.0, *(1000 * brain_ml(months) * factor * shares)]
            text = format_table(volume_columns(table, volumes, volumes))
            for space in ("T1w", "T2w"):
                write(paths.file("volumes", ".tsv", space=space, desc="aseg"), text)
            warnings = ["the brain touches the edge of the image"] if rng.random() < 0.03 else []
            record = {"Warnings": warnings, "Quality": quality(rng, warnings).record()}
            write(paths.record, json.dumps({"Signature": "0" * 64} | record))
            write(paths.report, f"<p>Report of {paths.label}")
        sessions = raw / f"sub-{subject:04d}" / f"sub-{subject:04d}_sessions.tsv"
        write(sessions, "\n".join(ages) + "\n")
    header = "subject\tsession\tstatus\tseconds\tpeak_mb\tmessage\n"
    write(out / "logs" / "status.tsv", header + "".join("\t".join(row) + "\n" for row in rows))


def main(n_sessions: int, folder: Path) -> None:
    """Write, run, print the table."""
    raw, out = folder / "raw", folder / "out"
    write_inputs(raw, out, n_sessions)
    start = time.perf_counter()
    results = write_group(raw, out)
    seconds = time.perf_counter() - start
    size_mb = (out / "group.html").stat().st_size / 1e6
    print("Level group, synthetic derivatives")
    print("sessions\tseconds\tpage in MB")
    print(f"{len(results)}\t{seconds:.1f}\t{size_mb:.1f}")


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        number, place, *_ = [*sys.argv[1:], *("2000", temporary)[len(sys.argv) - 1 :]]
        main(int(number), Path(place))
