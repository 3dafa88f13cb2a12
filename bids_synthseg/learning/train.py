"""The training loop, top to bottom: sample, draw, render, network, loss, step, save.

Everything random about a sample comes from (seed, step, number in the batch), so a resumed run
sees the samples it would have seen, and nothing but weights, optimiser and step need saving.
"""

import io
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bids_synthseg import __version__
from bids_synthseg.errors import AppError, BadData, InputMissing, UsageProblem
from bids_synthseg.learning.config import TrainConfig
from bids_synthseg.learning.datasets import TrainingMap, load_maps
from bids_synthseg.learning.loss import label_set_loss
from bids_synthseg.learning.validation import validation_dice
from bids_synthseg.models.checkpoint import Model, load_model, save_model
from bids_synthseg.models.heads import Head
from bids_synthseg.models.inputs import network_input
from bids_synthseg.models.unet import NetworkConfig, UNet, grow
from bids_synthseg.storage import atomic_file, explain, make_folder, write_text
from bids_synthseg.synthesis.recipe import draw, render

log = logging.getLogger(__name__)

REPORT_SECONDS = 30
"""Time between two lines of progress."""


@dataclass
class State:
    """All that changes during a run; `average` is the network with averaged weights."""

    network: UNet
    average: UNet
    optimiser: torch.optim.Optimizer
    step: int = 0


def new_state(config: TrainConfig, head: Head, device: torch.device) -> State:
    """Fresh weights, or those of a coarser model grown by one level.

    Raises BadData where architecture and labels do not fit each other or the coarser model.
    """
    torch.manual_seed(config.seed)
    wanted = config.network
    if wanted.channels_out != head.n_channels:
        raise BadData(
            f"network.channels_out is {wanted.channels_out}; set it to {head.n_channels} for head "
            f"{head.kind!r} and {len(head.table)} labels"
        )
    network = _started(Path(config.start_from), head, wanted) if config.start_from else UNet(wanted)
    network = network.to(device)
    average = UNet(wanted).to(device)
    average.load_state_dict(network.state_dict())
    return State(network, average, _optimiser(network, config))


def _optimiser(network: UNet, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam, with a rate of its own for the finest level: see `TrainConfig.finest_rate`."""
    finest, rest = network.by_level()
    return torch.optim.Adam(
        [{"params": finest, "scale": config.finest_rate}, {"params": rest, "scale": 1.0}],
        lr=config.rate,
    )


def _started(path: Path, head: Head, wanted: NetworkConfig) -> UNet:
    """The network of a model file, grown by the finest level of `wanted` if it lacks that."""
    model = load_model(path)
    network = model.network
    if model.head == head and network.config != wanted:
        network = grow(network, wanted.features[0], wanted.convs[0])
    if model.head != head or network.config != wanted:
        raise BadData(
            f"{path}: a model of another architecture or other labels, levels "
            f"{list(model.network.config.features)}; the configuration asks for "
            f"{list(wanted.features)}, of which it may lack the first"
        )
    return network


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then half a cosine down to `rate_end` of the rate."""
    if step < config.warm_up:
        return config.rate * (step + 1) / config.warm_up
    progress = min(1.0, (step - config.warm_up) / max(1, config.steps - config.warm_up))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.rate * (config.rate_end + (1 - config.rate_end) * cosine)


def probabilities_of(maps: Sequence[TrainingMap], weights: dict[str, float]) -> np.ndarray:
    """(N,) chance of each map: a data set's share is divided evenly among its maps.

    Raises BadData for a share of an unknown data set, or shares that leave nothing to draw.
    """
    names = [m.dataset for m in maps]
    unknown = sorted(set(weights) - set(names))
    if unknown:
        known = ", ".join(sorted(set(names)))
        raise BadData(f"weights: no data set is named {unknown[0]!r}; known are {known}")
    shares = np.array([weights.get(name, 1.0) / names.count(name) for name in names])
    if shares.min() < 0 or shares.sum() <= 0:
        raise BadData("weights: shares must not be negative, and at least one above 0")
    return shares / shares.sum()


def train_step(
    state: State,
    maps: Sequence[TrainingMap],
    chances: np.ndarray,
    config: TrainConfig,
    head: Head,
    device: torch.device,
) -> float:
    """One optimiser step on `config.batch` samples; returns the loss.

    `maps` lie on `device`. Where the gradient is not finite the weights stay as they are.
    """
    images, targets = [], []
    for number in range(config.batch):
        rng = np.random.default_rng([config.seed, state.step, number])
        chosen = maps[rng.choice(len(maps), p=chances)]
        drawn = draw(chosen.source, config.synthesis, config.shape, config.fill, rng, config.pool)
        image, classes = render(chosen.source, drawn)
        images.append(network_input(image, config.network.intensity))
        targets.append((classes, chosen.sets))
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(config, state.step) * group["scale"]
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = state.network(torch.cat(images))
    # On a fine grid neighbouring voxels say much the same: a lattice of them tells the loss enough.
    step = config.loss_step
    i, j = np.random.default_rng([config.seed, state.step, config.batch]).integers(step, size=2)
    losses = [
        label_set_loss(
            logits[k : k + 1, :, i::step, j::step], classes[i::step, j::step], sets, head
        )
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
        weights = zip(state.average.parameters(), state.network.parameters(), strict=True)
        for mean, new in weights:
            mean.lerp_(new, 1 - decay)
    return float(loss.detach())


def save_state(path: Path, state: State) -> None:
    """Everything an exact resume needs; an old file stays until the new one is complete.

    Raises StorageProblem where the disk is full, CannotCreate where writing is not allowed.
    """
    content = {
        "step": state.step,
        "network": state.network.state_dict(),
        "average": state.average.state_dict(),
        "optimiser": state.optimiser.state_dict(),
    }
    # Not straight to the file: torch turns the operating system's errors into others.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_file(path) as stream:
        stream.write(buffer.getbuffer())


def restore_state(path: Path, state: State) -> None:
    """Load what `save_state` wrote.

    Raises BadData for a file that is truncated, foreign, or of another architecture.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # the unpickler fails on a foreign file in any way there is
        raise BadData(
            f"{path}: truncated, or no checkpoint; delete it to begin anew, or copy it again"
        ) from problem
    try:
        state.network.load_state_dict(saved["network"])
        state.average.load_state_dict(saved["average"])
        state.optimiser.load_state_dict(saved["optimiser"])
        state.step = int(saved["step"])
    except (RuntimeError, KeyError, ValueError, TypeError) as problem:
        raise BadData(
            f"{path}: a checkpoint of another architecture; choose another folder for this run"
        ) from problem


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

    `folders` and `validation` are BIDS folders of label maps; none may be both, and `validation`
    is looked at only with its real scans. Writes `model.safetensors` (averaged weights),
    `state.pt`, `config.json` and `metrics.tsv` into `out` and returns the model's path; at least
    one step is made, whatever `max_minutes` says. Raises AppError for everything a user can mend.
    """
    started = time.monotonic()
    if not folders:
        raise InputMissing("no label data sets given; name at least one folder with dseg.tsv")
    both = {Path(f).resolve() for f in folders} & {Path(f).resolve() for f in validation}
    if both:
        raise UsageProblem(f"{min(both)}: given for training and validation; take it from one")
    settings = json.dumps(asdict(config), indent=1, sort_keys=True)
    resumed = _is_begun(out, settings)
    on = torch.device(device)
    maps, table = load_maps(folders, config.target)
    checks, _ = load_maps(validation, config.target)
    maps, checks = _on_device(maps, on), _on_device(checks, on)
    chances = probabilities_of(maps, config.weights)
    head = Head(table, config.head)
    progress(f"{len(maps)} label maps, {len(checks)} for validation, {len(table)} labels")
    # A resumed run has its weights: it does not need the model it once grew from.
    state = new_state(replace(config, start_from="") if resumed else config, head, on)
    if resumed:
        restore_state(out / "state.pt", state)
        progress(f"resumed at step {state.step}")
    make_folder(out)
    write_text(out / "config.json", settings)
    begun = saved = validated = reported = time.monotonic()
    first_step, recent = state.step, []
    while state.step < config.steps:
        recent.append(train_step(state, maps, chances, config, head, on))
        now = time.monotonic()
        last = state.step == config.steps or now - started > 60 * max_minutes
        if now - reported > REPORT_SECONDS or last:
            loss = _mean_loss(recent, state.step)
            rate = (state.step - first_step) / max(now - begun, 1e-9)
            progress(
                f"step {state.step}/{config.steps} loss {loss:.4f} "
                f"{rate:.2f} steps/s, {(config.steps - state.step) / rate / 60:.0f} min left"
            )
            _record(out, state.step, "loss", loss)
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
        if last:
            break
    return out / "model.safetensors"


def _is_begun(out: Path, settings: str) -> bool:
    """Whether `out` holds a checkpoint; BadData where it is one of another configuration."""
    if not (out / "state.pt").exists():
        return False
    written = out / "config.json"
    if not written.is_file() or written.read_text(encoding="utf-8") != settings:
        raise BadData(f"{out}: holds a run of another configuration; choose another folder")
    return True


def _on_device(maps: Sequence[TrainingMap], device: torch.device) -> list[TrainingMap]:
    return [replace(one, source=one.source.to(device)) for one in maps]


def _mean_loss(losses: Sequence[float], step: int) -> float:
    """Mean of the finite losses; AppError where there is none: the run has come apart."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not finite:
        raise AppError(
            f"step {step}: the loss is no longer a finite number; train again with a lower rate"
        )
    return float(np.mean(finite))


def _model(state: State, head: Head, config: TrainConfig, maps: Sequence[TrainingMap]) -> Model:
    record = {
        "version": __version__,
        "steps": state.step,
        "config": asdict(config),
        "maps": [f"{m.dataset}/{m.name}" for m in maps],
    }
    return Model(state.average, head, config.shape, config.fill, record)


def _record(out: Path, step: int, name: str, value: float) -> None:
    path = out / "metrics.tsv"
    try:
        new = not path.exists()
        with path.open("a", encoding="utf-8") as stream:
            stream.write(("step\tname\tvalue\n" if new else "") + f"{step}\t{name}\t{value:.5f}\n")
    except OSError as problem:
        raise explain(problem, path) from problem
