"""NIfTI in and out: the one module that knows the format.

What is read is checked first, and every fault has one line that names the file and the cure. What
is written lies on the grid of a file that was read, with the very numbers of its header, so that
the affine is equal to the last bit.
"""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from bids_synthseg.anatomy.volume import Grid, Volume
from bids_synthseg.errors import BadData, InputMissing
from bids_synthseg.storage import atomic_file

# Header fields that place voxels in the world; nothing else of the input's header is handed on.
_GEOMETRY = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip
_MM_PER_UNIT = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}
_PLAUSIBLE_VOXEL_MM = (0.1, 10.0)
# A label map repeats few whole numbers over large regions; a scan has noise.
_LABELS_AT_MOST = 64
_FLAT_SHARE = 0.6
_UNREADABLE = (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ValueError)


@dataclass(frozen=True)
class Image:
    """A NIfTI file in memory.

    volume: data (X, Y, Z) on the grid in mm; header: the file's own; warnings: what was odd about
    it and what was done.
    """

    volume: Volume
    header: nib.Nifti1Header
    path: Path
    warnings: tuple[str, ...] = ()


def read_scan(path: Path) -> Image:
    """Read an MR image as float32; voxels that are not finite become 0.

    Raises InputMissing where there is no file, BadData where it cannot be segmented: unreadable,
    not one 3D volume, no orientation, complex or colour voxels, constant, or a label map.
    """
    data, grid, header, warnings = _read(path, np.float32)
    bad = int(data.size - np.isfinite(data).sum())
    if bad == data.size:
        raise BadData(f"{path}: no voxel is a finite number; convert the scan again from DICOM")
    if bad:
        warnings.append(f"{path}: {bad} voxels are NaN or infinite; they were set to 0")
        data = np.nan_to_num(data, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(data.min()), float(data.max())
    if low == high:
        what = "all voxels are 0" if low == 0 else f"all voxels have the same value ({low:g})"
        raise BadData(f"{path}: {what}; replace the file or exclude it with a filter")
    if _is_label_map(data):
        raise BadData(f"{path}: this is a label map, not a scan; give the T1w or T2w image itself")
    if low < 0:
        warnings.append(f"{path}: negative intensities, down to {low:g}; used as they are")
    return Image(Volume(data, grid), header, path, tuple(warnings))


def read_labels(path: Path) -> Image:
    """Read a label map as int32. Raises InputMissing, or BadData as `read_scan` and where a value
    is not a whole number."""
    # Not as float32: that cannot hold every id of a large parcellation.
    data, grid, header, warnings = _read(path, None)
    with np.errstate(invalid="ignore"):  # NaN is found by the comparison
        labels = data.astype(np.int32)
    if not np.can_cast(data.dtype, np.int32) and not np.array_equal(labels, data):
        raise BadData(f"{path}: values are not whole numbers; give a label map, not an image")
    return Image(Volume(labels, grid), header, path, tuple(warnings))


def new_image(volume: Volume, path: Path) -> Image:
    """A volume with a header of its own, in mm and placed by its grid, for `write_image`."""
    header = nib.Nifti1Header()
    header.set_data_shape(volume.data.shape)
    header.set_qform(volume.grid.affine, code=1)
    header.set_sform(volume.grid.affine, code=1)
    header.set_xyzt_units("mm")
    return Image(volume, header, path)


def write_image(
    path: Path,
    data: np.ndarray,
    like: Image,
    dtype: type | np.dtype,
    description: str = "",
    intent: str = "none",
    slope: float = 1.0,
) -> None:
    """Write data (X, Y, Z) or (X, Y, Z, N) on the grid of `like`, whole or not at all.

    Affine, qform, sform and their codes are those of the file `like` was read from, bit for bit.
    With a slope other than 1 the data are stored as whole multiples of it (probabilities as uint8:
    slope 1/255). intent: a NIfTI intent name such as "label" or "estimate".

    Raises ValueError where the data do not fit the grid or the type, CannotCreate or
    StorageProblem where the disk refuses.
    """
    dtype = np.dtype(dtype)
    if data.shape[:3] != like.volume.grid.shape or data.ndim not in (3, 4):
        raise ValueError(f"data {data.shape} do not fit the grid {like.volume.grid.shape}")
    header = _header_like(like.header, data.ndim)
    header.set_data_dtype(dtype)
    header.set_intent(intent)
    header["descrip"] = description.encode("ascii", "replace")[:79]
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = kind(_stored(data, dtype, slope), None, header)
    image.header.set_slope_inter(slope, 0)  # an image forgets the slope of the header it is given
    with atomic_file(path) as stream:
        if path.suffix != ".gz":
            image.to_stream(stream)
            return
        # No name and no time in the gzip header: equal data give equal files.
        with gzip.GzipFile("", "wb", compresslevel=1, fileobj=stream, mtime=0) as packed:
            image.to_stream(packed)


def _read(path: Path, dtype: type | None) -> tuple[np.ndarray, Grid, nib.Nifti1Header, list[str]]:
    """Data (X, Y, Z), grid in mm, header and warnings. Without a dtype the numbers are as they
    stand in the file, but in float64 where the header has them scaled."""
    _check_file(path)
    try:
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Image):
            raise BadData(f"{path}: not a NIfTI file; convert it, for instance with mri_convert")
        shape = _check_shape(path, image)
        header = image.header.copy()
        grid, warnings = _check_geometry(path, header, image.affine, shape)
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and reported as such
            if dtype is None:
                data = np.asanyarray(image.dataobj)
            else:
                data = image.get_fdata(dtype=dtype, caching="unchanged")
    except MemoryError as error:
        raise BadData(f"{path}: too large for the memory; its header may be damaged") from error
    except _UNREADABLE as error:
        raise BadData(f"{path}: truncated or damaged; copy or convert the file again") from error
    if len(image.shape) > 3:
        warnings.append(f"{path}: 4D with one volume; read as 3D")
    return data.reshape(shape), grid, header, warnings


def _check_file(path: Path) -> None:
    """Everything that can be said before the header is read."""
    if path.is_symlink() and not path.exists():
        raise InputMissing(f"{path}: the link leads nowhere; fetch the data ('datalad get')")
    if not path.is_file():
        raise InputMissing(f"{path}: no such file; check the path")
    try:
        with path.open("rb") as stream:
            start = stream.read(2)
    except OSError as error:
        raise BadData(f"{path}: cannot be opened ({error.strerror}); check its rights") from error
    if not start:
        raise BadData(f"{path}: the file is empty (0 bytes); copy or convert it again")
    zipped = start == b"\x1f\x8b"
    if zipped != (path.suffix == ".gz"):
        cure = "rename it to .nii.gz" if zipped else "compress it with gzip or rename it to .nii"
        state = "compressed" if zipped else "not gzip data"
        raise BadData(f"{path}: {state}, other than its name says; {cure}")


def _check_shape(path: Path, image: nib.Nifti1Image) -> tuple[int, int, int]:
    """The shape of the one volume of numbers that there must be."""
    kind = image.get_data_dtype()
    if kind.fields is not None or kind.kind not in "iuf":
        what = "complex" if kind.kind == "c" else "colour (RGB)"
        raise BadData(f"{path}: voxels are {what}; give the magnitude image in shades of grey")
    if min(image.shape, default=0) < 1:
        raise BadData(f"{path}: the image has no voxels; convert the scan again from DICOM")
    if len(image.shape) < 3 or min(image.shape[:3]) == 1:
        raise BadData(f"{path}: 2D (a single slice); give a 3D volume")
    volumes = int(np.prod(image.shape[3:], dtype=np.int64))
    if volumes > 1:
        raise BadData(f"{path}: 4D with {volumes} volumes; give one 3D volume (extract or average)")
    x, y, z = image.shape[:3]
    return x, y, z


def _check_geometry(
    path: Path, header: nib.Nifti1Header, affine: np.ndarray, shape: tuple[int, int, int]
) -> tuple[Grid, list[str]]:
    """The grid in mm, and what is odd about it. nibabel's affine is the sform, else the qform."""
    qform, sform = header.get_qform(coded=True)[0], header.get_sform(coded=True)[0]
    if qform is None and sform is None:
        raise BadData(
            f"{path}: qform and sform are both 0, left and right are unknown; "
            "set one from the scanner's data (convert again from DICOM)"
        )
    try:
        raw = Grid(shape, affine)
    except ValueError as error:
        raise BadData(f"{path}: {error}; convert the scan again from DICOM") from error
    warnings = []
    if qform is not None and sform is not None and _in_conflict(qform, sform, raw):
        warnings.append(f"{path}: qform and sform are in conflict; the sform was used")
    scale, note = _mm_per_unit(header.get_xyzt_units()[0], raw.voxel_size_mm)
    if note:
        warnings.append(f"{path}: {note}")
    grid = Grid(shape, np.diag([scale, scale, scale, 1.0]) @ affine)
    if not _plausible(grid.voxel_size_mm):
        size = " x ".join(f"{side:.3g}" for side in grid.voxel_size_mm)
        warnings.append(f"{path}: implausible voxel size of {size} mm; check the header")
    return grid, warnings


def _in_conflict(qform: np.ndarray, sform: np.ndarray, grid: Grid) -> bool:
    """True where they place some voxel more than half a voxel apart (rounding is far less)."""
    try:
        return not Grid(grid.shape, qform).same_as(
            Grid(grid.shape, sform), tol_mm=float(grid.voxel_size_mm.min()) / 2
        )
    except ValueError:  # a singular qform agrees with nothing
        return True


def _mm_per_unit(unit: str, voxel_size: np.ndarray) -> tuple[float, str]:
    """Factor to mm and, where the unit is not mm, a note. `voxel_size` (3,) is in header units."""
    scale = _MM_PER_UNIT.get(unit, 1.0)
    if unit == "mm":
        return 1.0, ""
    if unit not in _MM_PER_UNIT or unit == "unknown":
        return 1.0, "no unit of length in the header; mm assumed"
    if _plausible(voxel_size) and not _plausible(voxel_size * scale):
        return 1.0, f"the header says {unit}, but the voxel size is one in mm; mm assumed"
    return scale, f"the header's unit is {unit}; converted to mm"


def _plausible(voxel_size_mm: np.ndarray) -> bool:
    low, high = _PLAUSIBLE_VOXEL_MM
    return bool(low <= voxel_size_mm.min() and voxel_size_mm.max() <= high)


def _is_label_map(data: np.ndarray) -> bool:
    """Few distinct whole numbers, and neighbours in the foreground mostly equal.

    Eight-bit scans with few grey values pass as scans because of their noise.
    """
    # A thin sample settles almost every scan without sorting millions of values.
    for values in (data.ravel()[:: max(1, data.size // 50_000)], data):
        distinct, counts = np.unique(values, return_counts=True)
        if len(distinct) > _LABELS_AT_MOST or not np.array_equal(distinct, distinct.round()):
            return False
    foreground = data != distinct[counts.argmax()]
    pairs = equal = 0
    for axis in range(3):
        here, there = _neighbours(data, axis)
        both = np.logical_and(*_neighbours(foreground, axis))
        pairs += int(both.sum())
        equal += int((both & (here == there)).sum())
    return equal >= _FLAT_SHARE * max(1, pairs)


def _neighbours(data: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Views of all voxels but the last and all but the first along an axis."""
    moved = np.moveaxis(data, axis, 0)
    return moved[:-1], moved[1:]


def _header_like(source: nib.Nifti1Header, ndim: int) -> nib.Nifti1Header:
    """A fresh header with the geometry of `source`; in mm where that names no unit."""
    header = type(source)()
    for field in _GEOMETRY:
        header[field] = source[field]
    pixdim = header["pixdim"]
    pixdim[:4] = source["pixdim"][:4]
    unit = source.get_xyzt_units()[0]
    # Viewers and the BIDS validator want a unit for every dimension there is.
    header.set_xyzt_units("mm" if unit == "unknown" else unit, "sec" if ndim == 4 else "unknown")
    return header


def _stored(data: np.ndarray, dtype: np.dtype, slope: float) -> np.ndarray:
    """The numbers as they stand in the file; raises ValueError where they do not fit."""
    if dtype.kind == "f":
        return data.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    stored = np.empty(data.shape, dtype, order="F")
    # Volume by volume: a stack of float posteriors is not held twice.
    stacks = [array[..., None] if array.ndim == 3 else array for array in (data, stored)]
    for values, place in zip(*(np.moveaxis(stack, 3, 0) for stack in stacks), strict=True):
        whole = values if slope == 1.0 else np.rint(values / np.float32(slope))
        fits = whole.min() >= limits.min and whole.max() <= limits.max
        with np.errstate(invalid="ignore"):  # NaN is found by the comparison
            place[...] = whole
        if not fits or not np.array_equal(place, whole):
            raise ValueError(
                f"values from {values.min():g} to {values.max():g} do not fit into {dtype}"
            )
    return stored
