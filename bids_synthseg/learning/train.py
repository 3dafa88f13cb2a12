"""The training loop, top to bottom: sample, draw, render, network, loss, step, save.

Everything random about a sample comes from (seed, step, number in the batch), so a resumed run
sees the samples it would have seen, and nothing but weights, optimiser and step need saving.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from bids_synthseg import __version__
from bids_synthseg.anatomy.labels import Label, LabelTable
from bids_synthseg.errors import BadData, InputMissing
from bids_synthseg.learning.config import TrainConfig
from bids_synthseg.learning.datasets import TrainingMap, load_dataset
from bids_synthseg.learning.loss import label_set_loss
from bids_synthseg.models.checkpoint import Model, load_model, save_model
from bids_synthseg.models.heads import Head
from bids_synthseg.models.inputs import network_input
from bids_synthseg.models.unet import UNet, grow
from bids_synthseg.storage import atomic_file
from bids_synthseg.synthesis.recipe import draw, render

log = logging.getLogger(__name__)

BRAIN_TABLE = LabelTable(
    (
        Label(0, "Background", "BG", "#000000", 0, "background", "midline", 0, 0),
        Label(1, "Brain", "BRAIN", "#cd3e4e", 1, "brain", "midline", 1, 1),
    )
)
"""What a locator tells apart."""


@dataclass
class State:
    """All that changes during a run."""

    network: UNet
    average: UNet
    optimiser: torch.optim.Optimizer
    step: int = 0


def load_maps(folders: Sequence[Path], target: str) -> tuple[list[TrainingMap], LabelTable]:
    """The maps of all data sets, and the table they are expressed in."""
    table = LabelTable.default()
    maps = [one for folder in folders for one in load_dataset(folder, table)]
    if target == "brain":
        # Brain is what cannot be background; "background or CSF" stays either.
        maps = [
            TrainingMap(m.name, m.dataset, m.source, np.stack([m.sets[:, 0], m.sets[:, 1:].any(1)], 1))
            for m in maps
        ]
        table = BRAIN_TABLE
    return maps, table


def new_state(config: TrainConfig, head: Head, device: torch.device) -> State:
    """Fresh weights, or those of a coarser model grown by one level."""
    torch.manual_seed(config.seed)
    wanted = config.network
    if wanted.channels_out != head.n_channels:
        raise BadData(
            f"network.channels_out is {wanted.channels_out}, the labels need {head.n_channels}"
        )
    if config.grow_from:
        coarse = load_model(Path(config.grow_from))
        network = grow(coarse.network, wanted.features[0], wanted.convs[0])
        if network.config != wanted:
            raise BadData(
                f"{config.grow_from}: levels {coarse.network.config.features} are not those of "
                f"the configuration below its finest, {wanted.features[1:]}"
            )
    else:
        network = UNet(wanted)
    network = network.to(device)
    average = UNet(wanted).to(device)
    average.load_state_dict(network.state_dict())
    return State(network, average, torch.optim.Adam(network.parameters(), lr=config.rate))


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then half a cosine down to `rate_end` of the rate."""
    if step < config.warm_up:
        return config.rate * (step + 1) / config.warm_up
    progress = min(1.0, (step - config.warm_up) / max(1, config.steps - config.warm_up))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.rate * (config.rate_end + (1 - config.rate_end) * cosine)


def probabilities_of(maps: Sequence[TrainingMap], weights: dict[str, float]) -> np.ndarray:
    """(N,) chance of each map: a data set's share is divided evenly among its maps."""
    names = [m.dataset for m in maps]
    shares = np.array([weights.get(name, 1.0) / names.count(name) for name in names])
    if shares.sum() <= 0:
        raise BadData("weights: every data set has weight 0; give at least one a share")
    return shares / shares.sum()


def train_step(
    state: State,
    maps: Sequence[TrainingMap],
    chances: np.ndarray,
    config: TrainConfig,
    head: Head,
    device: torch.device,
) -> float:
    """One optimiser step on `config.batch` samples; returns the loss."""
    images, targets = [], []
    for number in range(config.batch):
        rng = np.random.default_rng([config.seed, state.step, number])
        chosen = maps[rng.choice(len(maps), p=chances)]
        drawn = draw(chosen.source, config.synthesis, config.shape, config.fill, rng, config.pool)
        image, classes = render(chosen.source, drawn)
        images.append(network_input(image))
        targets.append((classes, chosen.sets))
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(config, state.step)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = state.network(torch.cat(images))
    losses = [
        label_set_loss(logits[k : k + 1], classes, sets, head)
        for k, (classes, sets) in enumerate(targets)
    ]
    loss = torch.stack(losses).mean()
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(state.network.parameters(), config.clip)
    if torch.isfinite(norm):
        state.optimiser.step()
    state.step += 1
    decay = min(config.average, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        for mean, new in zip(
            state.average.parameters(), state.network.parameters(), strict=True
        ):
            mean.lerp_(new, 1 - decay)
    return float(loss.detach())


def save_state(path: Path, state: State) -> None:
    """Everything an exact resume needs."""
    with atomic_file(path) as stream:
        torch.save(
            {
                "step": state.step,
                "network": state.network.state_dict(),
                "average": state.average.state_dict(),
                "optimiser": state.optimiser.state_dict(),
            },
            stream,
        )


def restore_state(path: Path, state: State) -> None:
    """Load what `save_state` wrote. Raises BadData for a broken or foreign checkpoint."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        state.network.load_state_dict(saved["network"])
        state.average.load_state_dict(saved["average"])
        state.optimiser.load_state_dict(saved["optimiser"])
        state.step = int(saved["step"])
    except (RuntimeError, KeyError, ValueError, EOFError, OSError) as problem:
        reason = str(problem).splitlines()[0]
        raise BadData(f"{path}: not a checkpoint of this run ({reason}); move it away") from problem


@torch.no_grad()
def validation_dice(
    network: UNet, maps: Sequence[TrainingMap], config: TrainConfig, head: Head
) -> dict[str, float]:
    """Mean Dice over the classes of each real scan beside a map, on the working grid.

    The brain's box is taken from the map, so this judges the network alone.
    """
    still = undeformed(config)
    scores = {}
    for one in maps:
        for image_number in range(len(one.source.images)):
            drawn = draw(one.source, still, config.shape, config.fill, np.random.default_rng(0))
            drawn = type(drawn)(**{**vars(drawn), "image": image_number})
            image, classes = render(one.source, drawn)
            labels = head.probabilities(network(network_input(image)).float())[0].argmax(0)
            scores[f"{one.name}/{image_number}"] = _mean_dice(labels, classes, one.sets)
    return scores


def undeformed(config: TrainConfig):
    """The generator's configuration with every effect but the paired scan switched off."""
    from bids_synthseg.synthesis.acquisition import AcquisitionConfig
    from bids_synthseg.synthesis.deformation import DeformationConfig
    from bids_synthseg.synthesis.head import HeadConfig
    from bids_synthseg.synthesis.recipe import SynthesisConfig

    return SynthesisConfig(
        flip=0.0,
        real=1.0,
        keep_surroundings=1.0,
        deformation=DeformationConfig(0, 0, 0, 0, 0),
        acquisition=AcquisitionConfig(0, 5, 0, 0, 1, 0, 1, 1),
        head=HeadConfig(0, 0, 0),
    )


def _mean_dice(labels: torch.Tensor, classes: torch.Tensor, sets: np.ndarray) -> float:
    groups, group = np.unique(sets, axis=0, return_inverse=True)
    target = torch.from_numpy(group.ravel())[classes]
    scores = []
    for k, members in enumerate(groups):
        truth = target == k
        if members[0] or not truth.any():
            continue
        found = torch.from_numpy(members)[labels]
        scores.append(float(2 * (found & truth).sum() / (found.sum() + truth.sum())))
    return float(np.mean(scores))


def run_training(
    folders: Sequence[Path],
    out: Path,
    config: TrainConfig,
    *,
    validation: Sequence[Path] = (),
    device: str = "cpu",
    max_minutes: float = math.inf,
    progress: Callable[[str], None] = log.info,
) -> Path:
    """Train, or go on where `out` holds a checkpoint of the same configuration.

    Writes `model.safetensors` (averaged weights), `state.pt`, `config.json` and `metrics.tsv`
    into `out` and returns the model's path.
    """
    if not folders:
        raise InputMissing("no label data sets given; name at least one folder with dseg.tsv")
    started = time.monotonic()
    target_device = torch.device(device)
    maps, table = load_maps(folders, config.target)
    checks, _ = load_maps(validation, config.target)
    chances = probabilities_of(maps, config.weights)
    head = Head(table, config.head)
    progress(f"{len(maps)} label maps, {len(checks)} for validation, {len(table)} labels")
    state = new_state(config, head, target_device)
    out.mkdir(parents=True, exist_ok=True)
    settings = json.dumps(asdict(config), indent=1, sort_keys=True)
    if (out / "state.pt").exists():
        if (out / "config.json").read_text(encoding="utf-8") != settings:
            raise BadData(f"{out}: holds a run of another configuration; choose another folder")
        restore_state(out / "state.pt", state)
        progress(f"resumed at step {state.step}")
    (out / "config.json").write_text(settings, encoding="utf-8")
    saved = validated = reported = time.monotonic()
    first_step, recent = state.step, []
    while state.step < config.steps:
        recent.append(train_step(state, maps, chances, config, head, target_device))
        now = time.monotonic()
        over = now - started > 60 * max_minutes
        last = state.step == config.steps or over
        if now - reported > 30 or last:
            rate = (state.step - first_step) / (now - started)
            progress(
                f"step {state.step}/{config.steps} loss {np.mean(recent):.4f} "
                f"{rate:.2f} steps/s, {(config.steps - state.step) / rate / 60:.0f} min left"
            )
            _record(out, state.step, "loss", float(np.mean(recent)))
            reported, recent = now, []
        if now - validated > 60 * config.validate_minutes or last:
            for name, score in validation_dice(state.average, checks, config, head).items():
                _record(out, state.step, name, score)
                progress(f"step {state.step} {name} Dice {score:.3f}")
            validated = time.monotonic()
        if now - saved > 60 * config.checkpoint_minutes or last:
            save_state(out / "state.pt", state)
            save_model(out / "model.safetensors", _model(state, head, config, maps))
            saved = time.monotonic()
        if over:
            break
    return out / "model.safetensors"


def _model(state: State, head: Head, config: TrainConfig, maps: Sequence[TrainingMap]) -> Model:
    record = {
        "version": __version__,
        "steps": state.step,
        "config": asdict(config),
        "maps": [f"{m.dataset}/{m.name}" for m in maps],
    }
    return Model(state.average, head, config.shape, config.fill, record)


def _record(out: Path, step: int, name: str, value: float) -> None:
    with (out / "metrics.tsv").open("a", encoding="utf-8") as stream:
        stream.write(f"{step}\t{name}\t{value:.5f}\n")
