"""Network sizes: what each costs and what it learns in equal time, one row per configuration.

    python benchmarks/sizes.py MAPS VALIDATION OUT MINUTES CONFIG.toml ...

MAPS is a pack (bids_synthseg_tools pack) or a BIDS folder of label maps, VALIDATION a data set with
scans and reference labels. Every configuration trains for MINUTES in OUT/<its name>; what has been
trained there already is not trained again. Seconds are those of one pass over the working grid of
the configuration, the median of five. Dice is that of the network alone, with the brain's box from
the reference.
"""

import statistics
import sys
import time
from pathlib import Path

import torch

from bids_synthseg.learning.config import read_config
from bids_synthseg.learning.gather import Sources
from bids_synthseg.learning.train import run_training
from bids_synthseg.models.unet import NetworkConfig, UNet

PASSES = 5


def seconds_per_pass(config: NetworkConfig, shape: tuple[int, int, int]) -> float:
    """Median time of one forward pass."""
    network = UNet(config).eval().to(memory_format=torch.channels_last_3d)
    image = torch.randn(1, config.channels_in, *shape)
    times = []
    with torch.inference_mode():
        for _ in range(PASSES + 1):
            started = time.perf_counter()
            network(image)
            times.append(time.perf_counter() - started)
    return statistics.median(times[1:])  # the first pass makes the plans of the others


def last_scores(metrics: Path) -> tuple[int, dict[str, float]]:
    """Steps, and the last validation of a run."""
    rows = [line.split("\t") for line in metrics.read_text().splitlines()[1:]]
    steps = max(int(step) for step, name, _ in rows if name != "loss")
    return steps, {name: float(value) for step, name, value in rows if step == str(steps)}


def main(maps: Path, validation: Path, out: Path, minutes: float, configs: list[Path]) -> None:
    """Run what has not been run, print the table."""
    rows = []
    for path in configs:
        config, folder = read_config(path), out / path.stem
        if not (folder / "model.safetensors").is_file():
            sources = Sources([maps], [validation])
            run_training(sources, folder, config, max_minutes=minutes, progress=lambda line: None)
        steps, scores = last_scores(folder / "metrics.tsv")
        parameters = sum(one.numel() for one in UNet(config.network).parameters())
        rows.append((path.stem, parameters, seconds_per_pass(config.network, config.shape), steps))
        names = [name for name in scores if name != "loss"]
        if len(rows) == 1:
            print(f"{minutes:g} minutes each, {torch.get_num_threads()} threads")
            print(f"| size | parameters | s per pass | steps | {' | '.join(names)} |")
            print(f"|---|--:|--:|--:|{'--:|' * len(names)}")
        cells = " | ".join(f"{scores[name]:.3f}" for name in names)
        name, parameters, seconds, steps = rows[-1]
        print(f"| {name} | {parameters:,} | {seconds:.2f} | {steps} | {cells} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 6:
        print("not run: it takes MAPS VALIDATION OUT MINUTES CONFIG.toml ...")
    else:
        main(*map(Path, sys.argv[1:4]), float(sys.argv[4]), list(map(Path, sys.argv[5:])))
