"""Pictures of a session's report: slices of a scan with what was found in it, as parts of an SVG.

Slices are drawn one pixel to a voxel and scaled by the page; outlines are vectors on top, so that
they stay sharp and the page can switch them off. The left of a picture is the subject's left
(neurological convention), and in sagittal slices the back.
"""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from bids_synthseg.anatomy.volume import Grid, Volume
from bids_synthseg.errors import BadData

MARGIN_MM = 10.0
"""What is shown around the labels."""

DOUBT_MAX = 0.6
"""Confidence may be shown down to 1 - DOUBT_MAX: less is drawn in the same colour."""

DISAGREEMENT = "#ff2d95"
"""No structure and no grey of a scan has this colour."""

WHOLE = 0
"""Index of the outline of all labels together."""

_GAP = 4
# Plane: axis of the slices, and what is left, right, down and up in a picture in RAS+ order.
PLANES = (("axial", 2, "LRPA"), ("coronal", 1, "LRIS"), ("sagittal", 0, "PAIS"))
_MM_LETTERS = "xyz"

Cut = Callable[[np.ndarray], np.ndarray]
"""Takes one slice (rows, columns) out of (X, Y, Z)."""


@dataclass(frozen=True)
class Outline:
    """The border of a label in one slice: `path` in halves of a pixel, for the `d` of an SVG path;
    holes are left out by the even-odd rule."""

    index: int
    path: str


@dataclass(frozen=True)
class Panel:
    """One slice. x, y, width, height: its place on the sheet; columns, rows: its pixels.

    image: PNG as data URI; ends: letters of what is left, right, down and up; caption: its place.
    """

    x: float
    y: float
    width: float
    height: float
    columns: int
    rows: int
    image: str
    outlines: tuple[Outline, ...]
    ends: str
    caption: str


@dataclass(frozen=True)
class Sheet:
    """Slices of all three planes, a row each."""

    width: float
    height: float
    panels: tuple[Panel, ...]


@dataclass(frozen=True, eq=False)
class Crop:
    """A box of voxels around the labels of an image, in the axis order closest to RAS+."""

    turned: Grid
    start: np.ndarray
    stop: np.ndarray

    @staticmethod
    def around(labels: Volume) -> "Crop":
        """The labels' box and MARGIN_MM; raises BadData where there is no label."""
        volume = labels.canonical()[0]
        inside = volume.data != 0
        if not inside.any():
            raise BadData("holds no label but background; segment the session again")
        box = [np.flatnonzero(inside.any(axis=o)) for o in ((1, 2), (0, 2), (0, 1))]
        margin = np.ceil(MARGIN_MM / volume.grid.voxel_size_mm).astype(int)
        start = np.maximum(0, [places[0] for places in box] - margin)
        stop = np.minimum(volume.grid.shape, [places[-1] + 1 for places in box] + margin)
        return Crop(volume.grid, start, stop)

    def of(self, volume: Volume) -> Volume:
        """The box out of a volume on the labels' grid."""
        data = volume.canonical()[0].data
        cut = data[tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))]
        affine = self.turned.affine.copy()
        affine[:3, 3] = self.turned.to_world(self.start)
        return Volume(np.ascontiguousarray(cut), Grid(cut.shape, affine))


def grey_levels(scan: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(X, Y, Z) uint8 for the eye: the range of the brain, so that fat and scalp may be too bright.

    scan, labels: (X, Y, Z), cropped.
    """
    low = float(np.percentile(scan, 1))
    high = float(np.percentile(scan[labels != 0], 99.7))
    if not high > low:
        return np.zeros(scan.shape, np.uint8)
    with np.errstate(over="ignore"):  # a damaged voxel may be beyond all bounds
        return (255 * np.clip((scan - low) / (high - low), 0, 1)).round().astype(np.uint8)


def draw_outlines(grey: np.ndarray, labels: Volume, count: int = 6, width: float = 1200) -> Sheet:
    """The outlines of all labels over grey levels (X, Y, Z) uint8; `count` slices a plane."""
    return _draw(lambda cut: cut(grey), labels, count, width, outlined=True)


def draw_doubt(
    grey: np.ndarray, labels: Volume, confidence: np.ndarray, count: int = 3, width: float = 590
) -> Sheet:
    """Where the largest posterior, confidence (X, Y, Z) in 0..1, is low; 0 means not known."""

    def paint(cut: Cut) -> np.ndarray:
        known = cut(confidence)
        return _tint(cut(grey), *_fire(np.where(known > 0, 1 - known, 0)))

    return _draw(paint, labels, count, width)


def draw_disagreement(
    grey: np.ndarray, labels: Volume, mask: np.ndarray, count: int = 3, width: float = 590
) -> Sheet:
    """Where contrasts disagree, mask (X, Y, Z) bool."""
    colour = np.array([int(DISAGREEMENT[k : k + 2], 16) for k in (1, 3, 5)])
    return _draw(lambda cut: _tint(cut(grey), colour, 0.8 * cut(mask)), labels, count, width)


def doubt_colours(steps: int = 9) -> list[str]:
    """Colours of the scale of `draw_doubt`, from sure to unsure, as CSS writes them."""
    colours, strength = _fire(np.linspace(0, DOUBT_MAX, steps))
    rows = zip(colours.round().astype(int).tolist(), strength.tolist(), strict=True)
    return [f"rgb({r} {g} {b} / {alpha:.2f})" for (r, g, b), alpha in rows]


def slice_positions(inside: np.ndarray, axis: int, count: int) -> list[int]:
    """Where to cut: evenly through the part of an axis that is inside (X, Y, Z) bool, ends left
    out."""
    others = tuple(other for other in range(3) if other != axis)
    places = np.flatnonzero(inside.any(axis=others))
    first, last = int(places[0]), int(places[-1])
    fractions = np.linspace(0, 1, count + 2)[1:-1]
    return [round(first + fraction * (last - first)) for fraction in fractions]


def outline(mask: np.ndarray) -> str:
    """The border of a mask (rows, columns) bool as SVG path, in halves of a pixel, corners cut.

    A pixel (r, c) covers from 2c to 2c + 2 and from 2r to 2r + 2.
    """
    from contourpy import contour_generator

    places = np.argwhere(mask)
    if not len(places):
        return ""
    top, left = places.min(axis=0)
    bottom, right = places.max(axis=0) + 1
    # A ring of zeros closes what touches the border.
    around = np.pad(mask[top:bottom, left:right], 1).astype(np.float32)
    pieces = []
    for line in contour_generator(z=around).lines(0.5):
        corners = 2 * (line + np.array([left, top])) - 1
        pieces.append(_path(np.rint(corners).astype(int)))
    return "".join(pieces)


def _path(corners: np.ndarray) -> str:
    """A closed line (N, 2), first corner repeated, as SVG path; straight runs become one step."""
    steps = np.diff(corners, axis=0)
    turns = np.flatnonzero((steps[1:] != steps[:-1]).any(axis=1)) + 1
    kept = corners[np.concatenate([[0], turns])]
    moves = "".join(f"l{dx} {dy}" for dx, dy in np.diff(kept, axis=0).tolist())
    return f"M{kept[0][0]} {kept[0][1]}{moves}z"


def _draw(
    paint: Callable[[Cut], np.ndarray],
    labels: Volume,
    count: int,
    width: float,
    outlined: bool = False,
) -> Sheet:
    """paint: makes the pixels of one slice, grey or in colours, uint8, from a way to cut it."""
    panels: list[Panel] = []
    y = 0.0
    inside = labels.data != 0
    for _, axis, ends in PLANES:
        across, up = (other for other in range(3) if other != axis)
        size_mm = labels.grid.voxel_size_mm * labels.grid.shape
        panel_width = (width - _GAP * (count - 1)) / count
        height = panel_width * size_mm[up] / size_mm[across]
        for number, position in enumerate(slice_positions(inside, axis, count)):
            cut = partial(_upright, axis, position)
            seen = cut(labels.data)
            panels.append(
                Panel(
                    x=round(number * (panel_width + _GAP), 2),
                    y=round(y, 2),
                    width=round(panel_width, 2),
                    height=round(height, 2),
                    columns=seen.shape[1],
                    rows=seen.shape[0],
                    image=png_uri(paint(cut)),
                    outlines=_outlines(seen) if outlined else (),
                    ends=ends,
                    caption=_place(labels.grid, axis, position),
                )
            )
        y += height + _GAP
    return Sheet(width, round(y - _GAP, 2), tuple(panels))


def _upright(axis: int, position: int, data: np.ndarray) -> np.ndarray:
    """A slice (rows, columns) of (X, Y, Z) as a picture has it: first row on top."""
    return data[(slice(None),) * axis + (position,)].T[::-1]


def _outlines(labels: np.ndarray) -> tuple[Outline, ...]:
    """The widest first, so that what lies within others is drawn over them."""
    masks = {index: labels == index for index in np.unique(labels).tolist() if index}
    masks[WHOLE] = labels != 0  # last, and so over the fluid, which is as wide

    def extent(index: int) -> int:
        return int(np.prod(np.ptp(np.argwhere(masks[index]), axis=0) + 1))

    ordered = sorted((index for index in masks if masks[index].any()), key=extent, reverse=True)
    return tuple(Outline(index, outline(masks[index])) for index in ordered)


def _place(grid: Grid, axis: int, position: int) -> str:
    middle = (np.array(grid.shape) - 1) / 2
    middle[axis] = position
    return f"{_MM_LETTERS[axis]} = {grid.to_world(middle)[axis]:.0f} mm"


def _tint(grey: np.ndarray, colours: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Colours (..., 3) in 0..255 laid over grey levels (...) with a strength (...) in 0..1."""
    alpha = strength[..., None]
    return ((1 - alpha) * grey[..., None] + alpha * colours).round().astype(np.uint8)


def _fire(doubt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours (..., 3) in 0..255, from red to light yellow, and their strength (...) in 0..1."""
    from matplotlib import colormaps

    share = np.clip(doubt / DOUBT_MAX, 0, 1)
    # Faint doubt lies along every border and must not hide the scan.
    return 255 * colormaps["inferno"](0.45 + 0.5 * share)[..., :3], share**1.5


def png_uri(pixels: np.ndarray) -> str:
    """(rows, columns) grey or (rows, columns, 3) colours, uint8, as data URI."""
    from PIL import Image

    with io.BytesIO() as stream:
        Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "png")
        content = base64.b64encode(stream.getvalue()).decode("ascii")
    return f"data:image/png;base64,{content}"
