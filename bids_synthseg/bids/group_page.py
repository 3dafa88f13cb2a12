"""The group page: one HTML file that needs no network and no other file to be read.

jinja2 fills data/templates/group.html and escapes all that comes from a data set.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bids_synthseg import __version__
from bids_synthseg.bids.ages import Age
from bids_synthseg.bids.outliers import LIMIT_SD, SMALLEST_GROUP, Trend, fit_trend
from bids_synthseg.bids.pages import template
from bids_synthseg.bids.results import Result
from bids_synthseg.bids.sessions import Key

KINDS = {
    "not done": "no result, or not that of the last run",
    "fail": "the result is most likely of no use",
    "check": "look at the report before the result is used",
    "not judged": "made by a version that did not judge",
    "pass": "nothing was found",
}
"""What to do about a session, the most urgent first: every session is of one kind."""


@dataclass(frozen=True)
class Scale:
    """What an age is counted in: in the picture, in the table, and out of an Age."""

    title: str
    heading: str
    of: Callable[[Age], float | None]


# A session is drawn on the first scale on which its age is known: for fetuses and newborns, who are
# all of about the same age since birth, time since conception tells more.
SCALES = (
    Scale("Age in weeks since the last menstrual period", "age, weeks pma", lambda a: a.weeks_pma),
    Scale("Age in months since birth", "age, months", lambda a: a.months),
)
_WIDTH, _HEIGHT = 860, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 16, 52
_TICKS = 8
_LETTER, _LINE, _GAP = 6.5, 13.0, 9.0  # of a name in the picture; pixels, about


@dataclass(frozen=True)
class Row:
    """One session in the table of all; `kind` is one of KINDS, `reasons` tell why."""

    result: Result
    kind: str
    reasons: tuple[str, ...]
    predicted_dice: float | None

    @staticmethod
    def of(result: Result) -> "Row":
        """The row of a session."""
        quality = result.quality
        kind = quality.verdict if quality else "not judged"
        said = [result.message] if result.message else []
        said += [*(quality.reasons if quality else ()), *result.warnings]
        return Row(
            result,
            kind if result.status == "done" else "not done",
            tuple(dict.fromkeys(said)),  # warnings may be among the reasons
            quality.measures.get("predicted_dice") if quality else None,
        )

    @property
    def urgency(self) -> int:
        """Place of its kind among KINDS."""
        return list(KINDS).index(self.kind)


@dataclass(frozen=True)
class Axis:
    """Linear from values (low, high) to pixels (start, end), with round ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    @staticmethod
    def around(values: np.ndarray, start: float, end: float, *, zero: bool = False) -> "Axis":
        """An axis that holds all values, and zero if asked for, with a margin."""
        low, high = float(values.min()), float(values.max())
        margin = 0.04 * (high - low) or max(1.0, 0.05 * abs(high))
        low, high = (0.0 if zero else max(0.0, low - margin)), high + margin
        step = _round_step((high - low) / _TICKS)
        first = np.ceil(low / step)
        ticks = (np.arange(first, np.floor(high / step) + 1) * step).round(6)
        return Axis(low, high, start, end, tuple(map(float, ticks)))

    def at(self, value: float) -> float:
        """Pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


@dataclass(frozen=True)
class Point:
    """One session in the picture; `ratio`: its volume by that of the curve, None without one."""

    result: Result
    age: float
    brain_ml: float
    ratio: float | None = None
    outlier: bool = False

    @property
    def off(self) -> str:
        """Deviation from the curve in percent."""
        return "" if self.ratio is None else f"{100 * (self.ratio - 1):+.0f} %"


@dataclass(frozen=True)
class Tag:
    """The name of a session beside its point: `anchor` is the end of the text at pixel x, y."""

    result: Result
    x: float
    y: float
    anchor: str

    @property
    def box(self) -> tuple[float, float]:
        """Pixels from left to right."""
        length = _LETTER * len(self.result.label)
        return (self.x, self.x + length) if self.anchor == "start" else (self.x - length, self.x)

    def hides(self, other: "Tag") -> bool:
        """Whether two names overlap."""
        (left, right), (others_left, others_right) = self.box, other.box
        return abs(self.y - other.y) < _LINE and left < others_right and others_left < right


@dataclass(frozen=True)
class Scatter:
    """A picture of sessions whose age is known on the scale `title`.

    curve: the points of an SVG polyline, "" where there is none.
    """

    title: str
    points: tuple[Point, ...]
    x: Axis
    y: Axis
    curve: str

    @property
    def outliers(self) -> list[Point]:
        """The farthest off first."""
        found = [point for point in self.points if point.outlier]
        return sorted(found, key=lambda p: abs(np.log(p.ratio or 1.0)), reverse=True)

    @property
    def tags(self) -> list[Tag]:
        """Names of outliers, the farthest first, as long as they do not hide each other."""
        placed: list[Tag] = []
        for point in self.outliers:
            x, y = self.x.at(point.age), self.y.at(point.brain_ml)
            inward = -1 if x > 0.75 * _WIDTH else 1
            tag = Tag(point.result, x + inward * _GAP, y + 4, "start" if inward > 0 else "end")
            if not any(tag.hides(other) for other in placed):
                placed.append(tag)
        return placed


def page(title: str, results: Sequence[Result], ages: dict[Key, Age]) -> str:
    """The page about all sessions as HTML."""
    scatters = draw_scatters(results, ages)
    rows = sorted(map(Row.of, results), key=lambda row: row.urgency)
    return template("group.html").render(
        title=title,
        version=__version__,
        rows=rows,
        of_kind={kind: [row for row in rows if row.kind == kind] for kind in KINDS},
        kinds=KINDS,
        ages=ages,
        scales=[s for s in SCALES if any(s.of(age) is not None for age in ages.values())],
        scatters=scatters,
        points={point.result.key: point for scatter in scatters for point in scatter.points},
        size={"width": _WIDTH, "height": _HEIGHT},
        smallest_group=SMALLEST_GROUP,
        limit_sd=LIMIT_SD,
    )


def draw_scatters(results: Sequence[Result], ages: dict[Key, Age]) -> list[Scatter]:
    """One picture for every scale of age on which a session with volumes is drawn."""
    chosen: dict[str, list[tuple[Result, float, float]]] = {scale.title: [] for scale in SCALES}
    for result in results:
        brain_mm3 = result.brain_mm3(result.space)
        known = ((scale.title, scale.of(ages[result.key])) for scale in SCALES)
        title, age = next((one for one in known if one[1] is not None), (None, None))
        if title is not None and age is not None and brain_mm3 is not None:
            chosen[title].append((result, age, brain_mm3 / 1000))
    return [_scatter(title, found) for title, found in chosen.items() if found]


def _scatter(title: str, found: list[tuple[Result, float, float]]) -> Scatter:
    ages, brains_ml = (np.array([one[k] for one in found]) for k in (1, 2))
    trend = fit_trend(ages, brains_ml)
    x = Axis.around(ages, _LEFT, _WIDTH - _RIGHT)
    y = Axis.around(brains_ml, _HEIGHT - _BOTTOM, _TOP, zero=True)
    if trend is None:
        return Scatter(title, tuple(Point(*one) for one in found), x, y, "")
    points = tuple(
        Point(*one, ratio=float(ratio), outlier=bool(outlier))
        for one, ratio, outlier in zip(found, trend.ratio, trend.outlier, strict=True)
    )
    return Scatter(title, points, x, y, _polyline(trend, x, y))


def _polyline(trend: Trend, x: Axis, y: Axis) -> str:
    pairs = zip(trend.ages, trend.volumes_ml, strict=True)
    return " ".join(f"{x.at(age)},{y.at(volume)}" for age, volume in pairs)


def _round_step(rough: float) -> float:
    """The next of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(rough))
    return float(next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9)))
