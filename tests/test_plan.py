"""The plan of a run: one row per image, and what the sessions are expected to take."""

from pathlib import Path

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
