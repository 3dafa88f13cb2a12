"""What parts of the training design are worth: validation Dice after equal steps, one table.

    python benchmarks/ablation.py MAPS VALIDATION OUT [STEPS]

MAPS is a pack (bids_synthseg_tools pack) or a BIDS folder of label maps, VALIDATION a data set with
scans and reference labels. Every variant starts from scratch on the grid of half resolution of the
preset `default`, with the same seed; runs lie in OUT and go on where they stopped. Dice is that of
the network alone, with the brain's box from the reference, mean over structures and scans.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.learning.config import TrainConfig, read_config
from bids_synthseg.learning.datasets import load_maps
from bids_synthseg.learning.gather import Sources
from bids_synthseg.learning.maps import TrainingMap
from bids_synthseg.learning.pack import write_pack
from bids_synthseg.learning.start import stage_of
from bids_synthseg.learning.train import run_training
from bids_synthseg.synthesis.head import HeadConfig

NO_HEAD = HeadConfig(shells=0, csf_only=0, borrowed=0, blobs=0)


def base(steps: int) -> TrainConfig:
    """The coarse stage of the preset `default`."""
    whole = read_config("default")
    coarse = stage_of(replace(whole, coarse_steps=steps + 1), 0)
    return replace(coarse, steps=steps, coarse_steps=0, validate_minutes=1e9, held_out=0.0)


def variants(config: TrainConfig) -> dict[str, tuple[TrainConfig, bool]]:
    """By name: the configuration, and whether maps with sets of labels take part."""
    fixed = replace(config, voxel_mm=2.0, shape=(48, 64, 56))
    bare = replace(config.synthesis, head=NO_HEAD, keep_surroundings=0.0)
    return {
        "brain-sized grid, heads, all sources": (config, True),
        "fixed grid of 2 mm (painted at 1 mm)": (fixed, True),
        "no head around the brain": (replace(config, synthesis=bare), True),
        "no label-set sources (fetal, DrawEM)": (config, False),
    }


def pools_structures(one: TrainingMap, table: LabelTable) -> bool:
    """Whether most voxels of a map's brain have labels that may be the left or the right of
    something: such a label stands for a whole set, as "white matter" of both sides does."""
    sides = np.array([row.side for row in table.rows])
    sets = one.sets[: len(one.source.tissues)]
    both = sets[:, sides == "left"].any(1) & sets[:, sides == "right"].any(1)
    voxels = np.bincount(one.source.classes.numpy().ravel(), minlength=len(sets))
    voxels[sets[:, 0]] = 0
    return bool(voxels[both].sum() > voxels.sum() / 2)


def main(maps: Path, validation: Path, out: Path, steps: int = 400) -> None:
    """Run what has not been run, print the table."""
    found, table = load_maps([maps])
    plain = [one for one in found if not pools_structures(one, table)]
    write_pack(out / "plain.pack", plain, table)
    print(f"{len(found)} label maps, {len(plain)} of them label every structure; {steps} steps")
    print("| variant | T1w | T2w |")
    print("|---|---|---|")
    for number, (name, (config, all_maps)) in enumerate(variants(base(steps)).items()):
        folder = out / f"variant-{number}"
        sources = Sources([maps if all_maps else out / "plain.pack"], [validation])
        run_training(sources, folder, config, progress=lambda line: None)
        rows = [line.split("\t") for line in (folder / "metrics.tsv").read_text().splitlines()]
        dice = {row[1].split(" ")[-1]: float(row[2]) for row in rows if row[0] == str(steps)}
        print(f"| {name} | {dice['T1w']:.3f} | {dice['T2w']:.3f} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        print("not run: it takes MAPS VALIDATION OUT [STEPS], and an hour")
    else:
        main(*map(Path, sys.argv[1:4]), *map(int, sys.argv[4:]))
