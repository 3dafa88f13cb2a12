"""One synthetic sample: draw every random number first, then render, on any device.

`draw` uses a numpy generator seeded by run seed and sample index, so a resumed run sees the same
stream and a sample can be replayed; `render` is a pure function of map and draw, the same on every
device up to float error. Image and target come from the same deformation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F

from bids_synthseg.anatomy.labels import CSF_ID
from bids_synthseg.anatomy.volume import working_voxel_mm
from bids_synthseg.fields import SHARE, check_ranges
from bids_synthseg.synthesis import head
from bids_synthseg.synthesis.acquisition import (
    AcquisitionConfig,
    AcquisitionDraw,
    acquire,
    draw_acquisition,
)
from bids_synthseg.synthesis.artefacts import (
    ArtefactConfig,
    ArtefactDraw,
    apply_artefacts,
    draw_artefacts,
)
from bids_synthseg.synthesis.contrast import TISSUE_OF, ContrastConfig, draw_contrast
from bids_synthseg.synthesis.deformation import (
    DeformationConfig,
    draw_affine,
    draw_velocity,
    nearest_index,
    sample_linear,
    sampling_coordinates,
)
from bids_synthseg.synthesis.head import Donor, HeadConfig, HeadDraw, draw_head, paint_head
from bids_synthseg.synthesis.noise import white_noise
from bids_synthseg.synthesis.parts import PartsConfig, PartsDraw, draw_parts, part_of
from bids_synthseg.synthesis.shape import ShapeConfig, ShapeDraw, draw_shape, reshape_tissue

AIR_FROM = 2
"""So many `head.OUTSIDE_UNIT`s from the brain what is neither painted nor labelled is air; nearer
it may be fluid that a map does not label."""


@dataclass(frozen=True)
class SynthesisConfig:
    """All ranges of the generator. `flip` is the probability of a left-right mirror image; `real`
    that of using a paired scan's own intensities, where the map has one of the contrasts in
    `contrast.prior_contrasts`, instead of painting; `keep_surroundings` that of keeping the
    non-brain classes a map has."""

    flip: float = 0.5
    real: float = 0.0
    keep_surroundings: float = 0.6
    deformation: DeformationConfig = field(default_factory=DeformationConfig)
    shape: ShapeConfig = field(default_factory=ShapeConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    parts: PartsConfig = field(default_factory=PartsConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    acquisition: AcquisitionConfig = field(default_factory=AcquisitionConfig)
    artefacts: ArtefactConfig = field(default_factory=ArtefactConfig)

    def __post_init__(self) -> None:
        check_ranges(self, dict.fromkeys(("flip", "real", "keep_surroundings"), SHARE))


@dataclass(frozen=True)
class SourceMap:
    """A label map ready for synthesis, in canonical (RAS) orientation.

    `classes` (X, Y, Z) uint8: row of the class tables, 0 is background; `outside` (X, Y, Z) uint8:
    distance to the brain in `head.OUTSIDE_UNIT`s; `images` (N, X, Y, Z) float16 paired scans in
    0..1, of the `contrasts` "T1w" or "T2w". One entry per class have `tissues` (TISSUE_OF), `twins`
    (class of the other side), `surrounding` (labelled but no brain), `labels` (the model label that
    stands for it; 0 background) and `roles` (shape.ROLE_OF). `thresholds` (N, 5, MOST, MOST - 1)
    cut each scan's tissues into clusters of intensity (parts.py); N is 0 where none were made.
    `centre` is the voxel at the centre of the brain's box and `extent_mm` the box.
    """

    classes: torch.Tensor
    outside: torch.Tensor
    images: torch.Tensor
    contrasts: tuple[str, ...]
    tissues: np.ndarray
    twins: np.ndarray
    surrounding: np.ndarray
    labels: np.ndarray
    roles: np.ndarray
    thresholds: np.ndarray
    has_csf: bool
    voxel_mm: tuple[float, float, float]
    centre: tuple[float, float, float]
    extent_mm: tuple[float, float, float]

    def to(self, device: torch.device) -> "SourceMap":
        """The same map with its volumes on a device, where `render` then works."""
        return replace(
            self,
            classes=self.classes.to(device),
            outside=self.outside.to(device),
            images=self.images.to(device),
        )


@dataclass(frozen=True)
class Draw:
    """Every random number of one sample; noise as the seed of a field that any device can make.

    `shape` is the grid the sample is painted on; averages over `pool`^3 voxels are handed out, and
    the class of one of these voxels, the one at `corner`. `affine` (4, 4) leads from a voxel of
    `shape` to one of the source map, `flip` included; `image` is the number of the paired scan
    that is used, or -1; `means`, `spreads`: one entry per class, those of `head` last; `contrast`:
    "T1w", "T2w", or "" for one at random.
    """

    shape: tuple[int, int, int]
    pool: int
    corner: tuple[int, int, int]
    affine: np.ndarray
    velocity: np.ndarray
    flip: bool
    image: int
    keep_surroundings: bool
    reshaping: ShapeDraw
    contrast: str
    means: np.ndarray
    spreads: np.ndarray
    parts: PartsDraw | None
    head: HeadDraw
    acquisition: AcquisitionDraw
    artefacts: ArtefactDraw
    noise_seed: int


def working_voxel(
    source: SourceMap, shape: tuple[int, int, int], fill: float, voxel_mm: float = 0.0
) -> float:
    """Side in mm of the voxels of a working grid: `voxel_mm`, or where that is 0 the size at which
    the map's brain fills `shape` to `fill`."""
    return voxel_mm or working_voxel_mm(source.extent_mm, shape, fill)


def draw(
    source: SourceMap,
    config: SynthesisConfig,
    shape: tuple[int, int, int],
    voxel_mm: float,
    rng: np.random.Generator,
    pool: int = 1,
    donors: Sequence[Donor] = (),
    age_weeks: float = math.nan,
) -> Draw:
    """Draw one sample on a grid of `shape` and of `voxel_mm`, centred on the brain.

    With `pool` > 1 it is painted on a grid that much finer, so that voxels mix tissues as real
    ones do. `donors` are the heads that may be put around the brain; `age_weeks` is the age of the
    map after conception, NaN where unknown, by which priors are chosen.
    """
    shape = tuple(n * pool for n in shape)
    flip = bool(rng.uniform() < config.flip)
    affine = draw_affine(config.deformation, shape, flip, rng)
    to_source = np.eye(4)
    ratio = voxel_mm / pool / np.array(source.voxel_mm)
    to_source[:3, :3] = np.diag(ratio)
    to_source[:3, 3] = np.array(source.centre) - ratio * (np.array(shape) - 1) / 2
    wanted = config.contrast.prior_contrasts
    scans = [n for n, name in enumerate(source.contrasts) if name in wanted]
    use_real = rng.uniform() < config.real
    image = int(scans[rng.integers(len(scans))]) if scans and use_real else -1
    extra = np.arange(head.N_CLASSES)
    painted = np.where(extra == head.CSF, TISSUE_OF["csf"], TISSUE_OF["other"])
    contrast = draw_contrast(
        config.contrast,
        tissues=np.concatenate([source.tissues, painted]),
        twins=np.concatenate([source.twins, len(source.twins) + extra]),
        labels=np.concatenate([source.labels, np.where(extra == head.CSF, CSF_ID, -1)]),
        rng=rng,
        age_weeks=age_weeks,
    )
    parts = draw_parts(config.parts, config.contrast, len(source.thresholds), rng)
    # Parts of tissues are drawn at random and take the place of priors.
    seen = "" if parts is not None and parts.counts[1:].any() else contrast.contrast
    return Draw(
        shape=shape,
        pool=pool,
        corner=tuple(int(n) for n in rng.integers(pool, size=3)),
        affine=to_source @ affine,
        velocity=draw_velocity(config.deformation, shape, rng),
        flip=flip,
        image=image,
        keep_surroundings=bool(rng.uniform() < config.keep_surroundings),
        reshaping=draw_shape(config.shape, rng),
        contrast=source.contrasts[image] if image >= 0 else seen,
        means=contrast.means,
        spreads=contrast.spreads,
        parts=parts,
        head=draw_head(config.head, rng, len(donors)),
        acquisition=draw_acquisition(config.acquisition, rng),
        artefacts=draw_artefacts(config.artefacts, shape, rng),
        noise_seed=int(rng.integers(2**31)),
    )


def render(
    source: SourceMap, drawn: Draw, donors: Sequence[Donor] = (), certain_air: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(X, Y, Z) float32 image and (X, Y, Z) int64 classes of a draw, on the map's device.

    Classes from `len(source.tissues)` on are those of `head`. `donors` are those of the draw.
    `certain_air`: for a map whose background may be fluid as well. What is neither painted nor near
    the brain, or empty in a scan around it, then gets the class of the skull, which may not.
    """
    device = source.classes.device
    affine = torch.from_numpy(drawn.affine).float().to(device)
    velocity = torch.from_numpy(drawn.velocity).to(device)
    coordinates = sampling_coordinates(affine, velocity, drawn.shape)
    index = nearest_index(coordinates, source.classes.shape)
    inside = index >= 0
    index = index.clamp(min=0).long()
    outside = torch.where(inside, source.outside.reshape(-1)[index], 255)
    classes = _classes(source, drawn, index, inside)
    classes = _with_head(source, drawn, classes, outside, coordinates, donors)
    noise = white_noise(drawn.noise_seed, drawn.shape, device)
    image = _painted(source, drawn, classes, coordinates, inside, noise[0])
    if certain_air:
        air = (classes == 0) & (outside > AIR_FROM)
        if drawn.image >= 0:
            air = (classes == 0) & (image == 0) & (outside > 0)
        classes = torch.where(air, len(source.tissues) + head.SKULL, classes)
    image = acquire(image.clamp(min=0), drawn.acquisition, noise.flip(0))
    image = apply_artefacts(image, outside.float(), drawn.artefacts)
    if drawn.pool > 1:
        image = F.avg_pool3d(image[None, None], drawn.pool)[0, 0]
        classes = classes[tuple(slice(c, None, drawn.pool) for c in drawn.corner)]
    return image, classes


def _classes(
    source: SourceMap, drawn: Draw, index: torch.Tensor, inside: torch.Tensor
) -> torch.Tensor:
    """(X, Y, Z) int64 classes at flat voxel numbers of the map, sides and tissue as drawn."""
    lookup = np.arange(len(source.tissues))
    if drawn.flip:
        lookup = source.twins[lookup]
    if not drawn.keep_surroundings:
        lookup = np.where(source.surrounding, 0, lookup)
    on_device = torch.from_numpy(lookup).to(source.classes.device)
    classes = on_device[source.classes.reshape(-1)[index].long()] * inside
    # A scan's own intensities cannot follow tissue that moved.
    return classes if drawn.image >= 0 else reshape_tissue(classes, source.roles, drawn.reshaping)


def _with_head(
    source: SourceMap,
    drawn: Draw,
    classes: torch.Tensor,
    outside: torch.Tensor,
    coordinates: torch.Tensor,
    donors: Sequence[Donor],
) -> torch.Tensor:
    donor = donors[drawn.head.donor] if drawn.head.donor >= 0 else None
    relative = None
    if donor is not None:
        scale = np.array(source.voxel_mm) / np.array(source.extent_mm)
        per_voxel, centre = (
            torch.tensor(np.asarray(v), dtype=torch.float32, device=classes.device).view(3, 1, 1, 1)
            for v in (scale, source.centre)
        )
        relative = (coordinates - centre) * per_voxel
    return paint_head(
        classes, outside, len(source.tissues), source.has_csf, drawn.head, relative, donor
    )


def _painted(
    source: SourceMap,
    drawn: Draw,
    classes: torch.Tensor,
    coordinates: torch.Tensor,
    inside: torch.Tensor,
    noise: torch.Tensor,
) -> torch.Tensor:
    """(X, Y, Z) intensities: of classes, of parts of tissues, or of the scan beside the map."""
    device = classes.device
    n_own = len(source.tissues)

    def scan(number: int) -> torch.Tensor:
        return sample_linear(source.images[number][None].float(), coordinates)[0] * inside

    means, spreads = drawn.means, drawn.spreads
    cell = classes
    if drawn.parts is not None:
        parts = drawn.parts
        tissues = np.concatenate([source.tissues, np.full(len(means) - n_own, TISSUE_OF["other"])])
        paired = parts.image >= 0
        part = part_of(
            torch.from_numpy(tissues).to(device)[classes],
            scan(parts.image) if paired else None,
            source.thresholds[parts.image] if paired else None,
            parts,
        )
        # What `head` painted keeps its class; parts come after all classes.
        own = (part >= 0) & (classes < n_own)
        cell = torch.where(own, len(means) + part, classes)
        means = np.concatenate([means, parts.means.ravel()])
        spreads = np.concatenate([spreads, parts.spreads.ravel()])
    image = torch.from_numpy(means).to(device)[cell]
    image = image + torch.from_numpy(spreads).to(device)[cell] * noise
    if drawn.image >= 0:
        real = scan(drawn.image)
        own = (classes < n_own) & ((classes > 0) | (real > 0))
        image = torch.where(own, real, image)
    return image
