"""One synthetic sample: draw every random number first, then render, on any device.

`draw` uses a numpy generator seeded by run seed and sample index, so a resumed run sees the same
stream and a sample can be replayed; `render` is a pure function of map and draw. Image and target
come from the same deformation.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F

from bids_synthseg.anatomy.volume import working_voxel_mm
from bids_synthseg.synthesis import head
from bids_synthseg.synthesis.acquisition import (
    AcquisitionConfig,
    AcquisitionDraw,
    acquire,
    draw_acquisition,
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
from bids_synthseg.synthesis.head import HeadConfig, HeadDraw, draw_head, paint_head


@dataclass(frozen=True)
class SynthesisConfig:
    """All ranges of the generator. `flip` is the probability of a left-right mirror image; `real`
    that of using a paired scan's own intensities, where the map has one, instead of painting;
    `t2_like` that of a T2-like contrast, painted or of a scan: a curriculum may begin with one
    contrast, since tissue is learned sooner where its order of brightness holds; and
    `keep_surroundings` that of keeping the non-brain classes a map has."""

    flip: float = 0.5
    real: float = 0.3
    t2_like: float = 0.0
    keep_surroundings: float = 0.6
    deformation: DeformationConfig = field(default_factory=DeformationConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    acquisition: AcquisitionConfig = field(default_factory=AcquisitionConfig)
    head: HeadConfig = field(default_factory=HeadConfig)


@dataclass(frozen=True)
class SourceMap:
    """A label map ready for synthesis, in canonical (RAS) orientation.

    `classes` (X, Y, Z) uint8: row of the class tables, 0 is background; `outside` (X, Y, Z) uint8:
    distance to the brain in `head.OUTSIDE_UNIT`s; `images` (N, X, Y, Z) float16 paired scans in
    0..1, of the `contrasts` "T1w" or "T2w". `tissues`, `twins`, `surrounding` have one entry per
    class: tissue (TISSUE_OF), class of the other side, and whether it is labelled but no brain.
    `centre` is the voxel at the centre of the brain's box and `extent_mm` the box.
    """

    classes: torch.Tensor
    outside: torch.Tensor
    images: torch.Tensor
    contrasts: tuple[str, ...]
    tissues: np.ndarray
    twins: np.ndarray
    surrounding: np.ndarray
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
    """Every random number of one sample. `noise` (2, X, Y, Z) is standard normal.

    `shape` is the grid the sample is painted on; averages over `pool`^3 voxels are handed out, and
    the class of one of these voxels, the one at `corner`. `affine` (4, 4) leads from a voxel of
    `shape` to one of the source map, `flip` included; `image` is the number of the paired scan
    that is used, or -1; `means`, `spreads`: one entry per class, those of `head` last.
    """

    shape: tuple[int, int, int]
    pool: int
    corner: tuple[int, int, int]
    affine: np.ndarray
    velocity: np.ndarray
    flip: bool
    image: int
    keep_surroundings: bool
    means: np.ndarray
    spreads: np.ndarray
    head: HeadDraw
    acquisition: AcquisitionDraw
    noise: torch.Tensor


def draw(
    source: SourceMap,
    config: SynthesisConfig,
    shape: tuple[int, int, int],
    fill: float,
    rng: np.random.Generator,
    pool: int = 1,
) -> Draw:
    """Draw one sample on a grid of `shape` that the undeformed brain fills to `fill`.

    With `pool` > 1 it is painted on a grid that much finer, so that voxels mix tissues as real
    ones do.
    """
    shape = tuple(n * pool for n in shape)
    flip = bool(rng.uniform() < config.flip)
    affine = draw_affine(config.deformation, shape, flip, rng)
    voxel = working_voxel_mm(source.extent_mm, shape, fill)
    to_source = np.eye(4)
    ratio = voxel / np.array(source.voxel_mm)
    to_source[:3, :3] = np.diag(ratio)
    to_source[:3, 3] = np.array(source.centre) - ratio * (np.array(shape) - 1) / 2
    use_real = rng.uniform() < config.real
    t2_like = bool(rng.uniform() < config.t2_like)
    scans = [n for n, name in enumerate(source.contrasts) if name == "T2w" or not t2_like]
    image = scans[rng.integers(len(scans))] if scans and use_real else -1
    extra = len(source.tissues) + np.arange(head.N_CLASSES)
    tissues = np.concatenate(
        [source.tissues, [TISSUE_OF["csf"]], np.full(head.N_CLASSES - 1, TISSUE_OF["other"])]
    )
    means, spreads = draw_contrast(
        config.contrast, tissues, np.concatenate([source.twins, extra]), rng, t2_like
    )
    noise = torch.randn(
        (2, *shape), generator=torch.Generator().manual_seed(int(rng.integers(2**62)))
    )
    return Draw(
        shape=shape,
        pool=pool,
        corner=tuple(int(n) for n in rng.integers(pool, size=3)),
        affine=to_source @ affine,
        velocity=draw_velocity(config.deformation, shape, rng),
        flip=flip,
        image=image,
        keep_surroundings=bool(rng.uniform() < config.keep_surroundings),
        means=means,
        spreads=spreads,
        head=draw_head(config.head, rng),
        acquisition=draw_acquisition(config.acquisition, rng),
        noise=noise,
    )


def render(source: SourceMap, drawn: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """(X, Y, Z) float32 image and (X, Y, Z) int64 classes of a draw, on the map's device.

    Classes from `len(source.tissues)` on are those of `head`: CSF, skull, fat, skin, blobs.
    """
    device = source.classes.device
    affine = torch.from_numpy(drawn.affine).float().to(device)
    velocity = torch.from_numpy(drawn.velocity).to(device)
    coordinates = sampling_coordinates(affine, velocity, drawn.shape)
    index = nearest_index(coordinates, source.classes.shape)
    inside = index >= 0
    index = index.clamp(min=0).long()
    lookup = np.arange(len(source.tissues))
    if drawn.flip:
        lookup = source.twins[lookup]
    if not drawn.keep_surroundings:
        lookup = np.where(source.surrounding, 0, lookup)
    lookup = torch.from_numpy(lookup).to(device)
    classes = lookup[source.classes.reshape(-1)[index].long()] * inside
    outside = torch.where(inside, source.outside.reshape(-1)[index], 255)
    classes = paint_head(classes, outside, len(source.tissues), source.has_csf, drawn.head)
    noise = drawn.noise.to(device)
    means = torch.from_numpy(drawn.means).to(device)
    spreads = torch.from_numpy(drawn.spreads).to(device)
    image = means[classes] + spreads[classes] * noise[0]
    if drawn.image >= 0:
        scan = sample_linear(source.images[drawn.image][None].float(), coordinates)[0] * inside
        own = (classes < len(source.tissues)) & ((classes > 0) | (scan > 0))
        image = torch.where(own, scan, image)
    image = acquire(image.clamp(min=0), drawn.acquisition, noise[1])
    if drawn.pool > 1:
        image = F.avg_pool3d(image[None, None], drawn.pool)[0, 0]
        classes = classes[tuple(slice(c, None, drawn.pool) for c in drawn.corner)]
    return image, classes
