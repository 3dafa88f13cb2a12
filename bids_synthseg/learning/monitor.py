"""What a run says while it goes: lines with rate and remaining time, metrics.tsv, TensorBoard."""

import importlib.util
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bids_synthseg.errors import AppError, BadData
from bids_synthseg.reading import is_there, read_text
from bids_synthseg.storage import explain, write_text

log = logging.getLogger(__name__)

REPORT_SECONDS = 10.0
HEADER = "step\tname\tvalue\n"


class Monitor:
    """Follows a run in `folder` from `first_step` on; one per run, in the process that leads.

    `until`: reading of time.monotonic() at which the run's time is up, infinity for never;
    `say` takes one line of progress. Making it drops from `metrics.tsv` what lies beyond
    `first_step`, so that the table of a run that was killed and resumed has every step once.
    TensorBoard files go to `folder`/tensorboard, where that package is installed.
    """

    def __init__(
        self, folder: Path, steps: int, until: float, first_step: int, say: Callable[[str], None]
    ) -> None:
        self.path = folder / "metrics.tsv"
        self.steps, self.until, self.first_step, self.say = steps, until, first_step, say
        self.begun = self.reported = time.monotonic()
        self.making_s = 0.0
        self.losses: list[torch.Tensor] = []
        kept = [line for line in self._lines() if _step(line) <= first_step] if first_step else []
        write_text(self.path, HEADER + "".join(kept))
        self.board = _tensorboard(folder / "tensorboard", first_step)

    def step(self, step: int, loss: torch.Tensor, making_s: float) -> None:
        """Take note of the loss that led to `step`, and of the seconds spent on its samples."""
        # Not yet a number: asking a GPU for it would make the processor wait for every step.
        self.losses.append(loss)
        self.making_s += making_s
        if time.monotonic() - self.reported > REPORT_SECONDS:
            self.report(step)

    def report(self, step: int) -> None:
        """Say and write down the mean loss of the steps since the last report, if there were any.

        Raises AppError where none is finite: the run has come apart.
        """
        if not self.losses:
            return
        losses = torch.stack(self.losses).float().cpu().numpy()
        if not np.isfinite(losses).any():
            raise AppError(
                f"step {step}: the loss is no longer a finite number; train again with a lower rate"
            )
        loss = float(losses[np.isfinite(losses)].mean())
        self.losses, self.reported = [], time.monotonic()
        passed_s = max(self.reported - self.begun, 1e-9)
        rate = (step - self.first_step) / passed_s
        left_s = min((self.steps - step) / rate, max(0.0, self.until - self.reported))
        self.say(
            f"step {step}/{self.steps} loss {loss:.4f}, {rate:.2f} steps/s, "
            f"{self.making_s / passed_s:.0%} of the time spent on samples, {_duration(left_s)} left"
        )
        self.score(step, {"loss": loss})

    def score(self, step: int, values: Mapping[str, float]) -> None:
        """Add values to the table and to TensorBoard; NaN is left out."""
        known = {name: value for name, value in values.items() if not math.isnan(value)}
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.writelines(f"{step}\t{name}\t{v:.5f}\n" for name, v in known.items())
        except OSError as problem:
            raise explain(problem, self.path) from problem
        if self.board is not None:
            for name, value in known.items():
                self.board.add_scalar(name, value, step)

    def picture(self, path: Path) -> None:
        """Show a PNG in TensorBoard; nothing where there is no such file, or no matplotlib."""
        if self.board is not None and path.is_file() and importlib.util.find_spec("matplotlib"):
            from matplotlib.image import imread

            pixels = np.atleast_3d(imread(path))[..., :3]
            self.board.add_image(path.stem, pixels, self.first_step, dataformats="HWC")

    def close(self) -> None:
        """Put everything on the disk."""
        if self.board is not None:
            self.board.close()

    def _lines(self) -> Iterable[str]:
        """The table's lines but the header, as far as they are whole; BadData for another table."""
        if not is_there(self.path):
            return []
        header, *lines = read_text(self.path).splitlines(keepends=True) or [""]
        # A kill may leave half a line at the end.
        lines = [line for line in lines if line.endswith("\n")]
        if header != HEADER or not all(line.split("\t")[0].isdigit() for line in lines):
            raise BadData(f"{self.path}: not the table of a training run; move it away")
        return lines


def _step(line: str) -> int:
    return int(line.split("\t")[0])


def _duration(seconds: float) -> str:
    """Time in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _tensorboard(folder: Path, first_step: int) -> Any:
    """TensorBoard's writer, or None where the package is missing or cannot be used."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter

        # What a killed run had logged beyond its checkpoint is hidden, as in the table.
        return SummaryWriter(folder, purge_step=first_step + 1)
    except ImportError as problem:
        log.info("no TensorBoard files: %s", problem)
        return None
