"""Synthetic images per second at 128^3, and what of a training step they take.

    python benchmarks/generator.py [VOLUMES] [--compile]

On the CPU: the generator with default effects against a plain affine-only sampling, and peak
memory. Where there is a GPU: the generator alone, the network alone (a step on a sample that is
ready) and both, as training runs them; --compile has torch.compile fuse the network there.
"""

import argparse
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import nibabel as nib
import numpy as np
import torch

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.learning import step as training
from bids_synthseg.learning.config import TrainConfig
from bids_synthseg.learning.datasets import load_maps
from bids_synthseg.learning.distributed import Team
from bids_synthseg.learning.maps import TrainingMap
from bids_synthseg.learning.start import first_state
from bids_synthseg.models.heads import Head
from bids_synthseg.models.unet import NetworkConfig, Pyramid
from bids_synthseg.phantom import phantom_labels
from bids_synthseg.synthesis.deformation import nearest_index, sampling_coordinates
from bids_synthseg.synthesis.recipe import SourceMap, SynthesisConfig, draw, render

SHAPE = (128, 128, 128)
VOXEL_MM = 0.9
WARM_UP = 3
GPU_VOLUMES, GPU_STEPS = 100, 60
FINEST = (16, 24)
"""Features of the network's finest level, which takes most of the time."""


def phantom_map() -> tuple[TrainingMap, LabelTable]:
    """A newborn phantom, read back the way training reads any label map."""
    labels = phantom_labels()
    with TemporaryDirectory() as folder:
        anat = Path(folder) / "sub-phantom" / "anat"
        anat.mkdir(parents=True)
        image = nib.Nifti1Image(labels.data.astype(np.int16), labels.grid.affine)
        image.to_filename(anat / "sub-phantom_dseg.nii.gz")
        rows = "".join(f"{r.index}\t{r.name}\t{r.index}\n" for r in LabelTable.default().rows)
        (Path(folder) / "dseg.tsv").write_text("index\tname\tmodel_labels\n" + rows)
        maps, table = load_maps([Path(folder)])
        return maps[0], table


def seconds_each(work: Callable[[int], object], repeats: int) -> float:
    """Wall-clock seconds of work(k), averaged over `repeats` of them after some to warm up."""
    for k in range(WARM_UP):
        work(k)
    _wait()
    start = time.perf_counter()
    for k in range(repeats):
        work(k)
    _wait()
    return (time.perf_counter() - start) / repeats


def _wait() -> None:
    """A GPU answers before it has done its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def sample(source: SourceMap, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and classes of a sample with default effects."""
    rng = np.random.default_rng(k)
    return render(source, draw(source, SynthesisConfig(), SHAPE, VOXEL_MM, rng))


def on_cpu(source: SourceMap, volumes: int) -> None:
    """Print the generator's table."""
    rng = np.random.default_rng(0)
    drawn = draw(source, SynthesisConfig(), SHAPE, VOXEL_MM, rng)
    affine, means = torch.from_numpy(drawn.affine).float(), torch.from_numpy(drawn.means)

    def bare(_: int) -> torch.Tensor:
        coordinates = sampling_coordinates(affine, torch.zeros(3, 2, 2, 2), SHAPE)
        index = nearest_index(coordinates, source.classes.shape).clamp(min=0).long()
        return means[source.classes.reshape(-1)[index].long()]

    full_s = seconds_each(lambda k: sample(source, k), volumes)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    bare_s = seconds_each(bare, volumes)
    print(f"Generator, 128^3, CPU, {torch.get_num_threads()} threads, {volumes} volumes")
    print("step\tseconds per volume\tvolumes per second\tagainst bare sampling")
    print(f"affine sampling and means only\t{bare_s:.3f}\t{1 / bare_s:.2f}\t1.0")
    print(f"all effects\t{full_s:.3f}\t{1 / full_s:.2f}\t{full_s / bare_s:.1f}")
    print(f"peak memory of the process: {peak_mb:.0f} MB")


def step_seconds(
    material: training.Material, config: TrainConfig, device: torch.device
) -> tuple[float, float]:
    """Seconds of a training step on a sample that is ready, and with the making of the sample."""
    state = first_state(config, material.head, device, print)
    forward: torch.nn.Module = Pyramid(state.network)
    forward = torch.compile(forward) if config.compile else forward
    team = Team(0, 1, device)

    def step(_: int) -> object:
        return training.train_step(state, forward, material, config, team)

    both_s = seconds_each(step, GPU_STEPS)
    ready = training.make_sample(material, config, 0, 0)
    with mock.patch.object(training, "make_sample", return_value=ready):
        return seconds_each(step, GPU_STEPS), both_s


def on_gpu(one: TrainingMap, table: LabelTable, device: torch.device, compiled: bool) -> None:
    """Print what generator and network do alone and together, a sample per step."""
    one = replace(one, source=one.source.to(device))
    generator_s = seconds_each(lambda k: sample(one.source, k), GPU_VOLUMES)
    how = "compiled" if compiled else "not compiled"
    print(f"Training, 128^3, {torch.cuda.get_device_name()}, a sample per step, network {how}")
    print(f"generator alone: {1 / generator_s:.1f} volumes per second")
    print("features\tnetwork alone, steps per second\tboth\tgenerator's share of a step")
    head = Head(table, "sided")
    material = training.Material([one], np.ones(1), (), head)
    for finest in FINEST:
        features = (finest, *NetworkConfig().features[1:])
        network = NetworkConfig(features=features, channels_out=head.n_channels)
        config = TrainConfig(
            shape=SHAPE, voxel_mm=VOXEL_MM, batch=1, network=network, compile=compiled
        )
        network_s, both_s = step_seconds(material, config, device)
        widths = "-".join(map(str, features))
        share = max(0.0, 1 - network_s / both_s)
        print(f"{widths}\t{1 / network_s:.1f}\t{1 / both_s:.1f}\t{share:.0%}")
    print(f"peak memory of the GPU: {torch.cuda.max_memory_allocated() / 2**20:.0f} MB")


def main() -> None:
    """Measure, print the tables."""
    parser = argparse.ArgumentParser(description="Speed of the generator and of training.")
    parser.add_argument("volumes", metavar="VOLUMES", nargs="?", type=int, default=12)
    parser.add_argument("--compile", action="store_true", help="fuse the network on the GPU")
    options = parser.parse_args()
    one, table = phantom_map()
    on_cpu(one.source, options.volumes)
    if torch.cuda.is_available():
        on_gpu(one, table, torch.device("cuda"), options.compile)
    else:
        print("no CUDA device: training steps were not timed")


if __name__ == "__main__":
    main()
