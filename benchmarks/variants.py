"""What mirrored pass, temperature and a second model bring and cost: one table.

    python benchmarks/variants.py BIDS_DIR [MODEL.safetensors]

BIDS_DIR is a raw data set of sessions with a T1w and a T2w and, in derivatives/reference, their
label maps. Dice is the mean over structures and sessions of what the App would label; calibration
error as in `make accuracy`, of the merged posteriors. "On the same grid" is a mirrored pass that is
not moved against the plain one; "four passes" are plain and mirrored on both grids. A temperature T
turns a probability p into p^(1/T), scaled to sum to 1. With MODEL its posteriors are averaged with
those of the shipped one; it has the same working grid.
Seconds are those of the network on one scan, as many passes as it takes.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bids_synthseg.anatomy.calibration import Reliability
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.volume import Volume
from bids_synthseg.bids.query import find_scan_groups
from bids_synthseg.evaluation import Comparison, compare, comparison, find_references, mean
from bids_synthseg.learning.label_sets import read_source_labels
from bids_synthseg.models.checkpoint import Model, load_model
from bids_synthseg.nifti import read_labels, read_scan
from bids_synthseg.pipeline import Options, Segmenter
from bids_synthseg.resources import available_cpus
from bids_synthseg.segmentation.align import Alignment, align
from bids_synthseg.segmentation.field import GridField, MergedField, MovedField, PosteriorField
from bids_synthseg.segmentation.labelling import label_volume
from bids_synthseg.segmentation.predict import (
    TEMPERATURE,
    Segmented,
    at_temperature,
    posteriors_of,
    segment,
    twin_of,
)
from bids_synthseg.trials import field_reliability

TEMPERATURES = (0.7, 1.0, 1.5)


@dataclass(frozen=True, eq=False)
class Passes:
    """What each pass of each model says of one scan, all (C, X, Y, Z) on the grid of the plain one,
    and the seconds that one pass took. `unmoved`: mirrored on the grid of the plain pass; `moved`:
    plain on that of the mirrored one."""

    plain: torch.Tensor
    mirrored: torch.Tensor
    unmoved: torch.Tensor
    moved: torch.Tensor
    seconds: float
    others: tuple[torch.Tensor, ...] = ()


def mean_of_both(passes: Passes) -> torch.Tensor:
    """Plain and mirrored, as the App averages them."""
    return (passes.plain + passes.mirrored) / 2


def at(temperature: float) -> Callable[[Passes], torch.Tensor]:
    """The mean of both, sharper below 1 and softer above."""
    return lambda passes: at_temperature(mean_of_both(passes), temperature)


def on_the_same_grid(passes: Passes) -> torch.Tensor:
    """As shipped, but for the mirrored pass, which is not moved."""
    return at_temperature((passes.plain + passes.unmoved) / 2, TEMPERATURE)


def four_passes(passes: Passes) -> torch.Tensor:
    """Plain and mirrored on both grids."""
    both = mean_of_both(passes)
    return at_temperature((2 * both + passes.unmoved + passes.moved) / 4, TEMPERATURE)


def with_another(passes: Passes) -> torch.Tensor:
    """The mean of both passes of both models."""
    return at_temperature((2 * mean_of_both(passes) + sum(passes.others)) / 4, TEMPERATURE)


def variants(second: bool) -> dict[str, tuple[Callable[[Passes], torch.Tensor], int]]:
    """By name: the posteriors from the passes, and how many passes that takes."""
    found = {"as shipped": (at(TEMPERATURE), 2), "without mirrored pass": (lambda p: p.plain, 1)}
    found |= {"mirrored on the same grid": (on_the_same_grid, 2), "four passes": (four_passes, 4)}
    found |= {f"temperature {t:g}": (at(t), 2) for t in TEMPERATURES}
    return found | ({"averaged with the other model": (with_another, 4)} if second else {})


def passes_of(scan: Volume, segmenter: Segmenter, other: Model | None) -> tuple[Segmented, Passes]:
    """One scan through everything that a variant may need."""
    model = segmenter.model
    result = segment(scan, model, segmenter.locator, mirror=False)
    canonical, _ = scan.canonical()
    plain = result.field
    started = time.perf_counter()
    unmoved = posteriors_of(result.image, model, mirrored=True).data
    seconds = time.perf_counter() - started
    mirrored = twin_of(canonical, canonical.grid, result.box, plain, model).data
    moved = twin_of(canonical, canonical.grid, result.box, plain, model, mirrored=False).data
    others = ()
    if other is not None:
        theirs = posteriors_of(result.image, other)
        others = (theirs.data, twin_of(canonical, canonical.grid, result.box, theirs, other).data)
    return result, Passes(plain.data, mirrored, unmoved, moved, seconds, others)


def fields_of(
    results: Sequence[Segmented], data: Sequence[torch.Tensor], alignment: Alignment
) -> dict[str, PosteriorField]:
    """T1w, T2w and merged posteriors of a session."""
    first, second = (
        GridField(values, result.field.grid, result.field.table)
        for values, result in zip(data, results, strict=True)
    )
    merged = MergedField([first, MovedField(second, alignment.transform)])
    return {"T1w": first, "T2w": second, "merged": merged}


def dice_of(field: PosteriorField, reference: Volume, match: Comparison) -> float:
    """Mean over structures of what the App would label."""
    labels = label_volume(field, reference.grid).native
    found = compare(labels, reference.data, match, reference.grid.voxel_size_mm.tolist())
    return mean(score for score, *_ in found.values())


def main(bids_dir: Path, other: Path | None = None) -> None:
    """Print the table."""
    segmenter = Segmenter.load(Options(n_cpus=available_cpus()))
    second = load_model(other) if other else None
    folder = bids_dir / "derivatives/reference"
    references = dict(find_references(folder))
    labels = read_source_labels(folder / "dseg.tsv", LabelTable.default())
    match = comparison(labels, segmenter.table.ids.tolist(), segmenter.table)
    chosen = variants(second is not None)
    scores: dict[tuple[str, str], list[float]] = {}
    errors = {name: Reliability.of_nothing() for name in chosen}
    seconds: list[float] = []
    groups = [g for g in find_scan_groups(bids_dir) if g.label in references and len(g.scans) == 2]
    for group in groups:
        reference = read_labels(references[group.label]).volume
        scans = [read_scan(scan.path).volume for scan in group.scans]
        both = [passes_of(scan, segmenter, second) for scan in scans]
        results, passes = zip(*both, strict=True)
        seconds += [one.seconds for one in passes]
        whole = [
            replace(result, field=replace(result.field, data=at(TEMPERATURE)(one)))
            for result, one in both
        ]
        alignment = align(*whole)
        for name, (posteriors, _) in chosen.items():
            fields = fields_of(results, [posteriors(one) for one in passes], alignment)
            # T2w's own grid may differ from that of the reference, which lies on the T1w.
            fields["T2w"] = MovedField(fields["T2w"], alignment.transform)
            for column, field in fields.items():
                scores.setdefault((name, column), []).append(dice_of(field, reference, match))
            errors[name] += field_reliability(fields["merged"], reference, match)[0]
    print(f"{len(groups)} sessions of {bids_dir.name}, {available_cpus()} cores")
    print("| variant | T1w | T2w | merged | calibration error | s per scan |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, (_, n_passes) in chosen.items():
        cells = [f"{mean(scores[name, column]):.3f}" for column in ("T1w", "T2w", "merged")]
        cost = n_passes * mean(seconds)
        print(f"| {name} | {' | '.join(cells)} | {errors[name].ece:.3f} | {cost:.1f} |")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print("not run: it takes BIDS_DIR [MODEL.safetensors]")
    else:
        main(*map(Path, sys.argv[1:3]))
