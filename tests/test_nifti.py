"""NIfTI: every fault has a line that names file and cure; what is written lies where it was."""

import gzip
import os
import re
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from conftest import OBLIQUE, nifti

from bids_synthseg.errors import BadData, CannotCreate, InputMissing, StorageProblem
from bids_synthseg.nifti import read_labels, read_scan, write_image


@pytest.fixture
def noise():
    return np.random.default_rng(1).gamma(3, 50, (8, 9, 10)).astype(np.float32)


def saved(folder, image, name="sub-01_T1w.nii.gz"):
    image.to_filename(folder / name)
    return folder / name


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_scan_is_read_as_float32(tmp_path, noise, name):
    image = read_scan(saved(tmp_path, nifti(noise), name))
    assert image.volume.data.dtype == np.float32
    np.testing.assert_array_equal(image.volume.data, noise)
    np.testing.assert_allclose(image.volume.grid.affine, OBLIQUE, atol=1e-5)
    assert image.warnings == ()


def with_units(image, unit):
    image.header.set_xyzt_units(unit)
    return image


def with_codes_zero(image):
    image.header["qform_code"] = image.header["sform_code"] = 0
    image.header.set_data_shape(image.shape)
    return nib.Nifti1Image(image.dataobj, None, image.header)


def with_srow(image, srow):
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = srow
    return nib.Nifti1Image(image.dataobj, None, image.header)


LABELS = np.kron(np.arange(8).reshape(2, 2, 2), np.ones((5, 5, 5))).astype(np.int16)
RAMP = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
RGB = np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])

UNUSABLE = {
    "two-d": (nifti(RAMP[:, :, 0]), "2D"),
    "one-slice": (nifti(RAMP[:, :, :1]), "2D"),
    "many-volumes": (nifti(np.stack([RAMP] * 3, axis=-1)), "4D with 3 volumes"),
    "five-d": (nifti(np.stack([RAMP[..., None]] * 3, axis=-1)), "4D with 3 volumes"),
    "zero": (nifti(RAMP * 0), "all voxels are 0"),
    "constant": (nifti(RAMP * 0 + 7), "same value (7)"),
    "nan": (nifti(RAMP * np.nan), "no voxel is a finite number"),
    "no-form": (with_codes_zero(nifti(RAMP)), "qform and sform are both 0"),
    "singular": (with_srow(nifti(RAMP, qform=0), np.diag([1, 1, 0, 1])[:3]), "singular"),
    "nan-affine": (with_srow(nifti(RAMP, qform=0), np.full((3, 4), np.nan)), "finite"),
    "complex": (nifti(RAMP.astype(np.complex64)), "complex"),
    "rgb": (nib.Nifti1Image(RGB, OBLIQUE), "colour"),
    "labels": (nifti(LABELS), "label map"),
    "mask": (nifti((LABELS > 3).astype(np.uint8)), "label map"),
}


@pytest.mark.parametrize("fault", UNUSABLE)
def test_unusable_scan(tmp_path, fault):
    image, words = UNUSABLE[fault]
    check_one_line(saved(tmp_path, image), BadData, words)


def check_one_line(path, kind, words, read=read_scan):
    with pytest.raises(kind, match=re.escape(words)) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert "; " in message, "no cure after the fault"


def test_damaged_files(tmp_path, noise):
    good = saved(tmp_path, nifti(noise)).read_bytes()
    plain = gzip.decompress(good)
    faults = {
        "empty.nii.gz": (b"", "empty (0 bytes)"),
        "empty.nii": (b"", "empty (0 bytes)"),
        "nothing_inside.nii.gz": (gzip.compress(b""), "damaged"),
        "cut.nii.gz": (good[: len(good) // 2], "truncated"),
        "cut_in_header.nii.gz": (gzip.compress(plain[:100]), "truncated"),
        "cut.nii": (plain[:-100], "truncated"),
        "not_packed.nii.gz": (plain, "not gzip"),
        "packed.nii": (good, "rename it to .nii.gz"),
        "text.nii": (b"hello " * 100, "damaged"),
        "web.nii.gz": (b"\n<!DOCTYPE html><html>Sign in</html>", "a web page"),
        "cut_at_the_end.nii.gz": (good[:-8], "truncated"),
        "checksum.nii.gz": (good[:-8] + b"\0\0\0\0" + good[-4:], "its checksum is wrong"),
        "bits.nii.gz": (good[:-8] + good[-8:-4] + b"\0\0\0\0", "damaged"),
    }
    for name, (content, words) in faults.items():
        (tmp_path / name).write_bytes(content)
        check_one_line(tmp_path / name, BadData, words)


def test_stand_ins_have_a_cure_each(tmp_path):
    for content, cure in (
        (b"/annex/objects/MD5E-s1--0.nii.gz\n", "fetch the data ('datalad get')"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ):
        (tmp_path / "scan.nii.gz").write_bytes(content)
        check_one_line(tmp_path / "scan.nii.gz", InputMissing, cure)


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo.nii.gz")
    (tmp_path / "folder.nii.gz").mkdir()
    (tmp_path / "loop.nii.gz").symlink_to("loop.nii.gz")
    (tmp_path / "device.nii.gz").symlink_to("/dev/zero")
    for name in ("fifo", "folder", "device"):
        check_one_line(tmp_path / f"{name}.nii.gz", BadData, "no regular file")
    check_one_line(tmp_path / "loop.nii.gz", BadData, "leads back to itself")
    check_one_line(tmp_path / ("x" * 300 + ".nii.gz"), BadData, "too long")


def test_missing_files(tmp_path):
    check_one_line(tmp_path / "none_T1w.nii.gz", InputMissing, "no such file")
    link = tmp_path / "annexed_T1w.nii.gz"
    link.symlink_to(tmp_path / "not-fetched")
    check_one_line(link, InputMissing, "datalad get")


def test_voxels_that_are_not_finite_become_zero(tmp_path, noise):
    noise[0, 0, :3] = np.nan, np.inf, -np.inf
    image = read_scan(saved(tmp_path, nifti(noise)))
    assert np.isfinite(image.volume.data).all() and (image.volume.data[0, 0, :3] == 0).all()
    assert "3 voxels" in image.warnings[0] and len(image.warnings) == 1


def test_odd_scans_are_used_with_a_warning(tmp_path, noise):
    def warnings(image):
        return " ".join(read_scan(saved(tmp_path, image)).warnings)

    def notes(image):
        image = read_scan(saved(tmp_path, image))
        assert not image.warnings
        return " ".join(image.notes)

    assert "negative intensities, down to -1000" in notes(nifti(noise - 1000 - noise.min()))
    assert "4D with one volume" in notes(nifti(noise[..., None]))
    assert "mm assumed" in notes(with_units(nifti(noise), "unknown"))
    assert "implausible voxel size of 20" in warnings(nifti(noise, np.diag([20.0, 20, 20, 1])))
    turned = nifti(noise)
    turned.set_qform(np.diag([-1.0, 1, 1, 1]), code=1)
    assert "in conflict; the sform was used" in warnings(turned)


def test_conflict_of_forms_is_settled_for_the_sform(tmp_path, noise):
    image = nifti(noise)
    image.set_qform(np.diag([-1.0, 1, 1, 1]), code=1)
    affine = read_scan(saved(tmp_path, image)).volume.grid.affine
    np.testing.assert_allclose(affine, OBLIQUE, atol=1e-5)


def test_metres_become_millimetres_on_the_grid_only(tmp_path, noise):
    metres = np.diag([0.001, 0.002, 0.001, 1])
    path = saved(tmp_path, with_units(nifti(noise, metres), "meter"))
    image = read_scan(path)
    np.testing.assert_allclose(image.volume.grid.voxel_size_mm, [1, 2, 1], rtol=1e-6)
    assert "converted to mm" in image.notes[0]
    write_image(tmp_path / "out.nii.gz", image.volume.data, image, np.float32)
    np.testing.assert_array_equal(nib.load(tmp_path / "out.nii.gz").affine, nib.load(path).affine)


def test_metres_with_voxels_in_millimetres_are_not_believed(tmp_path, noise):
    image = read_scan(saved(tmp_path, with_units(nifti(noise, np.eye(4)), "meter")))
    np.testing.assert_allclose(image.volume.grid.voxel_size_mm, 1)
    assert "mm assumed" in image.notes[0]


def test_an_invalid_form_beside_a_valid_one_is_said_and_left_out(tmp_path, noise):
    """What is written carries the valid one alone."""
    broken = [np.zeros((3, 4)), np.full((3, 4), np.nan), np.diag([1, 1, 0, 1])[:3]]
    images = {"sform": [with_srow(nifti(noise), srow) for srow in broken]}
    quaternion = nifti(noise)
    quaternion.header["quatern_b"] = 3
    pixdim = nifti(noise)
    pixdim.header["pixdim"][1] = 0
    images["qform"] = [quaternion, pixdim]
    for form, several in images.items():
        for image in several:
            path = tmp_path / "raw.nii"
            path.write_bytes(unchecked(image))
            scan = read_scan(path)
            np.testing.assert_allclose(scan.volume.grid.affine, OBLIQUE, atol=1e-5)
            assert any(f"the {form} is no valid affine" in note for note in scan.notes)
            assert not scan.warnings
            write_image(tmp_path / "out.nii", noise, scan, np.float32)
            header = nib.load(tmp_path / "out.nii").header
            assert header[f"{form}_code"] == 0
            np.testing.assert_allclose(header.get_best_affine(), OBLIQUE, atol=1e-5)
            np.testing.assert_allclose(header.get_zooms(), [1, 1.1, 1.2], rtol=1e-5)


def unchecked(image):
    """The bytes of a file with this header, whatever nibabel thinks of it."""
    return image.header.binaryblock + bytes(4) + np.asanyarray(image.dataobj).tobytes("F")


def edited(image, **fields):
    for name, value in fields.items():
        image.header[name] = value
    image.header.set_data_shape(image.shape)
    image.header["vox_offset"] = fields.get("vox_offset", 352)
    return unchecked(image)


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"scl_slope": 1, "scl_inter": np.nan}, "no number; 1 and 0 were used"),
        ({"scl_slope": np.inf, "scl_inter": 0}, "no number; 1 and 0 were used"),
        ({"xyzt_units": 0x55}, "unknown code 5; mm assumed"),
        ({"scl_slope": 0, "scl_inter": 9}, None),  # as NIfTI wants it: not scaled
    ],
)
def test_fields_that_are_not_valid_are_said_and_not_used(tmp_path, noise, fields, note):
    image = with_units(nifti(noise), "mm")
    image.header["scl_slope"], image.header["scl_inter"] = 1, 0
    (tmp_path / "raw.nii").write_bytes(edited(image, **fields))
    scan = read_scan(tmp_path / "raw.nii")
    np.testing.assert_array_equal(scan.volume.data, noise)
    assert [note in said for said in scan.notes] == [True] * (note is not None)
    write_image(tmp_path / "out.nii", noise, scan, np.float32)
    assert nib.load(tmp_path / "out.nii").header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("offset", [np.inf, -np.inf, np.nan, 1e30, -1, 1, 353])
def test_an_impossible_offset_of_the_voxels(tmp_path, noise, offset):
    image = nifti(noise)
    image.header["scl_slope"] = 1
    (tmp_path / "raw.nii").write_bytes(edited(image, vox_offset=offset))
    check_one_line(tmp_path / "raw.nii", BadData, "its header is damaged")


def test_two_voxel_sizes_ask_for_a_look(tmp_path, noise):
    larger = with_srow(nifti(noise, qform=0), (OBLIQUE @ np.diag([1.35, 1.35, 1.35, 1]))[:3])
    larger.header["pixdim"][1:4] = 1, 1.1, 1.2
    (tmp_path / "raw.nii").write_bytes(edited(larger, scl_slope=1, scl_inter=0))
    [warning] = read_scan(tmp_path / "raw.nii").warnings
    assert "1 x 1.1 x 1.2 mm (pixdim) and 1.35 x 1.49 x 1.62 mm (sform)" in warning


def test_a_qform_without_voxel_sizes_is_refused(tmp_path, noise):
    image = nifti(noise, sform=0)
    image.header["pixdim"][2] = 0
    (tmp_path / "raw.nii").write_bytes(edited(image, scl_slope=1, scl_inter=0))
    check_one_line(tmp_path / "raw.nii", BadData, "voxel sizes (pixdim) are 0 or no numbers")


def test_scan_with_few_grey_values_is_no_label_map(tmp_path, noise):
    coarse = np.minimum(noise // 8, 60).astype(np.uint8)
    assert len(np.unique(coarse)) <= 64
    assert read_scan(saved(tmp_path, nifti(coarse))).volume.data.max() == coarse.max()


def test_labels_are_exact_whole_numbers(tmp_path):
    ids = np.array([0, 2, 2004, 16_777_217], dtype=np.int32).reshape(2, 2, 1).repeat(3, axis=2)
    image = read_labels(saved(tmp_path, nifti(ids)))
    assert image.volume.data.dtype == np.int32
    np.testing.assert_array_equal(image.volume.data, ids)
    check_one_line(saved(tmp_path, nifti(RAMP + 0.5)), BadData, "whole numbers", read=read_labels)


@pytest.mark.parametrize("kind", ["uint8", "int16", ">i2", "int32", "uint32", "float32", "float64"])
@pytest.mark.parametrize("name", ["labels.nii", "labels.nii.gz"])
def test_labels_of_any_type_are_int32(tmp_path, kind, name):
    ids = np.arange(0, 120).reshape(4, 5, 6)
    image = nifti(ids.astype(kind)) if kind != ">i2" else big_endian(ids.astype(np.int16))
    found = read_labels(saved(tmp_path, image, name)).volume.data
    assert found.dtype == np.int32 and found.dtype.isnative
    np.testing.assert_array_equal(found, ids)


def big_endian(data):
    return nib.Nifti1Image(data, OBLIQUE, nib.Nifti1Header(endianness=">"))


def test_scaled_labels(tmp_path):
    path = saved(tmp_path, nifti(np.arange(120, dtype=np.int16).reshape(4, 5, 6)), "scaled.nii")
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([2, 1], dtype="<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(raw)
    np.testing.assert_array_equal(
        read_labels(path).volume.data, 2 * np.arange(120).reshape(4, 5, 6) + 1
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.5, 2.0**31])
def test_labels_that_are_no_int32_are_refused(tmp_path, value):
    ids = np.zeros((4, 5, 6))
    ids[1, 2, 3] = value
    path = saved(tmp_path, nifti(ids))
    check_one_line(path, BadData, "not whole numbers", read=read_labels)


ORIENTATIONS = [
    np.vstack([np.c_[np.diag(signs)[:, list(axes)], [1.5, -2.25, 3.1]], [0, 0, 0, 1]])
    for axes, signs in product(permutations(range(3)), product((0.9, -0.8), repeat=3))
]


@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 3), (4, 1)], ids=str)
def test_affine_is_kept_bit_for_bit(tmp_path, noise, codes):
    """Also where it comes from the qform alone, and for oblique and mirrored grids."""
    sform, qform = codes
    for affine in [OBLIQUE, np.linalg.inv(OBLIQUE), *ORIENTATIONS[::7]]:
        path = saved(tmp_path, nifti(noise, affine, sform, qform))
        like = read_scan(path)
        write_image(tmp_path / "out.nii.gz", like.volume.data > 100, like, np.uint8)
        raw, out = nib.load(path), nib.load(tmp_path / "out.nii.gz")
        np.testing.assert_array_equal(out.affine, raw.affine)
        np.testing.assert_array_equal(out.header.get_zooms(), raw.header.get_zooms())
        for form in ("get_qform", "get_sform"):
            expected, code = getattr(raw.header, form)(coded=True)
            found, found_code = getattr(out.header, form)(coded=True)
            assert found_code == code
            assert (found is None) == (expected is None)
            assert expected is None or np.array_equal(found, expected)


def test_affine_of_big_endian_and_nifti2_files(tmp_path, noise):
    swapped = nib.Nifti1Image(noise, OBLIQUE, nib.Nifti1Header(endianness=">"))
    for image in (swapped, nib.Nifti2Image(noise, OBLIQUE)):
        path = saved(tmp_path, image)
        like = read_scan(path)
        write_image(tmp_path / "out.nii", like.volume.data, like, np.float32)
        out = nib.load(tmp_path / "out.nii")
        np.testing.assert_array_equal(out.affine, nib.load(path).affine)
        np.testing.assert_array_equal(out.get_fdata(), noise)


def test_only_the_geometry_of_the_input_is_handed_on(tmp_path, noise):
    image = nifti(noise)
    image.header["descrip"] = b"Jane Doe"
    image.header["cal_max"] = 50
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"born 1.1."))
    image.header.set_slope_inter(3, 5)
    like = read_scan(saved(tmp_path, image))
    write_image(tmp_path / "out.nii", LABELS[:8, :9, :10], like, np.uint8, "labels", "label")
    out = nib.load(tmp_path / "out.nii")
    assert out.header["descrip"].item() == b"labels" and out.header["cal_max"] == 0
    assert out.header.get_intent()[0] == "label" and not out.header.extensions
    assert (out.dataobj.slope, out.dataobj.inter) == (1, 0)
    np.testing.assert_array_equal(np.asanyarray(out.dataobj), LABELS[:8, :9, :10])


def test_probabilities_in_four_dimensions(tmp_path, noise):
    like = read_scan(saved(tmp_path, nifti(noise)))
    data = np.stack([noise / noise.max(), 1 - noise / noise.max()], axis=-1)
    write_image(tmp_path / "out.nii.gz", data, like, np.uint8, slope=1 / 255)
    out = nib.load(tmp_path / "out.nii.gz")
    assert out.header.get_xyzt_units() == ("mm", "sec") and out.get_data_dtype() == np.uint8
    np.testing.assert_allclose(out.get_fdata(), data, atol=0.5 / 255 + 1e-6)
    assert out.get_fdata().max() == pytest.approx(1)


def test_values_that_do_not_fit_are_refused(tmp_path, noise):
    like = read_scan(saved(tmp_path, nifti(noise)))
    for data in (np.full(noise.shape, 256), np.full(noise.shape, -1), noise):
        with pytest.raises(ValueError, match="do not fit into uint8"):
            write_image(tmp_path / "out.nii", data, like, np.uint8)
    with pytest.raises(ValueError, match="do not fit the grid"):
        write_image(tmp_path / "out.nii", noise[1:], like, np.float32)
    assert not (tmp_path / "out.nii").exists()


def test_equal_data_give_equal_files(tmp_path, noise):
    like = read_scan(saved(tmp_path, nifti(noise)))
    for name in ("one.nii.gz", "two.nii.gz"):
        write_image(tmp_path / name, noise, like, np.float32)
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "two.nii.gz").read_bytes()


@pytest.mark.parametrize(
    ("number", "kind"), [(28, StorageProblem), (5, StorageProblem), (13, CannotCreate)]
)
def test_a_failed_write_leaves_the_old_file(tmp_path, noise, monkeypatch, number, kind):
    like = read_scan(saved(tmp_path, nifti(noise)))
    target = tmp_path / "out.nii.gz"
    target.write_text("old")

    def refuse(descriptor):
        raise OSError(number, "refused")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(kind, match=re.escape(str(target))):
        write_image(target, noise, like, np.float32)
    assert target.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.nii.gz", "sub-01_T1w.nii.gz"]


def test_a_file_in_the_way_of_a_folder(tmp_path, noise):
    like = read_scan(saved(tmp_path, nifti(noise)))
    (tmp_path / "out").write_text("a file")
    with pytest.raises(CannotCreate, match="in the way"):
        write_image(tmp_path / "out" / "x.nii.gz", noise, like, np.float32)
