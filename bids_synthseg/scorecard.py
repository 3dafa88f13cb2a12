"""Numbers of the accuracy report: one long table of all of them, and short ones for people.

The short tables are markdown and hold nothing but what the long one does, and means of it.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bids_synthseg.bids.tables import format_table
from bids_synthseg.evaluation import COLUMNS, mean

ALL = "all"
"""Subject of numbers that were taken over the voxels of all subjects."""

BETWEEN = "T1w and T2w"
"""Image of numbers that compare the two contrasts alone with each other."""

HEADLINES = {
    "white matter": ("cerebral white matter", "White-Matter"),
    "cortex": ("cerebral cortex", "Cortical-Gray-Matter"),
}
"""Columns of the overview, and what the label schemes call the structure."""


@dataclass(frozen=True)
class Number:
    """`section` of the report; `image`: contrast ("T1w", "T2w", "merged") or name of an image;
    `structure`, or "" for a number of the whole image; `measure` with its unit."""

    section: str
    subject: str
    image: str
    structure: str
    measure: str
    value: float


def numbers_text(numbers: Sequence[Number]) -> str:
    """All numbers as tab-separated text; n/a for a measure without an answer."""
    columns: dict[str, list] = {
        name: [getattr(number, name) for number in numbers] for name in Number.__dataclass_fields__
    }
    # A structure that was not found at all is infinitely far away: that is an answer.
    columns["value"] = ["inf" if math.isinf(value) else value for value in columns["value"]]
    return format_table(columns)


def values(numbers: Iterable[Number], measure: str, **where: str) -> list[float]:
    """The values of a measure, of the numbers whose other fields are as in `where`."""
    return [
        number.value
        for number in numbers
        if number.measure == measure
        and all(getattr(number, name) == value for name, value in where.items())
    ]


def distinct(numbers: Iterable[Number], field: str) -> list[str]:
    """What a field says, each once, in order of first appearance."""
    return list(dict.fromkeys(getattr(number, field) for number in numbers))


def shown(value: float, digits: int, sign: bool = False) -> str:
    """A number for people; "-" where there is none."""
    if math.isnan(value):
        return "-"
    return f"{value + 0.0:{'+' if sign else ''}.{digits}f}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with its first column to the left and all others to the right, in equal widths."""
    lines = [list(header), *map(list, rows)]
    widths = [max(3, *(len(line[k]) for line in lines)) for k in range(len(header))]

    def row(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if k else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * (width - 1) + ":" if k else "-" * width for k, width in enumerate(widths)]
    return "\n".join([row(lines[0]), row(rule), *map(row, lines[1:])])


MEASURES = (
    ("Dice", "dice", 3),
    ("HD95 mm", "hd95_mm", 1),
    ("volume error %", "volume_error_percent", 1),
)


def structure_table(numbers: Sequence[Number], section: str) -> str:
    """Structures by measure and contrast, each the mean over sessions; last row: their mean."""
    measures = {measure for _, measure, _ in MEASURES}
    own = [n for n in numbers if n.section == section and n.measure in measures]
    images = [name for name in COLUMNS if name in distinct(own, "image")]
    structures = distinct(own, "structure")
    header = ["structure", *(f"{title} {name}" for title, _, _ in MEASURES for name in images)]
    cells: dict[str, list[float]] = {structure: [] for structure in structures}
    for _, measure, _ in MEASURES:
        for image in images:
            for name in structures:
                found = values(own, measure, image=image, structure=name)
                cells[name].append(mean(found))
    cells["mean"] = [mean(column) for column in zip(*cells.values(), strict=True)]
    digits = [digit for _, _, digit in MEASURES for _ in images]
    rows = [
        [name, *(shown(value, digit) for value, digit in zip(row, digits, strict=True))]
        for name, row in cells.items()
    ]
    return markdown(header, rows)


def session_table(numbers: Sequence[Number], section: str) -> str:
    """Sessions by contrast, Dice as the mean over structures, and what merging brought."""
    own = [n for n in numbers if n.section == section and n.subject != ALL]
    images = [name for name in COLUMNS if values(own, "dice", image=name)]
    over = [
        (title, measure)
        for title, measure in (
            ("merged - better", "dice_over_better"),
            ("merged - worse", "dice_over_worse"),
        )
        if values(own, measure)
    ]
    rows: dict[str, list[float]] = {}
    for subject in distinct(own, "subject"):
        dices = [mean(values(own, "dice", subject=subject, image=name)) for name in images]
        rows[subject] = dices + [mean(values(own, name, subject=subject)) for _, name in over]
    rows["mean"] = [mean(column) for column in zip(*rows.values(), strict=True)]
    header = ["session", *images, *(title for title, _ in over)]
    signs = [False] * len(images) + [True] * len(over)
    return markdown(
        header,
        [
            [name, *(shown(v, 3, sign) for v, sign in zip(row, signs, strict=True))]
            for name, row in rows.items()
        ],
    )


def overview_table(numbers: Sequence[Number], data_of_section: Mapping[str, str]) -> str:
    """Sections by contrast: sessions, Dice as the mean over structures, and of the largest ones;
    `data_of_section`: what each section is called."""
    rows = []
    for section, data in data_of_section.items():
        for image in (*COLUMNS, BETWEEN):
            own = [n for n in numbers if (n.section, n.image) == (section, image)]
            structures = distinct((n for n in own if n.measure == "dice"), "structure")
            dices = {name: mean(values(own, "dice", structure=name)) for name in structures}
            if not dices:
                continue
            largest = [mean(dices[n] for n in names if n in dices) for names in HEADLINES.values()]
            n_sessions = len(distinct((n for n in own if n.measure == "dice"), "subject"))
            shares = (mean(dices.values()), *largest)
            rows.append([data, image, str(n_sessions), *(shown(value, 3) for value in shares)])
    return markdown(("data", "contrast", "sessions", "mean Dice", *HEADLINES), rows)


def agreement_table(numbers: Sequence[Number], section: str) -> str:
    """Structures by session, Dice of T1w alone with T2w alone; last row: their mean."""
    own = [n for n in numbers if (n.section, n.image) == (section, BETWEEN)]
    sessions = distinct(own, "subject")
    cells = {
        structure: [mean(values(own, "dice", structure=structure, subject=s)) for s in sessions]
        for structure in distinct(own, "structure")
    }
    cells["mean"] = [mean(column) for column in zip(*cells.values(), strict=True)]
    rows = [[name, *(shown(value, 3) for value in row)] for name, row in cells.items()]
    return markdown(("structure", *sessions), rows)


def empty_table(numbers: Sequence[Number], section: str) -> str:
    """Scans by what was labelled where they are empty; last row: the mean."""
    measures = {"CSF ml": "csf_where_empty_ml", "any label ml": "labels_where_empty_ml"}
    own = [n for n in numbers if n.section == section and n.measure in measures.values()]
    cells: dict[str, list[float]] = {}
    for subject, image in dict.fromkeys((number.subject, number.image) for number in own):
        place = {"subject": subject, "image": image}
        cells[f"{subject} {image}"] = [mean(values(own, m, **place)) for m in measures.values()]
    cells["mean"] = [mean(column) for column in zip(*cells.values(), strict=True)]
    rows = [[name, *(shown(value, 1) for value in row)] for name, row in cells.items()]
    return markdown(("scan", *measures), rows)


def calibration_table(numbers: Sequence[Number], section: str) -> str:
    """Contrasts by calibration error: of all voxels, and the range of the sessions."""
    rows = []
    for image in COLUMNS:
        own = [n for n in numbers if (n.section, n.image, n.structure) == (section, image, "")]
        pooled = [n for n in own if n.subject == ALL]
        if not pooled:
            continue
        single = values([n for n in own if n.subject != ALL], "ece")
        confidence, accuracy, missed = (
            mean(values(pooled, name)) for name in ("mean_confidence", "accuracy", "missed_percent")
        )
        rows.append(
            [
                image,
                shown(mean(values(pooled, "ece")), 3),
                f"{shown(min(single), 3)} to {shown(max(single), 3)}",
                shown(confidence, 3),
                shown(accuracy, 3),
                shown(missed, 2),
            ]
        )
    header = ("contrast", "ECE", "per session", "confidence", "accuracy", "missed %")
    return markdown(header, rows)


def contrast_table(numbers: Sequence[Number]) -> str:
    """One row for the heads in synthetic contrasts: Dice, failures, and what the locator saw."""
    own = [n for n in numbers if n.section == "contrasts"]
    images = distinct(own, "image")
    dices = [mean(values(own, "dice", image=name)) for name in images]
    failed, flagged = (np.array(values(own, name)) > 0 for name in ("failed", "flagged"))
    header = ("heads", "mean Dice", "median", "worst", "failed", "failed unsaid", "flagged",
              "locator found", "its Dice", "its worst box error %")  # fmt: skip
    row = [
        str(len(images)),
        shown(mean(dices), 3),
        shown(float(np.median(dices)), 3),
        shown(min(dices), 3),
        str(int(failed.sum())),
        str(int((failed & ~flagged).sum())),
        str(int(flagged.sum())),
        str(int(sum(values(own, "locator_found")))),
        shown(mean(values(own, "locator_dice")), 3),
        shown(max(values(own, "locator_box_error_percent"), default=math.nan), 1),
    ]
    return markdown(header, [row])


def contrast_structures(numbers: Sequence[Number]) -> str:
    """Structures by Dice over the heads in synthetic contrasts: mean and worst."""
    own = [n for n in numbers if n.section == "contrasts" and n.measure == "dice"]
    rows = []
    for name in distinct(own, "structure"):
        found = values(own, "dice", structure=name)
        rows.append([name, shown(mean(found), 3), shown(min(found), 3)])
    return markdown(("structure", "mean Dice", "worst"), rows)


def volume_table(numbers: Sequence[Number]) -> str:
    """Ages by true volume and by the error of each contrast; last row: mean unsigned error."""
    own = [n for n in numbers if n.section == "volumes"]
    contrasts = distinct(own, "image")
    rows = []
    for age in distinct(own, "subject"):
        errors = [
            shown(mean(values(own, "error_percent", subject=age, image=name)), 1, True)
            for name in contrasts
        ]
        rows.append([age, shown(mean(values(own, "true_ml", subject=age)), 0), *errors])
    sizes = [mean(map(abs, values(own, "error_percent", image=name))) for name in contrasts]
    rows.append(["mean unsigned", "", *(shown(value, 1) for value in sizes)])
    return markdown(("age", "true ml", *(f"{name} error %" for name in contrasts)), rows)


def locator_table(numbers: Sequence[Number], folders: Collection[str]) -> str:
    """Scans of these folders by what the locator alone saw, and the brain's volume after the whole
    segmentation."""
    own = [n for n in numbers if n.section == "locator" and n.subject in folders]

    def cell(place: tuple[str, str], measure: str, write: Callable[[float], str]) -> str:
        found = values(own, measure, subject=place[0], image=place[1])
        return write(found[0]) if found else "-"

    rows = []
    for image in dict.fromkeys((number.subject, number.image) for number in own):
        rows.append(
            [
                "/".join(image),
                cell(image, "locator_found", lambda v: "found" if v else "fallback"),
                cell(image, "locator_dice", lambda v: shown(v, 3)),
                cell(image, "locator_box_error_percent", lambda v: shown(v, 1)),
                cell(image, "locator_box_mm", lambda v: shown(v, 0)),
                cell(image, "true_ml", lambda v: shown(v, 0)),
                cell(image, "predicted_ml", lambda v: shown(v, 0)),
                cell(image, "flagged", lambda v: "yes" if v else "no"),
            ]
        )
    header = ("scan", "locator", "Dice", "box error %", "box mm", "mask ml", "segmented ml",
              "flagged")  # fmt: skip
    return markdown(header, rows)
