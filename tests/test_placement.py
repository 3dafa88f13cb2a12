"""The grid that a header describes: what is valid is used, what contradicts is said."""

import numpy as np
import pytest

from bids_synthseg.anatomy.placement import placement_of

SHAPE = (10, 12, 14)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
SIZES = np.array([1.0, 1.0, 2.0])
MM = 2


def turned(angle):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])


def test_agreeing_forms_say_nothing():
    found = placement_of(SHAPE, AFFINE, AFFINE, SIZES, MM)
    assert (found.notes, found.warnings, found.invalid) == ((), (), None)
    np.testing.assert_array_equal(found.grid.affine, AFFINE)


@pytest.mark.parametrize("broken", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.eye(4) * 0.0])
def test_the_valid_form_is_used(broken):
    for forms, name, other in (
        ((broken, AFFINE), "sform", "qform"),
        ((AFFINE, broken), "qform", "sform"),
    ):
        found = placement_of(SHAPE, *forms, SIZES, MM)
        assert found.invalid == name and not found.warnings
        assert found.notes == (f"the {name} is no valid affine; the {other} was used",)
        np.testing.assert_array_equal(found.grid.affine, AFFINE)


@pytest.mark.parametrize(
    ("forms", "sizes", "words"),
    [
        ((None, None), SIZES, "qform and sform are both 0"),
        ((np.zeros((4, 4)), None), SIZES, "convert the scan again"),
        ((None, AFFINE), np.array([1, 0, 2.0]), "voxel sizes"),
        ((None, AFFINE), np.array([1, np.inf, 2.0]), "voxel sizes"),
        ((np.diag([1e-9, 1, 1, 1]), None), SIZES, "are impossible"),
        ((np.diag([1e9, 1, 1, 1]), None), SIZES, "are impossible"),
        ((AFFINE + 1e9 * np.eye(4, k=3), None), SIZES, "more than 100 m away"),
    ],
)
def test_what_cannot_be_placed(forms, sizes, words):
    with pytest.raises(ValueError, match=words):
        placement_of(SHAPE, *forms, sizes, MM)


def test_contradictions_ask_for_a_look():
    [warning] = placement_of(SHAPE, AFFINE, turned(0.2), SIZES, MM).warnings
    assert warning == "qform and sform are in conflict; the sform was used"
    [warning] = placement_of(SHAPE, AFFINE, None, SIZES * 1.35, MM).warnings
    assert "1.35 x 1.35 x 2.7 mm (pixdim) and 1 x 1 x 2 mm (sform); 1 x 1 x 2 mm was" in warning
    # Rounding is no contradiction, nor is a sign.
    assert not placement_of(SHAPE, AFFINE, None, SIZES * [1.004, -1, 1], MM).warnings


@pytest.mark.parametrize(
    ("unit", "scale", "note"),
    [
        (2, 1.0, None),
        (0, 1.0, "no unit of length"),
        (5, 1.0, "unknown code 5; mm assumed"),
        (1, 1.0, "the header says meter, but the voxel size is one in mm"),
        (3, 1.0, "the header says micron, but the voxel size is one in mm"),
    ],
)
def test_units(unit, scale, note):
    found = placement_of(SHAPE, AFFINE, None, SIZES, unit)
    np.testing.assert_allclose(found.grid.voxel_size_mm, SIZES * scale)
    assert [note in said for said in found.notes] == [True] * (note is not None)
    microns = placement_of(SHAPE, AFFINE @ np.diag([900, 900, 900, 1.0]), None, SIZES * 900, 3)
    np.testing.assert_allclose(microns.grid.voxel_size_mm, SIZES * 0.9)
    assert microns.notes == ("the header's unit is micron; converted to mm",)
