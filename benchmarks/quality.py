"""How well the measures of quality tell good segmentations from bad ones.

    python benchmarks/quality.py RESULTS.tsv BIDS_DIR... [--limit N]

Every scan that has a reference in `derivatives/reference` is spoiled in many ways, each with a
severity drawn at random, and segmented; where a session has both contrasts they are merged as well.
The mean Dice over structures is compared with the measures. What RESULTS.tsv holds already is not
done again; --limit ends a run after so many scans.

The limits in `bids_synthseg/bids/quality.py` were set by hand with an eye on these results, so the
table tells how well the rule fits these scans; for others expect somewhat less. What a crop cuts
off counts as missed.
"""

import argparse
import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage, stats
from scipy.spatial.transform import Rotation

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.volume import Grid, Volume, resample
from bids_synthseg.bids.ages import Age, read_ages
from bids_synthseg.bids.growth import age_measures
from bids_synthseg.bids.quality import LIMITS, MEASURES, VERDICTS, judge
from bids_synthseg.bids.query import find_scan_groups
from bids_synthseg.bids.tables import format_table
from bids_synthseg.evaluation import Comparison, compare, comparison, find_references, mean
from bids_synthseg.learning.label_sets import read_source_labels
from bids_synthseg.nifti import read_labels, read_scan
from bids_synthseg.pipeline import Options, Segmenter
from bids_synthseg.segmentation.align import align
from bids_synthseg.segmentation.field import MergedField, MovedField, PosteriorField
from bids_synthseg.segmentation.labelling import label_volume
from bids_synthseg.segmentation.predict import Segmented, segment
from bids_synthseg.segmentation.quality import lowest, space_measures
from bids_synthseg.storage import write_text
from bids_synthseg.tsv import read_rows

GOOD_DICE = 0.7
SIGNS = {"predicted_dice": 1, "mirror_dice": 1, "agreement_dice": 1, "alignment_dice": 1}
"""Measures that are high where a result is good; of all others the high values are bad."""

Spoil = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def noise(data: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Rician noise of up to half of the brightest tissue."""
    sigma = 0.5 * severity * np.percentile(data, 99)
    real, imaginary = rng.normal(0, sigma, (2, *data.shape))
    return np.hypot(data + real, imaginary)


def slices(data: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Slices of up to ten voxels along one axis, interpolated."""
    axis, thick = rng.integers(3), 2 + int(8 * severity)
    means = ndimage.uniform_filter1d(data, thick, axis=axis)
    means = np.moveaxis(means, axis, 0)[thick // 2 :: thick]
    zoomed = ndimage.zoom(means, (data.shape[axis] / len(means), 1, 1), order=1)
    return np.moveaxis(zoomed, 0, axis)


def blur(data: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian of up to four voxels."""
    return ndimage.gaussian_filter(data, 4 * severity)


def bias(data: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth field that varies by up to a factor of fifty over the image."""
    coarse = rng.normal(0, 1, (4, 4, 4))
    field = ndimage.zoom(coarse, np.array(data.shape) / 4, order=3, mode="nearest")
    return data * np.exp(severity * math.log(50) * (field - field.min()) / np.ptp(field))


def ghost(data: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Two copies, shifted along one axis."""
    axis = rng.integers(3)
    step = int(data.shape[axis] * rng.uniform(0.1, 0.4))
    return data + severity * (np.roll(data, step, axis) + np.roll(data, -step, axis))


def motion(data: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Up to 70 % of the phase-encoding lines were acquired with the head up to 12 voxels away."""
    axis = rng.integers(3)
    lines = np.moveaxis(np.fft.fft(data, axis=axis), axis, 0)
    moved = np.roll(data, tuple(rng.integers(-12, 13, 3)), (0, 1, 2))
    others = np.moveaxis(np.fft.fft(moved, axis=axis), axis, 0)
    taken = rng.random(len(lines)) < 0.7 * severity
    lines[taken] = others[taken]
    return np.abs(np.fft.ifft(np.moveaxis(lines, 0, axis), axis=axis))


def invert(data: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """The contrast of the head is turned towards its negative."""
    top = np.percentile(data, 99.5)
    head = data > 0.02 * top
    return np.where(head, (1 - severity) * data + severity * np.maximum(top - data, 0), data)


def gamma(data: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Intensities to a power between 1 and 5 or 1 and 1/5."""
    top = data.max()
    return top * (data / top) ** (5 ** (severity * rng.choice((-1, 1))))


def hole(data: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """A black ball in the head, with a radius of up to a third of its size."""
    box = ndimage.find_objects((data > 0.1 * np.percentile(data, 99)).astype(int))[0]
    low, high = np.array([(one.start, one.stop) for one in box]).T
    centre = low + (high - low) * rng.uniform(0.3, 0.7, 3)
    away = np.stack(np.indices(data.shape), -1) - centre
    return np.where(np.linalg.norm(away, axis=-1) < severity * (high - low).max() / 3, 0, data)


def half(data: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """One side, a quarter to half of the image, is dark."""
    result = data.copy()
    result[: int(len(data) * (0.25 + 0.25 * severity))] *= 0.02
    return result


def ring(data: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Up to 30 % of the image on either side of one axis are zeros."""
    result = data.copy()
    view = np.moveaxis(result, rng.integers(3), 0)
    n = int(0.3 * severity * len(view))
    view[:n] = 0
    view[len(view) - n :] = 0
    return result


def nothing(data: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """The scan as it is."""
    return data


SPOILS: dict[str, Spoil] = {
    one.__name__: one
    for one in (nothing, noise, slices, blur, bias, ghost, motion, invert, gamma, hole, half, ring)
}
KINDS = (*SPOILS, "crop", "turn")


def crop(scan: Volume, severity: float, rng: np.random.Generator) -> Volume:
    """Up to 45 % of the image are cut off at one side."""
    axis = int(rng.integers(3))
    cut, size = int(0.45 * severity * scan.grid.shape[axis]), scan.grid.shape[axis]
    first, last = (cut, size) if rng.random() < 0.5 else (0, size - cut)
    start = np.where(np.arange(3) == axis, first, 0)
    affine = scan.grid.affine.copy()
    affine[:3, 3] = scan.grid.to_world(start)
    data = scan.data.take(np.arange(first, last), axis)
    return Volume(data, Grid(data.shape, affine))


def turned(volume: Volume, turn: np.ndarray) -> Volume:
    """The volume in a world that is turned by a matrix (3, 3)."""
    affine = volume.grid.affine.copy()
    affine[:3] = turn @ affine[:3]
    return Volume(volume.data, Grid(volume.grid.shape, affine))


def spoil(
    scans: Mapping[str, Volume], reference: Volume, kind: str, severity: float, seed: int
) -> tuple[dict[str, Volume], Volume]:
    """Scans and reference of a session; a turn of up to 60 degrees is one of the whole world."""
    rng = np.random.default_rng(seed)
    if kind == "turn":
        axis = rng.normal(0, 1, 3)
        rotation = Rotation.from_rotvec(math.radians(60 * severity) * axis / np.linalg.norm(axis))
        turn = rotation.as_matrix()
        return {name: turned(one, turn) for name, one in scans.items()}, turned(reference, turn)
    if kind == "crop":
        return {name: crop(one, severity, rng) for name, one in scans.items()}, reference
    return {
        name: Volume(SPOILS[kind](one.data.astype(np.float64), severity, rng).astype(np.float32),
                     one.grid)
        for name, one in scans.items()
    }, reference  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """A data set with references."""

    name: str
    scans: Mapping[str, Mapping[str, Path]]
    references: Mapping[str, Path]
    ages: Mapping[str, Age]
    match: Comparison

    @staticmethod
    def open(bids_dir: Path, table: LabelTable) -> "Bench":
        """Read what there is; images are read later."""
        folder = bids_dir / "derivatives" / "reference"
        labels = read_source_labels(folder / "dseg.tsv", LabelTable.default())
        groups = find_scan_groups(bids_dir)
        ages = read_ages(bids_dir, [group.key for group in groups])
        return Bench(
            bids_dir.name,
            {group.label: {scan.suffix: scan.path for scan in group.scans} for group in groups},
            dict(find_references(folder)),
            {group.label: ages[group.key] for group in groups},
            comparison(labels, table.ids.tolist(), table),
        )


def trial(
    bench: Bench, session: str, kind: str, segmenter: Segmenter
) -> Iterator[dict[str, object]]:
    """A row for every contrast of a session, and one for what they say together."""
    seed = zlib.crc32(f"{bench.name} {session} {kind}".encode())
    severity = float(np.random.default_rng(seed).uniform(0.15, 1))
    read = {name: read_scan(path).volume for name, path in bench.scans[session].items()}
    reference = read_labels(bench.references[session]).volume
    scans, reference = spoil(read, reference, kind, severity, seed)
    results = {
        name: segment(one, segmenter.model, segmenter.locator) for name, one in scans.items()
    }
    fields: dict[str, PosteriorField] = {name: one.field for name, one in results.items()}
    alone: dict[str, list[Segmented]] = {name: [one] for name, one in results.items()}
    alignment_dice = None
    if len(results) == 2:
        first, second = results.values()
        alignment = align(first, second)
        alignment_dice = alignment.dice
        if alignment.accepted:
            moved = MovedField(second.field, alignment.transform)
            fields["merged"], alone["merged"] = MergedField([first.field, moved]), [first, second]
    for name, field in fields.items():
        image = scans.get(name, next(iter(scans.values())))
        labelled = label_volume(field, image.grid)
        mirror_dice = lowest([one.mirror_dice for one in alone[name]], len(labelled.aseg_table))
        measures = space_measures(labelled, [image], mirror_dice)
        measures |= age_measures(bench.ages[session], measures["brain_ml"])
        measures |= {
            "slice_mm": float(image.grid.voxel_size_mm.max()),
            "alignment_dice": alignment_dice if name == "merged" else None,
        }
        notes = [note for one in alone[name] for note in one.warnings]
        there = resample(Volume(labelled.native, image.grid), reference.grid, order=0).data
        found = compare(there, reference.data, bench.match, reference.grid.voxel_size_mm.tolist())
        yield {
            "data_set": bench.name,
            "session": session,
            "image": name,
            "kind": kind,
            "severity": severity,
            "dice": mean(dice for dice, *_ in found.values()),
            "notes": "; ".join(notes),
            **{measure: measures[measure] for measure in MEASURES},
        }


def report(rows: Sequence[Mapping[str, str]]) -> str:
    """What the table of trials tells."""
    dice = np.array([float(row["dice"]) for row in rows])
    bad = dice < GOOD_DICE
    lines = [f"{len(rows)} results, {bad.sum()} with a Dice under {GOOD_DICE}", ""]
    lines += ["| measure | results | Spearman with Dice | ROC area |", "|---|--:|--:|--:|"]
    for name in dict.fromkeys(limit.measure for limit in LIMITS):
        value = np.array([number(row[name]) for row in rows])
        value = SIGNS.get(name, -1) * (np.abs(value) if name == "volume_z" else value)
        known = np.isfinite(value)
        if known.sum() > 2 and np.ptp(value[known]) > 0:
            rank = stats.spearmanr(value[known], dice[known]).statistic
            area = roc_area(-value[known], bad[known])
            lines.append(f"| {name} | {known.sum()} | {rank:+.2f} | {area:.2f} |")
    judged = [judged_again(row) for row in rows]
    order = np.array([VERDICTS.index(verdict) for verdict in judged])
    lines += ["", f"ROC area of the verdict: {roc_area(order, bad):.2f}", ""]
    edges = (0, 0.5, 0.6, GOOD_DICE, 0.75, 1.01)
    ranges = list(itertools.pairwise(edges))
    lines += ["| verdict | " + " | ".join(f"{a:g} to {min(b, 1):g}" for a, b in ranges) + " |"]
    lines += ["|---|" + "--:|" * len(ranges)]
    for number_, verdict in enumerate(VERDICTS):
        own = dice[order == number_]
        counts = [int(((own >= a) & (own < b)).sum()) for a, b in ranges]
        lines.append(f"| {verdict} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines)


def judged_again(row: Mapping[str, str]) -> str:
    """The verdict by the rule as it is now."""
    notes = [] if row["notes"] == "n/a" else row["notes"].split("; ")
    return judge({name: number(row[name]) for name in MEASURES}, notes).verdict


def number(cell: str) -> float:
    """A cell as a number, NaN where there is none."""
    return math.nan if cell == "n/a" else float(cell)


def roc_area(score: np.ndarray, bad: np.ndarray) -> float:
    """How often a bad result scores higher than a good one, ties counting half."""
    if bad.all() or not bad.any():
        return math.nan
    statistic = stats.mannwhitneyu(score[bad], score[~bad]).statistic
    return float(statistic / (bad.sum() * (~bad).sum()))


def main() -> None:
    """Run what is missing, write the table, print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("bids_dirs", type=Path, nargs="+")
    parser.add_argument("--limit", type=int, default=1000, help="sessions to segment now")
    options = parser.parse_args()
    segmenter = Segmenter.load(Options())
    benches = [Bench.open(folder, segmenter.table) for folder in options.bids_dirs]
    rows: list[Mapping] = list(read_rows(options.results))
    done = {(row["data_set"], row["session"], row["kind"]) for row in rows}
    tasks = [
        (bench, session, kind)
        for kind in KINDS
        for bench in benches
        for session in bench.references
        if (bench.name, session, kind) not in done
    ]
    # Shuffled, so that a run that is cut short has seen something of everything.
    for place in np.random.default_rng(1).permutation(len(tasks))[: options.limit]:
        rows += trial(*tasks[place], segmenter)
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        write_text(options.results, format_table(columns))
    print(report(read_rows(options.results)))


if __name__ == "__main__":
    main()
