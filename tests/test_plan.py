"""The plan of a run: one row per image, and what the sessions are expected to take."""

from pathlib import Path

import numpy as np
import pytest

from bids_synthseg.bids import plan
from bids_synthseg.bids.scans import Scan, ScanGroup

ROOT = Path("/raw")


def group(subject, *names, session=None, left_out=()):
    scans = tuple(Scan.from_path(ROOT / name) for name in names)
    return ScanGroup(subject, session, scans, tuple((ROOT / n, why) for n, why in left_out))


GROUPS = [
    group("1", "a/sub-1_T1w.nii.gz", "a/sub-1_T2w.nii.gz"),
    group("2", "b/sub-2_T2w.nii", session="x", left_out=[("b/sub-2_run-2_T2w.nii", "a reason")]),
]


def test_table():
    both = plan.SECONDS_PER_SCAN * 2, plan.MEMORY_MB + 2 * plan.MEMORY_MB_PER_SCAN
    one = plan.SECONDS_PER_SCAN, plan.MEMORY_MB + plan.MEMORY_MB_PER_SCAN
    rows = [line.split("\t") for line in plan.plan_text(GROUPS, ROOT).splitlines()]
    assert rows == [
        ["subject", "session", "image", "use", "seconds", "memory_mb"],
        ["sub-1", "n/a", "a/sub-1_T1w.nii.gz", "segmented", f"{both[0]:g}", f"{both[1]:g}"],
        ["sub-1", "n/a", "a/sub-1_T2w.nii.gz", "segmented", "n/a", "n/a"],
        ["sub-2", "ses-x", "b/sub-2_T2w.nii", "segmented", f"{one[0]:g}", f"{one[1]:g}"],
        ["sub-2", "ses-x", "b/sub-2_run-2_T2w.nii", "left out: a reason", "n/a", "n/a"],
    ]
    seconds = sum(float(row[4]) for row in rows[1:] if row[4] != "n/a")
    assert seconds == sum(map(plan.expected_seconds, GROUPS))


def test_memory_follows_the_voxels_of_the_largest_scan(bids_tree):
    sizes = {"T1w": (10, 20, 30), "T2w": (10, 20, 31)}
    names = {suffix: f"sub-1_{suffix}.nii.gz" for suffix in sizes}
    root = bids_tree(
        {"sub-1": {"anat": {names[s]: np.zeros(shape, np.int16) for s, shape in sizes.items()}}}
    )
    scans = tuple(Scan.from_path(root / "sub-1" / "anat" / name) for name in names.values())
    both = ScanGroup("1", None, scans)
    assert plan.largest_scan(both) == (scans[1].path, 6200)
    assert plan.largest_scan(GROUPS[0]) == (None, 0)
    voxels_mb = 6200 * plan.BYTES_PER_VOXEL / 1e6
    assert plan.expected_memory_mb(both) == pytest.approx(
        plan.MEMORY_MB + 2 * plan.MEMORY_MB_PER_SCAN + voxels_mb
    )


@pytest.mark.parametrize(
    ("n_scans", "million_voxels", "measured_mb"),
    [(1, 2.3, 1333), (1, 11.1, 1390), (2, 27.0, 2061), (1, 27.0, 1925), (1, 64.0, 3074)],
)
def test_memory_is_that_of_single_runs(monkeypatch, n_scans, million_voxels, measured_mb):
    monkeypatch.setattr(plan, "_n_voxels", lambda path: int(million_voxels * 1e6))
    expected_mb = plan.expected_memory_mb(GROUPS[0 if n_scans == 2 else 1])
    assert 0.9 < expected_mb / measured_mb < 1.25


def test_summary(monkeypatch):
    monkeypatch.setattr(plan, "SECONDS_PER_SCAN", 20.0)
    monkeypatch.setattr(plan, "MEMORY_MB", 1000.0)
    monkeypatch.setattr(plan, "MEMORY_MB_PER_SCAN", 100.0)
    after = "one after another on two cores, {} of memory"
    assert plan.plan_summary(GROUPS) == "2 sessions, 3 scans: about 1 min " + after.format("1.2 GB")
    assert plan.plan_summary(GROUPS[1:] * 5).startswith("5 sessions, 5 scans: about 2 min ")
    assert plan.plan_summary(GROUPS[1:]).startswith("1 session, 1 scan: about 1 min ")
    # 359 scans of 20 s are two hours but for 20 s: never "1 h 60 min".
    assert "about 2 h 0 min" in plan.plan_summary(GROUPS[1:] * 359)
