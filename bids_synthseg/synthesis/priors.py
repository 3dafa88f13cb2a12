"""How bright each label was in real scans: priors of a contrast, and the table they stand in.

A label has a centre (median intensity) and a spread (SD inside the label), each with mean and SD
between subjects, on a scale where 0 and 1 are the 2nd and 98th percentile of a scan; after
Infant-SynthSeg (Shang et al. 2022). `learning.estimate` makes such tables from scans.

Five are shipped in data/priors. Estimated: "newborn", T1w and T2w of the seven newborns of 37 to 41
weeks among the templates of Infant-SynthSeg; "fetal", T2w of 25 population averages of 21 to 37
weeks in three atlases, one of them of spina bifida; "adult", T1w of the 15 adults of MICCAI 2012;
"months-3" and "months-12", T1w and T2w of an average of infants each, without bias field, labels by
this program, SDs between subjects taken from newborns. Set by hand, after what is usual: the T2w of
"adult" (its `subjects` are 0). Ages in between are interpolated (`ContrastConfig.prior_ages`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import numpy as np

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.errors import BadData, InputMissing
from bids_synthseg.tsv import read_rows

COMPONENT_OF = {21: 2, 61: 41, 170: 16}
"""Second components of cerebral white matter and of the brain stem, as Infant-SynthSeg has them:
no labels of the model, but bright in their own way. Component -> the label it is part of."""

CENTRE_SD_FLOOR, SPREAD_FLOOR, SPREAD_SD_FLOOR = 0.01, 0.005, 0.002
"""Nothing in a scan is sharper than this; few subjects may look as if it were."""

_NUMBERS = ("centre_mean", "centre_sd", "spread_mean", "spread_sd")
_COLUMNS = ("contrast", "label", "name", *_NUMBERS, "subjects")


@dataclass(frozen=True)
class Priors:
    """One contrast, "T1w" or "T2w". All (L,): `labels` (ids of the model and of COMPONENT_OF), mean
    and SD between subjects of `centre` and `spread` on a scale of 0 to 1, number of `subjects`.

    Raises ValueError where numbers are not finite, or an SD or spread is not above 0.
    """

    contrast: str
    labels: np.ndarray
    centre_mean: np.ndarray
    centre_sd: np.ndarray
    spread_mean: np.ndarray
    spread_sd: np.ndarray
    subjects: np.ndarray

    def __post_init__(self) -> None:
        if len(np.unique(self.labels)) != len(self.labels):
            raise ValueError(f"{self.contrast}: a label stands twice")
        widths = self._values[:, 1:]
        for label, row, width in zip(self.labels, self._values, widths, strict=True):
            if not np.isfinite(row).all() or width.min() <= 0 or not 0 <= row[0] <= 1:
                raise ValueError(
                    f"{self.contrast}, label {label}: centre_mean must lie in 0..1, centre_sd, "
                    "spread_mean and spread_sd above 0"
                )

    @cached_property
    def _values(self) -> np.ndarray:
        """(L, 4) in the order of _NUMBERS."""
        columns = [np.asarray(getattr(self, name), dtype=np.float64) for name in _NUMBERS]
        return np.stack(columns, axis=1)

    def of(self, labels: np.ndarray) -> np.ndarray:
        """(K, 4) centre mean and SD, spread mean and SD of labels (K,), NaN where there is none.

        A label that has none of its own takes that of the other side, then of what it is a
        component of, then the mean of the labels of its BIDS tissue.
        """
        known = dict(zip(self.labels.tolist(), self._values, strict=True))
        missing = np.full(len(_NUMBERS), np.nan)
        rows = []
        for label in labels.tolist():
            alike = [known[kin] for kin in _kin(label) if kin in known][:1]
            tissue = _tissue(label)
            if not alike and tissue is not None:
                alike = [row for other, row in known.items() if _tissue(other) == tissue]
            rows.append(np.mean(alike, axis=0) if alike else missing)
        return np.stack(rows)


def _kin(label: int) -> list[int]:
    """Labels of the same structure, nearest first."""
    table = LabelTable.default()
    whole = COMPONENT_OF.get(label, label)
    if whole not in table.ids:
        return [label]
    mirror = table.rows[table.channel_of(whole)].mirror
    parts = [part for part, of in COMPONENT_OF.items() if of == mirror and label != whole]
    return [label, *parts, whole, mirror]


def _tissue(label: int) -> int | None:
    """BIDS number of a label's tissue; None for background and unknown labels."""
    table = LabelTable.default()
    whole = COMPONENT_OF.get(label, label)
    if whole <= 0 or whole not in table.ids:
        return None
    return table.rows[table.channel_of(whole)].mapping


def tables() -> tuple[str, ...]:
    """Names of the tables that are shipped in data/priors."""
    found = (files("bids_synthseg") / "data" / "priors").iterdir()
    return tuple(sorted(file.name[:-4] for file in found if file.name.endswith(".tsv")))


def read_priors(name_or_path: str | Path) -> dict[str, Priors]:
    """Contrast -> priors, of a table in data/priors by name or of a file.

    Raises InputMissing where neither exists, BadData naming file and fault.
    """
    path = Path(name_or_path)
    if str(name_or_path) in tables():
        path = files("bids_synthseg") / "data" / "priors" / f"{name_or_path}.tsv"
    if not path.is_file():
        raise InputMissing(
            f"{name_or_path}: no such table of priors; give a TSV file, or one of "
            f"{', '.join(tables())}"
        )
    rows = read_rows(path, *_COLUMNS)
    try:
        contrasts = dict.fromkeys(row["contrast"] for row in rows)
        found = {
            name: _parse(name, [r for r in rows if r["contrast"] == name]) for name in contrasts
        }
    except ValueError as problem:
        raise BadData(f"{path}: not a table of priors ({problem})") from problem
    if not found:
        raise BadData(f"{path}: a table of priors without rows; estimate it again")
    return found


def _parse(contrast: str, rows: list[dict[str, str]]) -> Priors:
    whole = {name: np.array([int(row[name]) for row in rows]) for name in ("label", "subjects")}
    numbers = {name: np.array([float(row[name]) for row in rows]) for name in _NUMBERS}
    return Priors(contrast, whole["label"], subjects=whole["subjects"], **numbers)


def priors_text(priors: Mapping[str, Priors]) -> str:
    """The table that `read_priors` reads; numbers with four decimals."""
    names = {row.index: row.name for row in LabelTable.default().rows}
    lines = ["\t".join(_COLUMNS)]
    for one in priors.values():
        for label, values, subjects in zip(one.labels, one._values, one.subjects, strict=True):
            name = names.get(label) or f"{names[COMPONENT_OF[label]]}-B"
            numbers = [f"{value:.4f}" for value in values]
            lines.append("\t".join([one.contrast, str(label), name, *numbers, str(subjects)]))
    return "\n".join(lines) + "\n"
