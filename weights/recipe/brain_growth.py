"""Fit the curve of brain volume by age that plausibility is judged by.

    python weights/recipe/brain_growth.py LABELS BRAIN_VOLUME_BY_AGE.tsv > brain_growth.tsv

LABELS holds one BIDS folder of label maps per source; the other table has `age_days` since birth
and `brain_mask_ml`. Volumes are those of a brain mask: tissue, ventricles and the fluid around the
brain. Left out are maps without that fluid (infant-templates), of malformed brains
(fetal-spina-bifida) and without age (adults).

The logarithm of volume is a polynomial of the logarithm of age, so that deviations are ratios. The
spread is the same at every age; its variance is that of single subjects (atlases are averages) plus
that of the sources' means, which draw the border of the brain differently. Printed is the curve
alone, no measurement of any subject.
"""

import csv
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

BIRTH_WEEKS = 40.0
DEGREE = 5
SOURCES = {"fetal-chn": 4, "fetal-wu2021": None, "neonatal-serag": 4, "perinatal-andrea": 4}
"""Data set -> label outside of the brain, if it has one."""
BY_AGE = "by age"
SINGLE_SUBJECTS = (BY_AGE, "perinatal-andrea")


def rows(path: Path) -> list[dict[str, str]]:
    """Rows of a tab-separated table."""
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def map_volumes(source: Path, outside: int | None) -> list[tuple[float, float]]:
    """(age in weeks, ml) of every map of a data set."""
    ages = {
        row["participant_id"]: row["age_weeks_pma"] for row in rows(source / "participants.tsv")
    }
    found = []
    for path in sorted(source.glob("sub-*/anat/*_dseg.nii.gz")):
        image = nib.load(path)
        labels = np.asanyarray(image.dataobj)
        voxel_ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000
        brain = (labels > 0) & (labels != (outside or 0))
        found.append((float(ages[path.parts[-3]]), float(brain.sum()) * voxel_ml))
    return found


def main(labels: Path, by_age: Path) -> None:
    """Print the curve."""
    by_age_ml = [
        (BIRTH_WEEKS + float(row["age_days"]) / 7, float(row["brain_mask_ml"]))
        for row in rows(by_age)
    ]
    maps = {name: map_volumes(labels / name, outside) for name, outside in SOURCES.items()}
    points = np.array([*by_age_ml, *(point for found in maps.values() for point in found)])
    age, log_ml = np.log(points[:, 0]), np.log(points[:, 1])
    curve = np.polynomial.Polynomial.fit(age, log_ml, DEGREE)
    off = {
        name: np.array([np.log(ml) - curve(np.log(weeks)) for weeks, ml in found])
        for name, found in {BY_AGE: by_age_ml, **maps}.items()
    }
    for name, ratios in off.items():
        print(f"{name}: mean {ratios.mean():+.3f}, sd {ratios.std():.3f}", file=sys.stderr)
    single = np.concatenate([off[name] for name in SINGLE_SUBJECTS])
    spread = np.hypot(single.std(), np.std([ratios.mean() for ratios in off.values()]))
    print("age_weeks_pma\tbrain_ml\tsd_log")
    ages = np.geomspace(points[:, 0].min(), points[:, 0].max(), 60)
    for weeks in ages:
        print(f"{weeks:.2f}\t{np.exp(curve(np.log(weeks))):.1f}\t{spread:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
