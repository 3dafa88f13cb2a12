"""Speed and memory of this tree against another commit, paired in one run: one table.

    python benchmarks/engine.py --against COMMIT [--session BIDS_DIR SUBJECT] [--maps MAPS]

Measured are a pass of the shipped network over its grid (fp32), a step of training on MAPS (a pack
or a folder of label maps; default: a phantom), and a session from the command line (default: the
phantom newborn, T1w and T2w). The commit is unpacked into a temporary folder; every measurement is
a process of its own that sees one of both trees with its own weights. They take turns, several
rounds; times are medians, memory is the most that any process held.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "weights" / "recipe" / "11-finer-grid.toml"
"""Settings of the training step; network and grid are those of each tree's weights."""
PASSES, STEPS = 4, 4
"""Of one process; the first one is not counted."""


# Here torch is imported by the processes that measure alone: what its parent holds counts to the
# memory of a child.


def pass_seconds(threads: int) -> list[float]:
    """Of passes of the shipped network over its own grid, as the App makes them."""
    import numpy as np

    from bids_synthseg.anatomy.volume import Grid, Volume
    from bids_synthseg.pipeline import Options, Segmenter
    from bids_synthseg.segmentation.predict import posteriors_of

    model = Segmenter.load(Options(device="cpu", n_cpus=threads)).model
    noise = np.random.default_rng(0).random(model.shape, dtype=np.float32)
    image = Volume(noise, Grid(model.shape, np.eye(4)))
    return [timed(lambda: posteriors_of(image, model)) for _ in range(PASSES)][1:]


def step_seconds(threads: int, precision: str, maps: Path) -> list[float]:
    """Of the steps of a training run that starts from the shipped weights: draw, render, network,
    loss, gradient, Adam."""
    from dataclasses import replace

    import torch

    from bids_synthseg.learning import train
    from bids_synthseg.learning.config import read_config
    from bids_synthseg.learning.gather import Sources

    torch.set_num_threads(threads)
    recipe = read_config(RECIPE)
    config = replace(
        recipe,
        init_from="shipped",
        keep_network=True,
        precision=precision,
        steps=STEPS,
        batch=1,
        held_out=0.0,
        sampling=type(recipe.sampling)(),
    )
    seconds: list[float] = []
    step = train.train_step

    def timed_step(*arguments: object) -> object:
        results: list[object] = []
        seconds.append(timed(lambda: results.append(step(*arguments))))
        return results[0]

    train.train_step, train.preview_sheet = timed_step, lambda *_, **__: None
    with TemporaryDirectory() as out:
        train.run_training(Sources([maps]), Path(out), config, progress=lambda _: None)
    return seconds[1:]


def timed(work: Callable[[], object]) -> float:
    """Wall-clock seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Measurement:
    """One row: `arguments` of the process, this script's own, or the App's where `app` is set; an
    argument "{out}" stands for a fresh folder."""

    name: str
    arguments: tuple[str, ...]
    app: bool = False


@dataclass
class Tree:
    """One side: `path` is where `import bids_synthseg` finds it; results by measurement."""

    name: str
    path: Path
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak_mb: dict[str, float] = field(default_factory=dict)

    def measure(self, measurement: Measurement) -> None:
        """Run one process, and add its times."""
        with TemporaryDirectory() as out:
            start = [sys.executable, *(("-m", "bids_synthseg") if measurement.app else (__file__,))]
            call = [*start, *(word.format(out=out) for word in measurement.arguments)]
            begun = time.perf_counter()
            # The folder of the process comes first where modules are looked for.
            with subprocess.Popen(
                call,
                cwd=self.path,
                env=os.environ | {"PYTHONPATH": str(self.path)},
                stdout=subprocess.PIPE,
                text=True,
            ) as process:
                printed = process.stdout.read() if process.stdout else ""
                _, status, usage = os.wait4(process.pid, 0)
                whole = [time.perf_counter() - begun]
                process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise SystemExit(f"{measurement.name}: failed in {self.name}")
        found = whole if measurement.app else json.loads(printed.splitlines()[-1])
        self.seconds.setdefault(measurement.name, []).extend(found)
        peak = max(self.peak_mb.get(measurement.name, 0.0), usage.ru_maxrss / 1024)
        self.peak_mb[measurement.name] = peak


def unpacked(commit: str, folder: Path) -> Path:
    """The files of a commit, in `folder`."""
    archive = folder.with_suffix(".tar")
    call = ["git", "-C", ROOT, "archive", "--output", archive, commit]
    if subprocess.run(call).returncode:
        raise SystemExit(f"--against {commit}: no commit of {ROOT}; give one that `git log` shows")
    shutil.unpack_archive(archive, folder)
    return folder


def installed(source: Path, folder: Path) -> Path:
    """A folder to import a tree's package from, laid out as setup.cfg installs it: links to its
    parts, and the weights as one of them."""
    package = folder / "bids_synthseg"
    package.mkdir(parents=True)
    for part in (source / "bids_synthseg").iterdir():
        if part.name != "weights":
            (package / part.name).symlink_to(part)
    (package / "weights").symlink_to(source / "weights")
    return folder


def write_demo_data(folder: Path) -> None:
    """A BIDS data set of a phantom newborn (and an adult), with its reference labels."""
    code = (
        "import pathlib, sys; from bids_synthseg.demo import write_demo;"
        "write_demo(pathlib.Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def measurements(
    bids_dir: Path, subject: str, maps: Path, threads: int, only: str
) -> list[Measurement]:
    """All of them, or those whose names begin with `only`."""
    step = ("--maps", str(maps.resolve()), "--threads", str(threads), "--measure")
    session = (str(bids_dir.resolve()), "{out}", "participant", "--participant-label", subject)
    every = [
        *(
            Measurement(f"pass, threads: {n}", ("--threads", str(n), "--measure", "pass"))
            for n in dict.fromkeys((threads, 1))
        ),
        *(Measurement(f"step, {p}", (*step, p)) for p in ("fp32", "bf16")),
        Measurement(f"session of {subject}", (*session, "--n-cpus", str(threads)), app=True),
    ]
    return [measurement for measurement in every if measurement.name.startswith(only)]


def main(options: argparse.Namespace) -> None:
    """Measure both trees in turn, print the table."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        demo = folder / "demo"
        if not (options.maps and options.session):
            write_demo_data(demo)
        bids_dir, subject = options.session or (demo, "infant")
        maps = options.maps or demo / "derivatives" / "reference"
        every = measurements(Path(bids_dir), subject, maps, options.threads, options.only)
        trees = [
            Tree("this tree", installed(ROOT, folder / "this")),
            Tree(
                options.against,
                installed(unpacked(options.against, folder / "unpacked"), folder / "other"),
            ),
        ]
        for _ in range(options.rounds):
            for measurement in every:
                for tree in trees:
                    tree.measure(measurement)
    print(
        f"This tree against {options.against}, {options.rounds} rounds, {options.threads} threads"
    )
    print("what\ts here\ts there\ttimes faster\tMB here\tMB there\tratio")
    here, there = trees
    for name in (measurement.name for measurement in every):
        new, old = (statistics.median(tree.seconds[name]) for tree in trees)
        memory, before = here.peak_mb[name], there.peak_mb[name]
        print(
            f"{name}\t{new:.2f}\t{old:.2f}\t{old / new:.2f}"
            f"\t{memory:.0f}\t{before:.0f}\t{memory / before:.2f}"
        )


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Speed and memory against another commit.")
    parser.add_argument("--against", metavar="COMMIT")
    parser.add_argument("--session", nargs=2, metavar=("BIDS_DIR", "SUBJECT"))
    parser.add_argument("--maps", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("pass", "step", "session"), default="")
    parser.add_argument("--measure", choices=("pass", "fp32", "bf16"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    given = parsed()
    if given.measure:
        alone = given.measure == "pass"
        maps = () if alone else (given.measure, given.maps)
        print(json.dumps((pass_seconds if alone else step_seconds)(given.threads, *maps)))
    elif given.against:
        main(given)
    else:
        print("not run: it takes --against COMMIT, a commit to compare with")
