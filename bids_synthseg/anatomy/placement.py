"""The grid that a NIfTI header describes: which of its fields place the scan, and which contradict.

A header says twice where voxels lie (sform, qform) and twice how large they are (sform, pixdim).
What is valid is used and what is not is a note; contradictions that change place or size are
warnings, which ask for a look.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bids_synthseg.anatomy.volume import Grid

MM_PER_UNIT: Mapping[int, tuple[str, float]] = {
    1: ("meter", 1000.0),
    2: ("mm", 1.0),
    3: ("micron", 0.001),
}
"""NIfTI code of a unit of length -> its name and factor."""

SAME_SIZE = 0.01
"""Relative difference from which on two voxel sizes contradict each other; rounding is far less."""

_PLAUSIBLE_VOXEL_MM = (0.1, 10.0)
_POSSIBLE_VOXEL_MM = (0.001, 1000.0)
_FARTHEST_MM = 1e5  # beyond it, single precision no longer places a voxel
_INVALID = "the {} is no valid affine"
_AGAIN = "convert the scan again from DICOM"


@dataclass(frozen=True, eq=False)
class Placement:
    """Where a scan lies.

    grid: in mm; invalid: "sform" or "qform", where it is set and cannot be used; pixdim_valid:
    whether the header's own voxel sizes are usable; notes: what was not used; warnings: what
    contradicts.
    """

    grid: Grid
    invalid: str | None
    pixdim_valid: bool
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def placement_of(
    shape: tuple[int, int, int],
    sform: np.ndarray | None,
    qform: np.ndarray | None,
    pixdim: np.ndarray,
    unit: int,
) -> Placement:
    """The placement of a scan of `shape`.

    sform, qform: (4, 4) in the header's unit, None where their codes are 0; pixdim: (3,) voxel
    sizes as they stand in the header; unit: NIfTI code of the unit of length. Raises ValueError,
    with fault and cure, where left and right, place or size cannot be told.
    """
    pixdim = np.asarray(pixdim, dtype=np.float64)
    sizes_known = bool(np.isfinite(pixdim).all() and (pixdim != 0).all())
    forms = {"sform": sform, "qform": qform if sizes_known else _unsized(qform)}
    coded = {name: affine for name, affine in forms.items() if affine is not None}
    if not coded:
        raise ValueError(
            "qform and sform are both 0, left and right are unknown; "
            "set one from the scanner's data (convert again from DICOM)"
        )
    grids, faults = {}, {}
    for name, affine in coded.items():
        try:
            grids[name] = Grid(shape, affine)
        except ValueError as error:
            faults[name] = str(error)
    if not grids:
        if qform is not None and not sizes_known:
            raise ValueError(
                "the voxel sizes (pixdim) are 0 or no numbers, and no sform tells them; set them "
                "from the scanner's data (convert again from DICOM)"
            )
        raise ValueError(f"{next(iter(faults.values()))}; {_AGAIN}")
    form, raw = next(iter(grids.items()))
    invalid = next(iter(faults), None)
    notes = [f"{_INVALID.format(invalid)}; the {form} was used"] if invalid else []
    warnings = []
    if len(grids) == 2 and _in_conflict(raw, grids["qform"]):
        warnings.append("qform and sform are in conflict; the sform was used")
    if not sizes_known:
        notes.append("the voxel sizes (pixdim) are 0 or no numbers; those of the sform were used")
    elif not np.allclose(np.abs(pixdim), raw.voxel_size_mm, rtol=SAME_SIZE, atol=0):
        own, used = _size(np.abs(pixdim)), _size(raw.voxel_size_mm)
        warnings.append(
            f"the header names two voxel sizes, {own} mm (pixdim) and {used} mm ({form}); "
            f"{used} mm was used: compare the brain's volume with what is to be expected"
        )
    scale, note = _mm_per_unit(unit, raw.voxel_size_mm)
    grid = Grid(shape, np.diag([scale, scale, scale, 1.0]) @ raw.affine)
    sides = grid.voxel_size_mm
    low, high = _POSSIBLE_VOXEL_MM
    if not (low <= sides.min() and sides.max() <= high):
        raise ValueError(f"voxels of {_size(sides)} mm are impossible; {_AGAIN}")
    if np.abs(grid.affine[:3, 3]).max() > _FARTHEST_MM:
        raise ValueError(f"the header places the scan more than 100 m away; {_AGAIN}")
    if not _plausible(sides):
        warnings.append(f"implausible voxel size of {_size(sides)} mm; check the header")
    notes += [note] if note else []
    return Placement(grid, invalid, sizes_known, tuple(notes), tuple(warnings))


def _unsized(qform: np.ndarray | None) -> np.ndarray | None:
    """A qform takes its voxel sizes from pixdim: without them it is none."""
    return None if qform is None else np.full((4, 4), np.nan)


def _in_conflict(sform: Grid, qform: Grid) -> bool:
    """True where they place some voxel more than half a voxel apart (rounding is far less)."""
    return not qform.same_as(sform, tol_mm=float(sform.voxel_size_mm.min()) / 2)


def _mm_per_unit(unit: int, voxel_size: np.ndarray) -> tuple[float, str]:
    """Factor to mm and, where the unit is not mm, a note. `voxel_size` (3,) is in header units."""
    if unit == 0:
        return 1.0, "no unit of length in the header; mm assumed"
    if unit not in MM_PER_UNIT:
        return 1.0, f"the header's unit of length has the unknown code {unit}; mm assumed"
    name, scale = MM_PER_UNIT[unit]
    if scale == 1.0:
        return scale, ""
    if _plausible(voxel_size) and not _plausible(voxel_size * scale):
        return 1.0, f"the header says {name}, but the voxel size is one in mm; mm assumed"
    return scale, f"the header's unit is {name}; converted to mm"


def _plausible(voxel_size_mm: np.ndarray) -> bool:
    low, high = _PLAUSIBLE_VOXEL_MM
    return bool(low <= voxel_size_mm.min() and voxel_size_mm.max() <= high)


def _size(sides_mm: np.ndarray) -> str:
    return " x ".join(f"{side:.3g}" for side in sides_mm)
