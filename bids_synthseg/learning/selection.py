"""Which checkpoint is best, from the scores of held-out scans and maps.

The rule: a group is a data set and a kind of image (T1w, T2w, synthetic). In a group, each
structure counts by its mean Dice over the images, and each group by the mean of its structures;
what is compared is the mean of the groups, so that neither many small labels nor a large data set
decides alone. A structure whose Dice d lies below the floor f counts as d - (1 - d / f): down to -1
when it is lost. So a checkpoint that gives up a small structure is not chosen for a little gain
elsewhere, and one that has never found it loses nothing against others of that kind.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bids_synthseg.learning.validation import Score


@dataclass(frozen=True)
class Group:
    """The images of one data set and kind: how many, and the mean Dice of each structure."""

    dataset: str
    kind: str
    n_images: int
    structures: dict[str, float]

    @property
    def mean(self) -> float:
        """Mean Dice over the structures."""
        return float(np.mean(list(self.structures.values())))

    def lost(self, floor: float) -> tuple[str, ...]:
        """The structures below a floor."""
        return tuple(name for name, dice in self.structures.items() if dice < floor)

    def value(self, floor: float) -> float:
        """The mean with what lies below the floor counted as the rule says."""
        return float(np.mean([_counted(dice, floor) for dice in self.structures.values()]))


@dataclass(frozen=True)
class Verdict:
    """One checkpoint: its groups, by name; `value` is what is compared, NaN where nothing was
    held out."""

    groups: tuple[Group, ...]
    floor: float

    @property
    def value(self) -> float:
        """Mean of the groups' values."""
        return _mean([group.value(self.floor) for group in self.groups])

    @property
    def mean(self) -> float:
        """Mean Dice of the groups, without regard to the floor."""
        return _mean([group.mean for group in self.groups])

    def improves(self, best: float) -> bool:
        """Whether this checkpoint is to replace one of value `best`; begin with minus infinity.

        Where nothing was held out the latest is as good as any.
        """
        return not self.groups or self.value > best


def judge(scores: Sequence[Score], floor: float) -> Verdict:
    """The verdict on a checkpoint from `validation.validate`'s scores, in any order."""
    dice_of: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    images: dict[tuple[str, str], set[str]] = defaultdict(set)
    for score in scores:
        dice_of[score.dataset, score.kind][score.structure].append(score.dice)
        images[score.dataset, score.kind].add(score.name)
    groups = (
        Group(*key, len(images[key]), {s: float(np.mean(d)) for s, d in sorted(found.items())})
        for key, found in sorted(dice_of.items())
    )
    return Verdict(tuple(groups), floor)


def headline(verdict: Verdict) -> str:
    """One line for a log."""
    if not verdict.groups:
        return "nothing held out: the last checkpoint is taken"
    parts = ", ".join(f"{group.dataset} {group.kind} {group.mean:.3f}" for group in verdict.groups)
    lost = sorted({name for group in verdict.groups for name in group.lost(verdict.floor)})
    tail = f"; below {verdict.floor:g}: {', '.join(lost)}" if lost else ""
    return f"Dice {verdict.mean:.3f} ({parts}){tail}"


def markdown_table(verdict: Verdict) -> list[str]:
    """Lines of a table: a column per group, a row per structure, their means last; values below
    the floor are starred."""
    if not verdict.groups:
        return []
    names = dict.fromkeys(name for group in verdict.groups for name in sorted(group.structures))
    header = [f"{g.dataset} {g.kind} (n = {g.n_images})" for g in verdict.groups]
    rows = [["structure", *header], ["---", *["--:"] * len(header)]]
    for name in names:
        cells = [_cell(group.structures.get(name), verdict.floor) for group in verdict.groups]
        rows.append([name, *cells])
    rows.append(["**mean**", *(f"**{group.mean:.3f}**" for group in verdict.groups)])
    return [f"| {' | '.join(row)} |" for row in rows]


def _counted(dice: float, floor: float) -> float:
    return dice if dice >= floor else dice - (1 - dice / floor)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _cell(dice: float | None, floor: float) -> str:
    if dice is None:
        return ""
    return f"{dice:.3f}{'*' if dice < floor else ''}"
