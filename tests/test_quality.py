"""The verdict on a session: its rule, its record, and measures of hand-made segmentations."""

import json
import math
import re
from pathlib import Path

import pytest

from bids_synthseg.bids.quality import LIMITS, MEASURES, STRUCTURE_MEASURES, Quality, judge

GOOD = {
    "predicted_dice": 0.85, "mirror_dice": 0.9, "agreement_dice": 0.85, "alignment_dice": 0.9,
    "entropy": 0.18, "edge_fraction": 0.0, "asymmetry": 0.01, "unsure_structures": 0.0,
    "missing_structures": 0.0, "empty_tissue_ml": 0.1, "empty_slices": 0.0,
    "islands_ml": 0.5, "brain_ml": 450.0, "age_weeks_pma": 41.0, "volume_z": -0.4, "slice_mm": 1.0,
    "bias_range": 1.5,
}  # fmt: skip


def test_a_good_segmentation_passes_without_a_word():
    found = judge(GOOD)
    assert (found.verdict, found.reasons) == ("pass", ())
    assert found.measures == GOOD


def test_what_is_not_known_does_not_count():
    found = judge({"predicted_dice": math.nan, "entropy": None, "volume_z": math.inf})
    assert found.verdict == "pass"
    assert list(found.measures) == list(MEASURES)
    assert set(found.measures.values()) == {None}


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: f"{limit.measure} {limit.bad_is}")
def test_every_limit_is_passed_by_a_hair(limit):
    """At the limit itself nothing is said; beyond it one sentence that names the number."""
    away = -1e-6 if limit.bad_is == "below" else 1e-6
    for verdict, value in (("check", limit.check), ("fail", limit.fail)):
        if value is None:
            continue
        at = judge(GOOD | {limit.measure: value})
        assert at.verdict == ("pass" if verdict == "check" else "check")
        beyond = judge(GOOD | {limit.measure: value + away})
        assert beyond.verdict == verdict
        [reason] = beyond.reasons
        assert reason.endswith(".") and reason[0].isupper()
        assert any(character.isdigit() for character in reason)


def test_the_worst_measure_decides_and_every_one_is_told():
    found = judge(GOOD | {"edge_fraction": 0.9, "asymmetry": 0.9, "slice_mm": 5.0})
    assert found.verdict == "fail"
    assert len(found.reasons) == 3


def test_a_warning_asks_for_a_look():
    found = judge(GOOD, ["sub-01_T1w.nii.gz: 3 voxels are NaN"])
    assert (found.verdict, found.reasons) == ("check", ("sub-01_T1w.nii.gz: 3 voxels are NaN",))
    assert judge(GOOD | {"edge_fraction": 0.9}, ["w"]).verdict == "fail"


@pytest.mark.parametrize(
    ("weeks", "verdict"),
    [
        (20.9, "check"), (21.0, "pass"), (40.0, "pass"), (74.0, "pass"), (78.0, "check"),
        (40 + 52.2 * 10, "check"), (40 + 52.2 * 30, "pass"),
    ],
)  # fmt: skip
def test_ages_that_training_did_not_see(weeks, verdict):
    found = judge(GOOD | {"age_weeks_pma": weeks})
    assert found.verdict == verdict
    assert len(found.reasons) == (verdict == "check")


def test_the_record_is_json_and_comes_back():
    found = judge(GOOD | {"asymmetry": 0.9, "entropy": math.nan})
    text = json.dumps(found.record())
    assert Quality.of(json.loads(text)) == found
    assert set(json.loads(text)) == {"Verdict", "Reasons", "Measures"}


@pytest.mark.parametrize(
    "record",
    [
        None,
        "pass",
        {},
        {"Verdict": "superb", "Reasons": [], "Measures": {}},
        {"Verdict": "pass", "Reasons": None, "Measures": {}},
        {"Verdict": "pass", "Reasons": []},
    ],
)
def test_what_is_no_record(record):
    assert Quality.of(record) is None


def test_a_record_of_another_version_is_read_as_far_as_it_is_known():
    measures = {"entropy": 0.2, "beauty": 1.0, "brain_ml": None, "slice_mm": "thick"}
    found = Quality.of({"Verdict": "check", "Reasons": ["a"], "Measures": measures})
    assert found == Quality("check", ("a",), {"entropy": 0.2, "brain_ml": None, "slice_mm": None})


def test_what_cannot_be_a_quality():
    with pytest.raises(ValueError, match="verdict"):
        Quality("good", (), {})
    with pytest.raises(ValueError, match="beauty"):
        Quality("pass", (), {"beauty": 1.0})


def test_measures_are_described():
    for about in (*MEASURES.values(), *STRUCTURE_MEASURES.values()):
        assert about["Description"] and set(about) <= {"Description", "Units"}
    for name, about in MEASURES.items():
        unit = {"_ml": "mL", "_mm": "mm", "_weeks_pma": "week"}
        expected = [value for ending, value in unit.items() if name.endswith(ending)]
        assert [about.get("Units")] == (expected or [None])
    assert {limit.measure for limit in LIMITS} <= set(MEASURES)


def test_the_documentation_states_the_rule():
    text = (Path(__file__).parents[1] / "docs" / "quality.md").read_text(encoding="utf-8")
    stated = [line for line in text.splitlines() if re.match(r"\| `\w+` \| (above|below) ", line)]
    assert stated == [
        f"| `{limit.measure}` | {limit.bad_is} | {limit.check:g} | "
        f"{'-' if limit.fail is None else format(limit.fail, 'g')} |"
        for limit in LIMITS
    ]
    assert all(f"- `{name}`" in text for name in MEASURES)
