"""What goes wrong when a fetus moves and its brain is put together from stacks of slices.

Slices that lie in a wrong place, slices that lost signal, spots that stayed blurred, structure that
is none, and a mask with an uneven border; and a stack as it is before that, a slab with nothing
above and below. The image changes, the target does not. After fetalsyngen (Zalevskyi et al. 2024),
whose steps these are but for the slab, simplified so that each is one pass over the image.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from bids_synthseg.fields import SHARE, check_ranges
from bids_synthseg.synthesis.acquisition import blur
from bids_synthseg.synthesis.deformation import resize


@dataclass(frozen=True)
class ArtefactConfig:
    """Probabilities, and the most of each; lengths in voxels of the grid that is painted.

    `misplaced`: slices shifted by up to `shift_max` and turned by up to `turn_max_deg` in their
    plane; `voids`: slices that lost up to the fraction `loss_max` of their signal in places;
    `halo`: black from the border of the brain on, or from up to `halo_max` `OUTSIDE_UNIT`s of
    `head` beyond; `structured`: smooth noise within the brain, of an SD up to the fraction
    `structured_max` of the signal; `blurred`: spots blurred by an SD of up to `blur_max`; `slab`:
    nothing beyond the brain along one axis, but for up to `margin_max` of its length on each side,
    and up to `cut_max` of it cut off.
    """

    misplaced: float = 0.0
    voids: float = 0.0
    halo: float = 0.0
    structured: float = 0.0
    blurred: float = 0.0
    slab: float = 0.0
    shift_max: float = 2.0
    turn_max_deg: float = 5.0
    loss_max: float = 0.9
    halo_max: float = 14.0
    structured_max: float = 0.25
    blur_max: float = 2.0
    margin_max: float = 0.5
    cut_max: float = 0.05

    def __post_init__(self) -> None:
        kinds = ("misplaced", "voids", "halo", "structured", "blurred", "slab")
        for name in (*kinds, "loss_max", "cut_max"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in 0..1")
        lengths = ("shift_max", "halo_max", "blur_max", "margin_max")
        for name in (*lengths, "turn_max_deg", "structured_max"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be below 0")
        lengths_most = dict.fromkeys(lengths, (0, 255))
        probabilities = dict.fromkeys((*kinds, "loss_max", "cut_max"), SHARE)
        rest = {"turn_max_deg": (0, 180), "structured_max": (0, 100)}
        check_ranges(self, {**probabilities, **lengths_most, **rest})


@dataclass(frozen=True)
class Misplacement:
    """Of the layers `places` (S,) along `axis`: `poses` (S, 3) shifts in voxels along the other
    two axes and a turn in rad about the middle; `weight`: share that the misplaced slice has in
    what was put together, the rest is of slices in the right place."""

    axis: int
    places: np.ndarray
    poses: np.ndarray
    weight: float


@dataclass(frozen=True)
class Voids:
    """`losses` (n,): fraction of the signal that each layer along `axis` loses where `share`
    (m, m, m), 0 to 1, is 1."""

    axis: int
    losses: np.ndarray
    share: np.ndarray


@dataclass(frozen=True)
class Halo:
    """Black beyond `edge` plus `unevenness` (m, m, m), faded over `fade`, in `OUTSIDE_UNIT`s."""

    edge: float
    fade: float
    unevenness: np.ndarray


@dataclass(frozen=True)
class Spots:
    """Blurred by `sigma` voxels where `field` (m, m, m) is above 0, in full where above 1."""

    sigma: float
    field: np.ndarray


@dataclass(frozen=True)
class Slab:
    """The field of view along `axis` reaches `margins` (before, after) beyond the brain, as
    fractions of the brain's length there; a negative one cuts it."""

    axis: int
    margins: tuple[float, float]


@dataclass(frozen=True)
class ArtefactDraw:
    """What happens to one image, None where nothing does; `structured` (m, m, m) is the fraction
    by which the signal in the brain is changed."""

    structured: np.ndarray | None
    spots: Spots | None
    misplaced: Misplacement | None
    voids: Voids | None
    halo: Halo | None
    slab: Slab | None = None


def draw_artefacts(
    config: ArtefactConfig, shape: tuple[int, int, int], rng: np.random.Generator
) -> ArtefactDraw:
    """Draw the artefacts of one image of `shape`."""

    def happens(probability: float) -> bool:
        return bool(rng.uniform() < probability)

    return ArtefactDraw(
        structured=_draw_structure(config, rng) if happens(config.structured) else None,
        spots=_draw_spots(config, rng) if happens(config.blurred) else None,
        misplaced=_draw_misplacement(config, shape, rng) if happens(config.misplaced) else None,
        voids=_draw_voids(config, shape, rng) if happens(config.voids) else None,
        halo=_draw_halo(config, rng) if happens(config.halo) else None,
        slab=_draw_slab(config, rng) if happens(config.slab) else None,
    )


def apply_artefacts(
    image: torch.Tensor, distance: torch.Tensor, draw: ArtefactDraw
) -> torch.Tensor:
    """(X, Y, Z) image with the artefacts of a draw; without any, `image` itself.

    `distance` (X, Y, Z) float: to the brain, in `head.OUTSIDE_UNIT`s, 0 inside.
    """
    if draw.structured is not None:
        change = 1 + _field(draw.structured, image)
        image = torch.where(distance > 0, image, image * change.clamp(min=0))
    if draw.spots is not None:
        share = _field(draw.spots.field, image).clamp(0, 1)
        image = torch.lerp(image, blur(image, (draw.spots.sigma,) * 3), share)
    if draw.misplaced is not None:
        image = _misplaced(image, draw.misplaced)
    if draw.voids is not None:
        losses = torch.from_numpy(draw.voids.losses).to(image.device)
        along = [-1 if axis == draw.voids.axis else 1 for axis in range(3)]
        image = image * (1 - losses.view(along) * _field(draw.voids.share, image))
    if draw.halo is not None:
        edge = draw.halo.edge + _field(draw.halo.unevenness, image)
        kept = ((edge - distance) / max(draw.halo.fade, 1e-3) + 0.5).clamp(0, 1)
        image = torch.where(distance > 0, image * kept, image)
    if draw.slab is not None:
        image = image * _within(draw.slab, distance)
    return image


def _within(slab: Slab, distance: torch.Tensor) -> torch.Tensor:
    """Where the field of view of a slab is: bool, of length 1 along the other axes."""
    others = [axis for axis in range(3) if axis != slab.axis]
    brain = (distance == 0).any(others[1]).any(others[0]).nonzero()[:, 0]
    n = distance.shape[slab.axis]
    along = [-1 if axis == slab.axis else 1 for axis in range(3)]
    places = torch.arange(n, device=distance.device)
    if not len(brain):
        return torch.ones_like(places, dtype=torch.bool).view(along)
    first, last = brain[0], brain[-1]
    length = last - first + 1
    before, after = slab.margins
    return ((places >= first - before * length) & (places <= last + after * length)).view(along)


def _misplaced(image: torch.Tensor, draw: Misplacement) -> torch.Tensor:
    """All slices that moved are resampled at once, as a batch of pictures."""
    places = torch.from_numpy(draw.places).to(image.device)
    poses = torch.from_numpy(draw.poses).to(image.device)
    slices = image.movedim(draw.axis, 0)[places][:, None]
    middle = [(n - 1) / 2 for n in slices.shape[2:]]
    rows, columns = (
        torch.arange(n, dtype=torch.float32, device=image.device) - m
        for n, m in zip(slices.shape[2:], middle, strict=True)
    )
    shift_row, shift_column, turn = poses.T[:, :, None, None]
    row = rows[:, None] - shift_row
    column = columns - shift_column
    cosine, sine = torch.cos(turn), torch.sin(turn)
    # grid_sample counts from -1 to 1 and wants the last axis first.
    points = torch.stack(
        [
            (cosine * column - sine * row) / middle[1],
            (sine * column + cosine * row) / middle[0],
        ],
        dim=-1,
    )
    moved = F.grid_sample(slices, points, mode="bilinear", align_corners=True)
    result = image.movedim(draw.axis, 0).clone()
    result[places] = torch.lerp(slices, moved, draw.weight)[:, 0]
    return result.movedim(0, draw.axis)


def _field(nodes: np.ndarray, image: torch.Tensor) -> torch.Tensor:
    """(X, Y, Z) of a field given at (m, m, m) nodes spread evenly over the image."""
    return resize(torch.from_numpy(nodes).to(image.device)[None], image.shape)[0]


def _nodes(rng: np.random.Generator, low: int, high: int) -> np.ndarray:
    """(m, m, m) float32 standard normal, m from `low` to `high`."""
    m = int(rng.integers(low, high + 1))
    return rng.standard_normal((m, m, m)).astype(np.float32)


def _draw_structure(config: ArtefactConfig, rng: np.random.Generator) -> np.ndarray:
    return _nodes(rng, 8, 24) * np.float32(rng.uniform(0, config.structured_max))


def _draw_spots(config: ArtefactConfig, rng: np.random.Generator) -> Spots:
    rarity = np.float32(rng.uniform(0.5, 1.5))
    return Spots(float(rng.uniform(0, config.blur_max)), 2 * (_nodes(rng, 8, 16) - rarity))


def _acquisition_order(layers: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(n,) slice of every layer, slices being 1 to 4 layers thick; and (m,) the slices in the order
    of their acquisition: every second, third or up to sixth, then the ones between."""
    slice_of = np.arange(layers) // int(rng.integers(1, 5))
    slices = np.arange(slice_of[-1] + 1)
    return slice_of, np.argsort(slices % int(rng.integers(2, 7)), kind="stable")


def _draw_misplacement(
    config: ArtefactConfig, shape: tuple[int, int, int], rng: np.random.Generator
) -> Misplacement:
    """One to three times the brain moves and stays so for 5 to 30 % of the acquisition."""
    axis = int(rng.integers(3))
    slice_of, order = _acquisition_order(shape[axis], rng)
    limits = np.array([config.shift_max, config.shift_max, np.deg2rad(config.turn_max_deg)])
    poses = np.zeros((len(order), 3))
    for _ in range(rng.integers(1, 4)):
        start = rng.integers(len(order))
        moved = order[start : start + max(1, round(rng.uniform(0.05, 0.3) * len(order)))]
        poses[moved] = rng.uniform(-1, 1, 3) * limits
    poses = poses[slice_of]
    places = np.flatnonzero(poses.any(axis=1))
    return Misplacement(
        axis, places, poses[places].astype(np.float32), float(rng.uniform(0.3, 1.0))
    )


def _draw_voids(
    config: ArtefactConfig, shape: tuple[int, int, int], rng: np.random.Generator
) -> Voids:
    """5 to 25 % of the slices."""
    axis = int(rng.integers(3))
    slice_of, order = _acquisition_order(shape[axis], rng)
    struck = rng.uniform(size=len(order)) < rng.uniform(0.05, 0.25)
    losses = rng.uniform(0, config.loss_max, len(order)) * struck
    share = np.clip(0.5 + _nodes(rng, 2, 6), 0, 1)
    return Voids(axis, losses[slice_of].astype(np.float32), share)


def _draw_slab(config: ArtefactConfig, rng: np.random.Generator) -> Slab:
    axis = int(rng.integers(3))
    before, after = rng.uniform(-config.cut_max, config.margin_max, 2)
    return Slab(axis, (float(before), float(after)))


def _draw_halo(config: ArtefactConfig, rng: np.random.Generator) -> Halo:
    """A mask of the brain, or a third to all of `halo_max` wider; sharp or faded."""
    edge = rng.uniform(config.halo_max / 3, config.halo_max) * (rng.uniform() < 0.5)
    fade = rng.uniform(1, 6) * (rng.uniform() < 0.5)
    unevenness = _nodes(rng, 3, 10) * np.float32(rng.uniform(0, 2))
    return Halo(float(edge), float(fade), unevenness)
