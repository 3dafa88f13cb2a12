"""What is outside the brain: nothing, shells of CSF, skull and scalp, a borrowed head, blobs, or
a body.

The label map comes with `outside`, the distance of every voxel to the brain in units of 1/200 of
the brain's size; shells are intervals of that distance with an uneven border, so one small map
serves every head that is drawn.

A borrowed head is what another map, the donor, labels around its own brain: it is scaled so that
the boxes of both brains coincide, and follows the deformation of the map that borrows it.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from bids_synthseg.fields import SHARE, check_ranges
from bids_synthseg.synthesis.deformation import nearest_index, resize

OUTSIDE_UNIT = 1 / 200
"""One step of the `outside` map, as a fraction of the brain's size."""

CSF, SKULL, FAT, SKIN, BLOB = range(5)
"""Classes painted by this module, counted from the end of a map's own classes."""
BLOB_LEVELS = (0.2, 0.7, 1.3)
"""Where the random field exceeds one of these, a class of blob begins."""
BORROWED = BLOB + len(BLOB_LEVELS)
"""First class of a borrowed head."""
MOST_BORROWED = 24
"""Classes that a borrowed head may have."""
N_CLASSES = BORROWED + MOST_BORROWED

INSIDE, AIR = -1, 0
"""What a donor's class may be besides 1, 2, ..., the classes of its head: inside its skull, air."""
LEAST_CLASSES = 3
"""A donor's head has at least so many classes: with fewer there is no telling skull from scalp."""
LEAST_HEAD = 0.5
"""A donor's head has at least this fraction of its brain's voxels: less does not surround it."""


@dataclass(frozen=True)
class HeadConfig:
    """Probabilities: a head of shells, CSF alone, a borrowed head, else a bare brain; of blobs
    around it; and, where there are blobs, of a `body` that leaves no gap between them, as a fetus
    lies in its mother's."""

    shells: float = 0.55
    csf_only: float = 0.25
    borrowed: float = 0.0
    blobs: float = 0.35
    body: float = 0.0

    def __post_init__(self) -> None:
        kinds, around = (self.shells, self.csf_only, self.borrowed), (self.blobs, self.body)
        if min(*kinds, *around) < 0 or sum(kinds) > 1 + 1e-9 or max(around) > 1:
            raise ValueError(
                "shells, csf_only, borrowed, blobs and body are probabilities; the sum of the "
                "first three must not exceed 1"
            )
        names = ("shells", "csf_only", "borrowed", "blobs", "body")
        check_ranges(self, dict.fromkeys(names, SHARE))


@dataclass(frozen=True)
class Donor:
    """A map whose head is borrowed, in canonical (RAS) orientation.

    `classes` (X, Y, Z) uint8, shared with the map; `kinds` (K,) int64: what each class is, INSIDE,
    AIR, or 1 to MOST_BORROWED; `centre`, the voxel at the centre of the brain's box, and
    `extent_mm`, the box.
    """

    classes: torch.Tensor
    kinds: np.ndarray
    voxel_mm: tuple[float, float, float]
    centre: tuple[float, float, float]
    extent_mm: tuple[float, float, float]

    def to(self, device: torch.device) -> "Donor":
        """The same donor with its volume on a device."""
        return replace(self, classes=self.classes.to(device))


def donor_of(
    classes: torch.Tensor,
    surrounding: np.ndarray,
    voxel_mm: tuple[float, float, float],
    centre: tuple[float, float, float],
    extent_mm: tuple[float, float, float],
) -> Donor | None:
    """The head of a map as a donor, or None where the map shows too little of one.

    `classes` (X, Y, Z) uint8, 0 is background; `surrounding` (K,) bool: labelled but no brain.
    """
    voxels = torch.bincount(classes.flatten(), minlength=len(surrounding)).cpu().numpy()
    head = np.flatnonzero(surrounding & (voxels > 0))
    n_brain = voxels[1:][~surrounding[1:]].sum()
    if len(head) < LEAST_CLASSES or voxels[head].sum() < LEAST_HEAD * n_brain:
        return None
    kinds = np.full(len(surrounding), INSIDE, dtype=np.int64)
    kinds[0] = AIR
    # Should there be too many classes, some share one: neighbours still differ, mostly.
    kinds[head] = 1 + np.arange(len(head)) % MOST_BORROWED
    return Donor(classes, kinds, voxel_mm, centre, extent_mm)


@dataclass(frozen=True)
class HeadDraw:
    """`edges`: outer border of CSF, skull, fat and skin, in `OUTSIDE_UNIT`s (0: absent);
    `unevenness` (n, n, n): what is added to the distance; `blobs` (m, m, m): random field;
    `donor`: number of the donor whose head is borrowed, or -1; `body`: blobs without gaps."""

    edges: tuple[float, float, float, float]
    unevenness: np.ndarray
    blobs: np.ndarray | None
    donor: int = -1
    body: bool = False


def draw_head(config: HeadConfig, rng: np.random.Generator, n_donors: int = 0) -> HeadDraw:
    """Draw the surroundings of one sample. Without donors, shells stand for a borrowed head."""
    kind = rng.uniform()
    csf = rng.uniform(2, 9)
    donor = -1
    borrows = 0 <= kind - config.shells - config.csf_only < config.borrowed
    if borrows and n_donors:
        donor = int(rng.integers(n_donors))
        # The donor's fluid fills what its skull leaves; this much there is where brain meets bone.
        edges = (float(rng.uniform(0, 3)),) * 4
    elif borrows or kind < config.shells:
        thickness = np.array([csf, rng.uniform(2, 9), rng.uniform(0, 7), rng.uniform(1, 7)])
        edges = tuple(float(edge) for edge in np.cumsum(thickness))
    elif kind < config.shells + config.csf_only:
        edges = (float(csf),) * 4
    else:
        edges = (0.0,) * 4
    nodes = int(rng.integers(3, 9))
    uneven = rng.standard_normal((nodes, nodes, nodes)).astype(np.float32)
    blobs, body = None, False
    if rng.uniform() < config.blobs:
        nodes = int(rng.integers(4, 10))
        blobs = rng.standard_normal((nodes, nodes, nodes)).astype(np.float32)
        body = bool(rng.uniform() < config.body)
    return HeadDraw(edges, uneven * np.float32(rng.uniform(0.5, 2.5)), blobs, donor, body)


def paint_head(
    classes: torch.Tensor,
    outside: torch.Tensor,
    n_map_classes: int,
    has_csf: bool,
    draw: HeadDraw,
    relative: torch.Tensor | None = None,
    donor: Donor | None = None,
) -> torch.Tensor:
    """Replace background (class 0) around the brain by this module's classes.

    `classes` (X, Y, Z) and `outside` (X, Y, Z) lie on one grid; nothing inside the brain changes.
    A new class is `n_map_classes` plus CSF, SKULL, FAT, SKIN, or BLOB, BORROWED and following. A
    map that `has_csf` of its own gets the outer shells alone, directly around it. The head of a
    `donor` needs `relative` (3, X, Y, Z): the voxel's place from the centre of the brain's box, in
    sides of the box.
    """
    shape = tuple(classes.shape)
    device = classes.device
    uneven = resize(torch.from_numpy(draw.unevenness).to(device)[None], shape)[0]
    distance = outside.float() + uneven + (draw.edges[CSF] if has_csf else 0.0)
    background = classes == 0
    result = classes
    lower = draw.edges[CSF] if has_csf else -float("inf")
    for shell, upper in enumerate(draw.edges):
        if upper > 0 and not (has_csf and shell == CSF):
            inside = background & (distance > lower) & (distance <= upper)
            result = torch.where(inside, n_map_classes + shell, result)
            lower = upper
    if donor is not None and relative is not None:
        # Within the borrowed skull is fluid. But a map with fluid of its own says where that ends,
        # and its target there is background: then the skull is the thicker.
        filling = n_map_classes + (SKULL if has_csf else CSF)
        painted = np.where(donor.kinds > AIR, n_map_classes + BORROWED - 1 + donor.kinds, 0)
        painted[donor.kinds == INSIDE] = filling
        result = torch.where(result == 0, _borrowed(donor, relative, painted), result)
    if draw.blobs is not None:
        field = resize(torch.from_numpy(draw.blobs).to(device)[None], shape)[0]
        free = (result == 0) & (draw.body | (distance > draw.edges[-1] + 2))
        levels = (-float("inf"), *BLOB_LEVELS[1:]) if draw.body else BLOB_LEVELS
        for number, level in enumerate(levels):
            result = torch.where(free & (field > level), n_map_classes + BLOB + number, result)
    return result


def _borrowed(donor: Donor, relative: torch.Tensor, painted: np.ndarray) -> torch.Tensor:
    """(X, Y, Z) entries of `painted` (K,) for the donor's classes at places relative to its brain;
    beyond its volume 0."""
    device = donor.classes.device
    per_box, centre = (
        torch.tensor(v, dtype=torch.float32, device=device).view(3, 1, 1, 1)
        for v in (np.divide(donor.extent_mm, donor.voxel_mm), donor.centre)
    )
    index = nearest_index(relative * per_box + centre, donor.classes.shape)
    found = donor.classes.reshape(-1)[index.clamp(min=0).long()].long()
    return torch.from_numpy(painted).to(device)[found] * (index >= 0)
