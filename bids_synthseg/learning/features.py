"""The shape of a labelled brain in a few numbers, for samplers that look for what is rare.

All are physical (ml, cm2, 1/mm, ratios), so that they mean the same in every data set; the idea is
that of Shang et al. 2026 (clinical fetal SynthSeg), who count voxels.
"""

import numpy as np

from bids_synthseg.synthesis.contrast import TISSUE_OF

TISSUES = ("csf", "grey", "white")
"""Those with features of their own; what is left of the brain (vessels, lesions) is too little."""

FEATURES = (
    "brain_volume_ml",
    "brain_surface_cm2",
    "brain_surface_to_volume_per_mm",
    *(f"{tissue}_volume_to_brain" for tissue in TISSUES),
    *(f"{tissue}_surface_to_volume_per_mm" for tissue in TISSUES),
)
"""What `shape_features` returns, in this order."""

SURFACE_PER_FACE = 2 / 3
"""A unit of surface with normal n shows voxel faces of area |nx| + |ny| + |nz|, which is 3/2 in the
mean over all directions."""


def shape_features(
    classes: np.ndarray,
    tissues: np.ndarray,
    surrounding: np.ndarray,
    voxel_mm: tuple[float, float, float],
) -> np.ndarray:
    """(F,) float32: FEATURES of a label map, NaN where it labels nothing of the tissue.

    `classes` (X, Y, Z) uint8, 0 is background; (K,) `tissues` (values of TISSUE_OF) and
    `surrounding` (labelled but no brain); `voxel_mm` (3,). Brain is all tissue but CSF, because
    maps differ in whether they label the fluid around it; so CSF, ventricles included, is a
    multiple of the brain's volume. The surface of the brain has the ventricles' walls in it, that
    of a tissue its border with other tissues. Where a map is cut off, the cut counts as surface.
    """
    outside = surrounding | (np.arange(len(tissues)) == 0)
    tissue_of = np.where(outside, TISSUE_OF["background"], tissues).astype(np.uint8)[classes]
    volume_mm3 = np.bincount(tissue_of.ravel(), minlength=len(TISSUE_OF)) * np.prod(voxel_mm)
    border_mm2 = _borders_mm2(np.pad(tissue_of, 1), voxel_mm)

    parts = np.zeros((1 + len(TISSUES), len(TISSUE_OF)), dtype=bool)
    parts[0, [TISSUE_OF[name] for name in ("grey", "white", "other")]] = True
    for part, name in zip(parts[1:], TISSUES, strict=True):
        part[TISSUE_OF[name]] = True
    volumes = parts @ volume_mm3
    surfaces = np.array([border_mm2[part][:, ~part].sum() for part in parts])
    absent = volumes == 0
    volumes[absent] = surfaces[absent] = np.nan
    per_mm = surfaces / volumes
    return np.array(
        [volumes[0] / 1000, surfaces[0] / 100, per_mm[0], *(volumes[1:] / volumes[0]), *per_mm[1:]],
        dtype=np.float32,
    )


def _borders_mm2(tissue_of: np.ndarray, voxel_mm: tuple[float, float, float]) -> np.ndarray:
    """(5, 5) surface between each two tissues, symmetric."""
    n = len(TISSUE_OF)
    borders = np.zeros((n, n))
    for axis in range(3):
        moved = np.moveaxis(tissue_of, axis, 0)
        differ = moved[:-1] != moved[1:]
        pairs = moved[:-1][differ].astype(np.intp) * n + moved[1:][differ]
        counts = np.bincount(pairs, minlength=n**2).reshape(n, n)
        face_mm2 = np.prod(voxel_mm) / voxel_mm[axis]
        borders += (counts + counts.T) * face_mm2 * SURFACE_PER_FACE
    return borders
