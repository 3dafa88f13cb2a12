"""A sheet of synthetic samples, to judge a configuration by before the first step."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.learning.config import TrainConfig
from bids_synthseg.learning.maps import TrainingMap
from bids_synthseg.storage import atomic_file
from bids_synthseg.synthesis.head import Donor
from bids_synthseg.synthesis.recipe import draw, render, working_voxel

log = logging.getLogger(__name__)

COLUMNS = 2
OPACITY = 0.6
UNKNOWN = "#ffffff"
"""Colour of a class that stands for no label of the table."""


def preview_sheet(
    maps: Sequence[TrainingMap],
    config: TrainConfig,
    path: Path,
    n: int = 20,
    donors: Sequence[Donor] = (),
) -> bool:
    """Write a PNG of `n` samples: the middle axial, coronal and sagittal slice, bare and with the
    labels over it; errors as `storage.atomic_file`.

    The left of axial and coronal slices is the subject's left. Returns whether there is a sheet:
    without matplotlib there is a line in the log instead.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        log.info("no preview of samples: matplotlib is missing")
        return False
    strips = [(one.title, _strip(one)) for one in paint(maps, config, n, config.seed, donors)]
    rows = -(-n // COLUMNS)
    height, width = strips[0][1].shape[:2]
    panel_in = 10.0
    figure = Figure(
        figsize=(COLUMNS * panel_in, rows * (panel_in * height / width + 0.35)),
        facecolor="black",
        layout="constrained",
    )
    figure.subplots(rows, COLUMNS)
    for panel in figure.axes:
        panel.set_axis_off()
    for panel, (title, strip) in zip(figure.axes, strips, strict=False):
        panel.imshow(strip, interpolation="nearest")
        panel.set_title(title, color="white", fontsize=11, loc="left", pad=3)
    with atomic_file(path) as stream:
        figure.savefig(stream, format="png", dpi=100, facecolor="black")
    return True


@dataclass(frozen=True)
class Painted:
    """A sample on the CPU: `image` (X, Y, Z) float32, `classes` (X, Y, Z) rows of the map's sets,
    both in RAS order with voxels of `voxel_mm`; `contrast`: "T1w", "T2w" or "" for one at random;
    `real`: whether its intensities are those of a scan."""

    map: TrainingMap
    image: np.ndarray
    classes: np.ndarray
    voxel_mm: float
    contrast: str
    real: bool

    @property
    def title(self) -> str:
        """One line for people."""
        contrast = self.contrast or "random contrast"
        kind = f"{contrast} of a scan" if self.real else contrast
        return f"{self.map.dataset}/{self.map.name}: {kind}, {self.voxel_mm:.2f} mm"


def paint(
    maps: Sequence[TrainingMap],
    config: TrainConfig,
    n: int,
    seed: int,
    donors: Sequence[Donor] = (),
) -> Iterator[Painted]:
    """`n` samples, the same ones for the same seed; the data sets take turns."""
    for number, one in enumerate(turns(maps, n, np.random.default_rng(seed))):
        voxel_mm = working_voxel(one.source, config.shape, config.fill, config.voxel_mm)
        rng = np.random.default_rng([seed, number])
        drawn = draw(
            one.source,
            config.synthesis,
            config.shape,
            voxel_mm,
            rng,
            config.pool,
            donors,
            one.age_weeks,
        )
        image, classes = (volume.cpu().numpy() for volume in render(one.source, drawn, donors))
        yield Painted(one, image, classes, voxel_mm, drawn.contrast, drawn.image >= 0)


def turns(maps: Sequence[TrainingMap], n: int, rng: np.random.Generator) -> list[TrainingMap]:
    """`n` maps: one of each data set in turn, at random within it, none again before all were."""
    queues: dict[str, list[TrainingMap]] = {}
    for number in rng.permutation(len(maps)):
        queues.setdefault(maps[number].dataset, []).append(maps[number])
    names = sorted(queues)
    picked = []
    for number in range(n):
        round_, place = divmod(number, len(names))
        queue = queues[names[place]]
        picked.append(queue[round_ % len(queue)])
    return picked


def slices(volume: np.ndarray) -> np.ndarray:
    """The middle axial, coronal and sagittal slice of (X, Y, Z) or (X, Y, Z, 3), side by side.

    Rows run from the top of the picture down; lower slices are centred on the tallest.
    """
    x, y, z = (side // 2 for side in volume.shape[:3])
    upright = [volume[:, :, z], volume[:, y], volume[x]]
    turned = [np.flip(one.swapaxes(0, 1), axis=0) for one in upright]
    tallest = max(len(one) for one in turned)
    padded = []
    for one in turned:
        above, odd = divmod(tallest - len(one), 2)
        margins = [(above, above + odd)] + [(0, 0)] * (one.ndim - 1)
        padded.append(np.pad(one, margins))
    return np.concatenate(padded, axis=1)


def _strip(one: Painted) -> np.ndarray:
    """(rows, columns, 3) picture in 0..1: three slices bare, then with labels."""
    labels = one.map.source.labels
    grey = np.repeat(slices(_unit(one.image))[..., None], 3, axis=-1)
    colour = slices(_colours(labels, len(one.map.sets))[one.classes])
    labelled = slices((one.classes > 0) & (one.classes < len(labels)))[..., None]
    tinted = np.where(labelled, (1 - OPACITY) * grey + OPACITY * colour, grey)
    return np.concatenate([grey, tinted], axis=1)


def _unit(image: np.ndarray) -> np.ndarray:
    """Image in 0..1: black is 0, white the 99.5th percentile."""
    white = np.percentile(image, 99.5)
    return np.clip(image / max(white, 1e-6), 0, 1)


def _colours(labels: np.ndarray, n: int) -> np.ndarray:
    """(n, 3) colour in 0..1 of each class by the model label it stands for; the rest black."""
    colour_of = {row.index: row.color for row in LabelTable.default().rows}
    found = np.zeros((n, 3), dtype=np.float32)
    for number, label in enumerate(labels):
        colour = colour_of.get(int(label), UNKNOWN)
        found[number] = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    return found
