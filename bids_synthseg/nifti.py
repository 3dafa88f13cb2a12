"""NIfTI in and out: the one module that knows the format.

What is read is checked first, and every fault has one line that names the file and the cure. What
is written lies on the grid of a file that was read, with the very numbers of its header, so that
the affine is equal to the last bit.
"""

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from bids_synthseg.anatomy.label_maps import is_label_map
from bids_synthseg.anatomy.placement import MM_PER_UNIT, placement_of
from bids_synthseg.anatomy.volume import Grid, Volume
from bids_synthseg.errors import BadData
from bids_synthseg.reading import read_head, unreadable
from bids_synthseg.storage import atomic_file

# Header fields that place voxels in the world; nothing else of the input's header is handed on.
_FIELDS_OF = {
    "qform": ("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
              "qoffset_z"),
    "sform": ("sform_code", "srow_x", "srow_y", "srow_z"),
}  # fmt: skip
_LAST_FORM_CODE = 5
_HEADER_BYTES = (348, 540)


@dataclass(frozen=True, eq=False)
class Geometry:
    """What a header says of a scan that can be read.

    grid: in mm; header: in order; dtype: of the voxels, which begin at byte `offset`; notes: what
    was not used, or assumed; warnings: what contradicts and asks for a look.
    """

    grid: Grid
    header: nib.Nifti1Header
    dtype: np.dtype
    offset: int
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Image:
    """A NIfTI file in memory.

    volume: data (X, Y, Z) on the grid in mm; header: the file's own, in order; warnings: what asks
    for a look; notes: what was odd about it, and harmless.
    """

    volume: Volume
    header: nib.Nifti1Header
    path: Path
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_scan(path: Path) -> Image:
    """Read an MR image as float32; voxels that are not finite become 0.

    Raises InputMissing where there is no file, BadData where it cannot be segmented: unreadable,
    not one 3D volume, no orientation, complex or colour voxels, constant, or a label map.
    """
    data, found = _read(path, np.float32)
    warnings, notes = list(found.warnings), list(found.notes)
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
    if is_label_map(data):
        raise BadData(f"{path}: this is a label map, not a scan; give the T1w or T2w image itself")
    if low < 0:
        notes.append(f"{path}: negative intensities, down to {low:g}; used as they are")
    return Image(Volume(data, found.grid), found.header, path, tuple(warnings), tuple(notes))


def read_labels(path: Path) -> Image:
    """Read a label map as int32. Raises InputMissing, or BadData as `read_scan` and where a value
    is not a whole number."""
    # Not as float32: that cannot hold every id of a large parcellation.
    data, found = _read(path, None)
    with np.errstate(invalid="ignore"):  # NaN is found by the comparison
        labels = data.astype(np.int32)
    if not np.can_cast(data.dtype, np.int32) and not np.array_equal(labels, data):
        raise BadData(f"{path}: values are not whole numbers; give a label map, not an image")
    return Image(Volume(labels, found.grid), found.header, path, found.warnings, found.notes)


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


def read_geometry(path: Path) -> Geometry:
    """All that the header alone says; errors as `read_scan`, for faults of header and file."""
    with _opened(path) as stream:
        return _geometry(path, _header(path, stream))


def _read(path: Path, dtype: type | None) -> tuple[np.ndarray, Geometry]:
    """Data (X, Y, Z), and what the header says. Without a dtype the numbers are as they stand in
    the file, but in float64 where the header has them scaled."""
    with _opened(path) as stream:
        header = _header(path, stream)
        found = _geometry(path, header)
        scaling = tuple(float(header[field]) for field in ("scl_slope", "scl_inter"))
        slope, inter = (1.0, 0.0) if 0 in scaling[:1] else scaling
        spec = (found.grid.shape, header.get_data_dtype(), found.offset, slope, inter)
        proxy = nib.arrayproxy.ArrayProxy(stream, spec, mmap=False)
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and reported as such
            data = np.asanyarray(proxy, dtype=dtype)
        # To the end of the archive, where its checksum stands.
        while stream.read(1 << 20):
            pass
    return data, found


@contextmanager
def _opened(path: Path) -> Iterator[BufferedIOBase]:
    """The unpacked bytes of a file, whose faults become one line meanwhile.

    Not nibabel's own opener: with indexed_gzip installed that compares no checksums.
    """
    zipped = read_head(path)[:2] == b"\x1f\x8b"
    if zipped != (path.suffix == ".gz"):
        cure = "rename it to .nii.gz" if zipped else "compress it with gzip or rename it to .nii"
        state = "compressed" if zipped else "not gzip data"
        raise BadData(f"{path}: {state}, other than its name says; {cure}")
    try:
        with path.open("rb") as raw, gzip.GzipFile(fileobj=raw) if zipped else raw as stream:
            yield stream
    except MemoryError as error:
        raise BadData(
            f"{path}: too large for the memory; give it more, or a coarser scan"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        if "CRC" in str(error):
            raise BadData(f"{path}: damaged, its checksum is wrong; copy it again") from error
        raise BadData(f"{path}: truncated or damaged; copy or convert the file again") from error
    except OSError as error:
        if error.errno is None:  # nibabel's own: fewer bytes than the header says
            raise BadData(f"{path}: truncated; copy or convert the file again") from error
        raise unreadable(error, path) from error


def _header(path: Path, stream: BufferedIOBase) -> nib.Nifti1Header:
    """The header as it stands in the file; BadData for none, or one that describes no data."""
    block = stream.read(_HEADER_BYTES[1])
    size = {int.from_bytes(block[:4], order) for order in ("little", "big")}
    kind = nib.Nifti2Header if _HEADER_BYTES[1] in size else nib.Nifti1Header
    n_bytes = kind.template_dtype.itemsize
    if len(block) < n_bytes:
        raise BadData(f"{path}: truncated or damaged; copy or convert the file again")
    header = kind(block[:n_bytes], check=False)
    if n_bytes not in size or header["magic"].item().rstrip(b"\0")[:2] != b"n+":
        raise BadData(f"{path}: not a NIfTI file, or damaged; convert it again, for instance with "
                      "dcm2niix or mri_convert")  # fmt: skip
    return header


def _geometry(path: Path, header: nib.Nifti1Header) -> Geometry:
    """What the header says; it is put in order: fields that are not valid are unset."""
    shape, dtype = _check_shape(path, header), _check_type(path, header)
    offset = float(header["vox_offset"])
    first = header.single_vox_offset if offset == 0 else offset
    # Nothing packs better than 1032 to 1, so that a header cannot ask for any memory it likes.
    room = path.stat().st_size * (1032 if path.suffix == ".gz" else 1)
    if not header.single_vox_offset <= first <= room - math.prod(shape) * dtype.itemsize:
        raise BadData(f"{path}: truncated, or its header is damaged; copy or convert it again")
    pixdim = header["pixdim"][1:4].copy()
    header["pixdim"][1:4] = np.where(np.isfinite(pixdim) & (pixdim != 0), np.abs(pixdim), 1)
    if header["pixdim"][0] not in (-1, 1):
        header["pixdim"][0] = 1
    unit = int(header["xyzt_units"]) & 7
    notes = []
    for field in ("qform_code", "sform_code"):
        if (code := int(header[field])) > _LAST_FORM_CODE:
            notes.append(f"{field} has the unknown value {code}; taken as the scanner's space")
            header[field] = 1
    try:
        sform = header.get_sform() if header["sform_code"] > 0 else None
        qform = _qform(header) if header["qform_code"] > 0 else None
        placement = placement_of(shape, sform, qform, pixdim, unit)
    except ValueError as error:
        raise BadData(f"{path}: {error}") from error
    if not placement.pixdim_valid:
        header["pixdim"][1:4] = np.linalg.norm(header.get_sform()[:3, :3], axis=0)
    if placement.invalid:
        for field in _FIELDS_OF[placement.invalid]:
            header[field] = 0
    notes += placement.notes
    if (pixdim < 0).any():
        notes.append("negative voxel sizes (pixdim); used without their sign")
    if not np.isfinite(scaling := [float(header["scl_slope"]), float(header["scl_inter"])]).all():
        notes.append("slope or intercept of the intensities is no number; 1 and 0 were used")
        slope_valid = math.isfinite(scaling[0])
        header["scl_slope"], header["scl_inter"] = scaling[0] if slope_valid else 1, 0
    if int(header["dim"][0]) > 3:
        notes.append("4D with one volume; read as 3D")
    return Geometry(
        placement.grid,
        header,
        dtype,
        int(first),
        tuple(f"{path}: {note}" for note in notes),
        tuple(f"{path}: {warning}" for warning in placement.warnings),
    )


def _qform(header: nib.Nifti1Header) -> np.ndarray:
    """(4, 4), not finite where the quaternion is none."""
    try:
        return header.get_qform()
    except ValueError:
        return np.full((4, 4), np.nan)


def _check_type(path: Path, header: nib.Nifti1Header) -> np.dtype:
    """The type of the numbers that there must be."""
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise BadData(f"{path}: voxels of an unknown type; convert the scan again") from error
    if dtype.fields is not None or dtype.kind not in "iuf":
        what = "complex" if dtype.kind == "c" else "colour (RGB)"
        raise BadData(f"{path}: voxels are {what}; give the magnitude image in shades of grey")
    return dtype


def _check_shape(path: Path, header: nib.Nifti1Header) -> tuple[int, int, int]:
    """The shape of the one volume that there must be."""
    n_axes = int(header["dim"][0])
    if not 0 <= n_axes <= 7:
        raise BadData(f"{path}: its header is damaged ({n_axes} axes); convert the scan again")
    shape = [int(n) for n in header["dim"][1 : 1 + n_axes]]
    if min(shape, default=0) < 1:
        raise BadData(f"{path}: the image has no voxels; convert the scan again from DICOM")
    if len(shape) < 3 or min(shape[:3]) == 1:
        raise BadData(f"{path}: 2D (a single slice); give a 3D volume")
    if (volumes := math.prod(shape[3:])) > 1:
        raise BadData(f"{path}: 4D with {volumes} volumes; give one 3D volume (extract or average)")
    x, y, z = shape[:3]
    return x, y, z


def _header_like(source: nib.Nifti1Header, ndim: int) -> nib.Nifti1Header:
    """A fresh header with the geometry of `source`; in mm where that names no unit."""
    header = type(source)()
    for field in (*_FIELDS_OF["qform"], *_FIELDS_OF["sform"]):
        header[field] = source[field]
    pixdim = header["pixdim"]
    pixdim[:4] = source["pixdim"][:4]
    unit, _ = MM_PER_UNIT.get(int(source["xyzt_units"]) & 7, MM_PER_UNIT[2])
    # Viewers and the BIDS validator want a unit for every dimension there is.
    header.set_xyzt_units(unit, "sec" if ndim == 4 else "unknown")
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
