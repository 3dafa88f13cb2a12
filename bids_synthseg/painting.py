"""Heads painted from one label map, the same ones every time: images whose labels are known.

Unlike in training nothing is deformed, and the image lies on voxels of its own, not on a working
grid: it is to be segmented as a scan is, locator and all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bids_synthseg.anatomy.islands import largest_component
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.volume import Grid, Volume
from bids_synthseg.errors import BadData
from bids_synthseg.learning.datasets import find_label_maps
from bids_synthseg.learning.label_sets import SourceLabel, read_source_labels
from bids_synthseg.learning.map_files import load_map
from bids_synthseg.learning.validation import UNTOUCHED
from bids_synthseg.synthesis import head
from bids_synthseg.synthesis.acquisition import AcquisitionConfig
from bids_synthseg.synthesis.contrast import TISSUE_OF, ContrastConfig
from bids_synthseg.synthesis.head import HeadConfig
from bids_synthseg.synthesis.recipe import SourceMap, SynthesisConfig, draw, render

SEED = 4
"""Of all heads painted here; another one makes another test."""

ROOM = 1.5
"""Sides of an image in sides of the brain's box: the thickest scalp ends within."""

MATURE_MONTHS = 9
"""From this age on white matter is the brighter tissue on T1w and the darker on T2w."""

MATURE_GREYS = {
    "T1w": {"csf": 0.15, "grey": 0.5, "white": 0.8},
    "T2w": {"csf": 0.95, "grey": 0.55, "white": 0.35},
}
"""Greys of a myelinated brain by tissue; younger ones look as the newborns that were measured."""

# Every range that matters is written down: a default that changes must not change the test.
_HEAD = HeadConfig(shells=1.0, csf_only=0.0, borrowed=0.0, blobs=0.35)
ANY_CONTRAST = replace(
    UNTOUCHED,
    real=0.0,
    head=_HEAD,
    contrast=ContrastConfig(
        spread_max=0.05,
        prior=0.0,
        tissue_sharing=0.5,
        tissue_jitter=0.08,
        side_sharing=1.0,
        fuse=0.0,
        dark_background=1.0,
    ),
    acquisition=AcquisitionConfig(
        bias=0.3,
        gamma=0.2,
        noise_max=0.1,
        sharp=0.5,
        one_axis=0.25,
        spacing_max=4.0,
        isotropic_max=1.7,
    ),
)
"""Random contrasts, and what scanners do to them; half are of 1 mm, a quarter has thick slices."""
_LIKE_A_SCAN = replace(
    ANY_CONTRAST,
    acquisition=AcquisitionConfig(bias=0.2, gamma=0.0, noise_max=0.05, sharp=1.0, one_axis=0.0),
)


@dataclass(frozen=True, eq=False)
class PaintedHead:
    """`image` float32 and `reference` int32, ids of the map's own dseg.tsv, on one grid."""

    image: Volume
    reference: Volume


@dataclass(frozen=True, eq=False)
class Sitter:
    """The label map that heads are painted from; `labels` are those of its dseg.tsv."""

    source: SourceMap
    labels: Sequence[SourceLabel]

    @property
    def brain_ml(self) -> float:
        """Volume of all labelled voxels."""
        voxels = int((self.source.classes > 0).sum())
        return voxels * float(np.prod(self.source.voxel_mm)) / 1000

    def scaled_to(self, brain_ml: float) -> "Sitter":
        """The same brain, larger or smaller."""
        factor = (brain_ml / self.brain_ml) ** (1 / 3)
        sides = {
            name: tuple(factor * side for side in getattr(self.source, name))
            for name in ("voxel_mm", "extent_mm")
        }
        return replace(self, source=replace(self.source, **sides))


def read_sitter(folder: Path) -> Sitter:
    """The one label map of a BIDS folder, without voxels that lie apart from its brain.

    Raises InputMissing or BadData where there is no such map.
    """
    paths = find_label_maps(folder)
    if len(paths) != 1:
        raise BadData(f"{folder}: {len(paths)} label maps; this test is made from a single one")
    table = LabelTable.default()
    labels = read_source_labels(folder / "dseg.tsv", table)
    source = load_map(paths[0], folder.name, labels, table).source
    classes = source.classes.numpy()
    kept = np.where(largest_component(classes > 0), classes, 0).astype(np.uint8)
    return Sitter(replace(source, classes=torch.from_numpy(kept)), labels)


def paint_contrast(sitter: Sitter, number: int) -> PaintedHead:
    """Head `number` in a random contrast, on voxels as large as the map's."""
    rng = np.random.default_rng([SEED, number])
    return _paint(sitter, ANY_CONTRAST, float(min(sitter.source.voxel_mm)), rng)


def paint_age(sitter: Sitter, contrast: str, months: int, voxel_mm: float = 1.0) -> PaintedHead:
    """A head that looks as T1w or T2w (`contrast`) does at an age in months."""
    rng = np.random.default_rng([SEED, months, int(contrast == "T2w")])
    newborn = replace(
        _LIKE_A_SCAN.contrast,
        prior=1.0,
        prior_contrasts=(contrast,),
        prior_table="newborn",
        prior_spread_max=0.05,
    )
    greys = MATURE_GREYS[contrast] if months >= MATURE_MONTHS else {}
    return _paint(sitter, replace(_LIKE_A_SCAN, contrast=newborn), voxel_mm, rng, greys)


def _paint(
    sitter: Sitter,
    config: SynthesisConfig,
    voxel_mm: float,
    rng: np.random.Generator,
    greys: Mapping[str, float] | None = None,
) -> PaintedHead:
    """`greys` take the place of the means that are drawn for a tissue's classes."""
    source = sitter.source
    shape = tuple(int(np.ceil(ROOM * side / voxel_mm)) for side in source.extent_mm)
    drawn = draw(source, config, shape, voxel_mm, rng)
    means = drawn.means.copy()
    for tissue, grey in (greys or {}).items():
        means[: len(source.tissues)][source.tissues == TISSUE_OF[tissue]] = grey
        if tissue == "csf":
            means[len(source.tissues) + head.CSF] = grey
    image, classes = render(source, replace(drawn, means=means))
    ids = np.zeros(len(means), dtype=np.int32)
    ids[: len(sitter.labels)] = [label.index for label in sitter.labels]
    affine = np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = -voxel_mm * (np.array(shape) - 1) / 2
    grid = Grid(shape, affine)
    return PaintedHead(Volume(image.numpy(), grid), Volume(ids[classes.numpy()], grid))
