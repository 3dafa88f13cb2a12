"""The state of a run, and its checkpoint: what an exact resume needs, safe from any kill.

A checkpoint is a small `state.json` and one or more pieces whose names hold the step and a hash of
the whole. The pieces are written first; the new `state.json`, which names them, then takes the
place of the old one in a single step; only after that the old pieces go. So at every moment there
is one complete checkpoint, whatever stops the process or fills the disk.
"""

import hashlib
import io
import math
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bids_synthseg.errors import AppError, BadData
from bids_synthseg.models.unet import UNet
from bids_synthseg.reading import read_object
from bids_synthseg.storage import atomic_file, write_json

INDEX = "state.json"
MIB = 2**20
_PIECES = "state-*.[0-9][0-9][0-9]"
_ANEW = f"copy the whole checkpoint again, or delete {INDEX} to begin anew"


@dataclass
class State:
    """What changes from step to step.

    `average`: moving average of the network's weights; `best`: value of the best checkpoint so
    far, and `judged` the lines of its validation table; `minutes`: time trained, over all resumes.
    """

    network: UNet
    average: UNet
    optimiser: torch.optim.Optimizer
    step: int = 0
    best: float = -math.inf
    minutes: float = 0.0
    judged: list[str] = field(default_factory=list)


def has_state(folder: Path) -> bool:
    """Whether a folder holds a checkpoint, sound or not."""
    return (folder / INDEX).exists()


def saved_step(folder: Path) -> int:
    """The step of a folder's checkpoint; BadData where its `state.json` cannot be read."""
    return _index(folder)["step"]


def state_files(folder: Path) -> list[Path]:
    """The files of a folder's checkpoint, in the order in which to copy them: `state.json` last."""
    return [*(folder / name for name in _index(folder)["pieces"]), folder / INDEX]


def save_state(folder: Path, state: State, piece_mib: int = 0) -> None:
    """Write a checkpoint, in pieces smaller than `piece_mib` MiB, or one piece where that is 0.

    Raises StorageProblem where the disk is full, CannotCreate where writing is not allowed; the
    checkpoint before it is then still there.
    """
    buffer = io.BytesIO()
    torch.save(
        {
            "network": state.network.state_dict(),
            "average": state.average.state_dict(),
            "optimiser": state.optimiser.state_dict(),
            "step": state.step,
            "best": state.best,
            "minutes": state.minutes,
            "judged": state.judged,
        },
        buffer,
    )
    content = buffer.getbuffer()
    sha256 = hashlib.sha256(content).hexdigest()
    # Smaller than a MiB limit, not equal to it: what carries the pieces may refuse the full size.
    size = piece_mib * MIB - 1 if piece_mib else len(content)
    # The hash in the name keeps a second checkpoint of one step from overwriting the first.
    stem = f"state-{state.step:07d}-{sha256[:8]}"
    pieces = {
        f"{stem}.{number:03d}": content[start : start + size]
        for number, start in enumerate(range(0, len(content), size))
    }
    try:
        for name, piece in pieces.items():
            with atomic_file(folder / name) as stream:
                stream.write(piece)
        write_json(folder / INDEX, {"step": state.step, "sha256": sha256, "pieces": list(pieces)})
    finally:
        _tidy(folder)


def restore_state(folder: Path, state: State) -> None:
    """Load what `save_state` wrote, onto the devices of `state`.

    Raises BadData for a checkpoint that is incomplete, altered, foreign or of another architecture.
    """
    index = _index(folder)
    content = b"".join(_piece(folder / name) for name in index["pieces"])
    if hashlib.sha256(content).hexdigest() != index["sha256"]:
        raise BadData(f"{folder / INDEX}: its pieces are truncated or of another time; {_ANEW}")
    try:
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as problem:  # the unpickler fails on foreign content in any way there is
        raise BadData(f"{folder / INDEX}: its pieces hold no checkpoint; {_ANEW}") from problem
    try:
        state.network.load_state_dict(saved["network"])
        state.average.load_state_dict(saved["average"])
        state.optimiser.load_state_dict(saved["optimiser"])
        for name in ("step", "best", "minutes", "judged"):
            setattr(state, name, saved[name])
    except (RuntimeError, KeyError, ValueError, TypeError) as problem:
        raise BadData(
            f"{folder / INDEX}: a checkpoint of another architecture; choose another folder for "
            "this run"
        ) from problem


def _index(folder: Path) -> dict:
    """The content of `state.json`; BadData where it is not one."""
    path = folder / INDEX
    try:
        index = read_object(path)
        return {
            "step": int(index["step"]),
            "sha256": str(index["sha256"]),
            "pieces": [Path(name).name for name in index["pieces"]],
        }
    except (AppError, ValueError, KeyError, TypeError, OverflowError) as problem:
        raise BadData(f"{path}: truncated, or no checkpoint; {_ANEW}") from problem


def _piece(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise BadData(f"{path}: a piece of the checkpoint is missing; {_ANEW}") from problem


def _tidy(folder: Path) -> None:
    """Remove what no checkpoint needs: pieces of an older one, or of one that was not completed."""
    kept = set(state_files(folder)) if has_state(folder) else set()
    for path in [*folder.glob(_PIECES), *folder.glob(".state*.tmp")]:
        if path not in kept:
            with suppress(OSError):  # one that stays does no harm, and must not hide why
                path.unlink(missing_ok=True)
