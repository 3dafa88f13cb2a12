"""The choice among checkpoints, on tables made by hand."""

import math
import random

import pytest

from bids_synthseg.learning.selection import headline, judge, markdown_table
from bids_synthseg.learning.validation import Score

FLOOR = 0.2


def scores_of(**images: dict[str, float]) -> list[Score]:
    """scores_of(a_T1w_0={"cortex": 0.5}): data set, kind and number of each image."""
    scores = []
    for name, found in images.items():
        dataset, kind, number = name.split("_")
        place = dataset, f"sub-{number}", kind, int(number)
        scores += [Score(*place, structure, dice) for structure, dice in found.items()]
    return scores


def value_of(scores: list[Score], floor: float = FLOOR) -> float:
    return judge(scores, floor).value


def test_structures_of_a_group_and_groups_count_alike():
    scores = scores_of(
        a_T1w_0={"cortex": 0.8, "white": 0.6},
        a_T1w_1={"cortex": 0.6},  # cortex 0.7, white 0.6
        a_synthetic_0={"cortex": 0.9},
        b_T1w_0={"white": 0.4},
    )
    verdict = judge(scores, FLOOR)
    assert [(g.dataset, g.kind, g.n_images) for g in verdict.groups] == [
        ("a", "T1w", 2),
        ("a", "synthetic", 1),
        ("b", "T1w", 1),
    ]
    assert verdict.groups[0].structures == pytest.approx({"cortex": 0.7, "white": 0.6})
    assert verdict.mean == verdict.value == pytest.approx((0.65 + 0.9 + 0.4) / 3)


@pytest.mark.parametrize(
    ("dice", "counted"), [(1.0, 1.0), (0.2, 0.2), (0.1, 0.1 - 0.5), (0.05, 0.05 - 0.75), (0.0, -1)]
)
def test_below_the_floor_by_hand(dice, counted):
    verdict = judge(scores_of(a_T1w_0={"one": dice, "two": 0.8}), FLOOR)
    assert verdict.value == pytest.approx((counted + 0.8) / 2)
    assert verdict.mean == pytest.approx((dice + 0.8) / 2)


def test_a_lost_structure_outweighs_a_gain_elsewhere():
    names = [f"structure-{k}" for k in range(9)]
    keeps = scores_of(a_T1w_0=dict.fromkeys(names, 0.80) | {"small": 0.40})
    gives_up = scores_of(a_T1w_0=dict.fromkeys(names, 0.88) | {"small": 0.0})
    assert judge(gives_up, FLOOR).mean > judge(keeps, FLOOR).mean
    assert value_of(gives_up) < value_of(keeps)
    assert value_of(gives_up, floor=0.0) > value_of(keeps, floor=0.0)


def test_what_neither_has_found_decides_nothing():
    worse = scores_of(a_T1w_0={"large": 0.70, "small": 0.0})
    better = scores_of(a_T1w_0={"large": 0.71, "small": 0.0})
    assert judge(better, FLOOR).improves(value_of(worse))
    assert not judge(worse, FLOOR).improves(value_of(better))


def test_a_structure_lost_on_scans_alone_is_lost():
    """Synthetic images on which it is still found do not make up for it."""
    found = scores_of(a_T1w_0={"small": 0.3}, a_synthetic_0={"small": 0.3})
    lost = scores_of(a_T1w_0={"small": 0.0}, a_synthetic_0={"small": 0.7})
    assert judge(lost, FLOOR).mean > judge(found, FLOOR).mean
    assert value_of(lost) < value_of(found)


def test_order_does_not_matter():
    scores = scores_of(a_T1w_0={"x": 0.1, "y": 0.9}, b_T2w_0={"x": 0.3}, a_synthetic_0={"y": 0.6})
    shuffled = random.Random(1).sample(scores, len(scores))
    assert judge(shuffled, FLOOR) == judge(scores, FLOOR)


def test_the_first_and_the_better_replace_the_best_equals_do_not():
    verdict = judge(scores_of(a_T1w_0={"x": 0.0}), FLOOR)
    assert verdict.value == -1 and verdict.improves(-math.inf)
    assert verdict.improves(-1.01) and not verdict.improves(-1.0)


def test_without_scores_the_last_checkpoint_is_taken():
    verdict = judge([], FLOOR)
    assert math.isnan(verdict.value) and math.isnan(verdict.mean)
    assert verdict.improves(-math.inf) and verdict.improves(0.9)
    assert markdown_table(verdict) == []
    assert headline(verdict) == "nothing held out: the last checkpoint is taken"


def test_lines_to_read():
    verdict = judge(
        scores_of(
            new_T1w_0={"cortex": 0.75, "amygdala": 0.125},
            new_T1w_1={"cortex": 0.25},
            new_synthetic_0={"cortex": 0.5, "white": 0.75},
        ),
        FLOOR,
    )
    assert headline(verdict) == (
        "Dice 0.469 (new T1w 0.312, new synthetic 0.625); below 0.2: amygdala"
    )
    assert markdown_table(verdict) == [
        "| structure | new T1w (n = 2) | new synthetic (n = 1) |",
        "| --- | --: | --: |",
        "| amygdala | 0.125* |  |",
        "| cortex | 0.500 | 0.500 |",
        "| white |  | 0.750 |",
        "| **mean** | **0.312** | **0.625** |",
    ]
