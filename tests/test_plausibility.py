"""Agreement of contrasts, labels where the image is empty and pictures, worked out by hand."""

import math

import numpy as np
import pytest
from conftest import nifti, write_tree

from bids_synthseg.bids.scans import Scan, ScanGroup
from bids_synthseg.plausibility import (
    agreement_numbers,
    empty_numbers,
    structure_agreement,
    write_pictures,
)
from bids_synthseg.scorecard import BETWEEN, empty_table

SIDE_MM = 2.0
AFFINE = np.diag([SIDE_MM, SIDE_MM, SIDE_MM, 1.0])


def slabs(*values):
    """(8, 4, 4) int16: two planes of each value."""
    return np.repeat(np.array(values, np.int16), 2)[:, None, None] * np.ones((1, 4, 4), np.int16)


def scan(*values):
    """The same, as a scanner would see it: no two voxels alike, but for exact zeros."""
    image = slabs(*values)
    return (image * np.random.default_rng(0).uniform(0.9, 1.1, image.shape)).astype(np.float32)


SLAB_ML = 2 * 4 * 4 * SIDE_MM**3 / 1000


@pytest.fixture
def session(tmp_path):
    """session(scans, label maps), each by contrast -> output folder and group."""

    def make(scans, labels):
        raw = {f"sub-01_{name}.nii.gz": nifti(data, AFFINE) for name, data in scans.items()}
        made = {
            f"sub-01_space-orig_desc-{level}{name}_dseg.nii.gz": volume
            for name, volume in labels.items()
            for level in ("aseg", "native")
        }
        anat = write_tree(tmp_path / "raw", {"sub-01": {"anat": raw}}) / "sub-01" / "anat"
        output = write_tree(tmp_path / "out", {"sub-01": {"anat": made}})
        group = ScanGroup("01", None, tuple(Scan.from_path(anat / name) for name in raw))
        return output, group

    return make


def test_agreement_by_structure():
    found = structure_agreement(slabs(2, 41, 41, 0), slabs(2, 41, 0, 16))
    assert found["cerebral white matter"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["brain stem"] == 0
    assert math.isnan(found["vermis"]) and "background" not in found


def test_agreement_of_a_session(session):
    t1w, t2w = slabs(2, 41, 3, 0), slabs(2, 2, 3, 0)
    scans = {"T1w": t1w, "T2w": t2w}
    output, group = session(scans, {name: nifti(v, AFFINE) for name, v in scans.items()})
    numbers = agreement_numbers("infants", output, group)
    assert {(n.section, n.subject, n.image, n.measure) for n in numbers} == {
        ("infants", "sub-01", BETWEEN, "dice")
    }
    dice = {n.structure: n.value for n in numbers}
    assert dice["cerebral white matter"] == pytest.approx((2 / 3 + 0) / 2)
    assert dice["cerebral cortex"] == 1


def test_contrasts_on_two_grids_are_compared_where_their_headers_put_them(session):
    t1w = slabs(0, 41, 2, 0)
    turned = AFFINE.copy()
    turned[0, 0], turned[0, 3] = -SIDE_MM, 7 * SIDE_MM
    labels = {"T1w": nifti(t1w, AFFINE), "T2w": nifti(t1w[::-1].copy(), turned)}
    output, group = session({"T1w": t1w, "T2w": t1w}, labels)
    dice = {n.structure: n.value for n in agreement_numbers("infants", output, group)}
    assert dice["cerebral white matter"] == 1


def test_one_contrast_has_nothing_to_agree_with(session):
    output, group = session({"T1w": slabs(1, 1, 1, 1)}, {"T1w": nifti(slabs(2, 2, 2, 2), AFFINE)})
    assert agreement_numbers("infants", output, group) == []


def test_labels_where_the_image_is_empty(session, tmp_path):
    # Empty: the last three slabs; the reference knows the second of them as brain.
    image, labels = scan(9, 0, 0, 0), slabs(24, 24, 24, 3)
    output, group = session({"T1w": image}, {"T1w": nifti(labels, AFFINE)})
    values = [n.value for n in empty_numbers("infants", output, group)]
    assert values == pytest.approx([2 * SLAB_ML, 3 * SLAB_ML])
    reference = write_tree(tmp_path, {"dseg.nii.gz": nifti(slabs(0, 2, 0, 0), AFFINE)})
    # The same on a smaller grid.
    part = write_tree(tmp_path, {"part.nii.gz": nifti(slabs(0, 2), AFFINE)}) / "part.nii.gz"
    numbers = empty_numbers("adults", output, group, part)
    assert [n.value for n in numbers] == pytest.approx([SLAB_ML, 2 * SLAB_ML])
    numbers = empty_numbers("adults", output, group, reference / "dseg.nii.gz")
    assert [n.value for n in numbers] == pytest.approx([SLAB_ML, 2 * SLAB_ML])
    rows = [line.split("|")[1:-1] for line in empty_table(numbers, "adults").splitlines()]
    shown = [f"{SLAB_ML:.1f}", f"{2 * SLAB_ML:.1f}"]
    assert [cell.strip() for cell in rows[0]] == ["scan", "CSF ml", "any label ml"]
    assert [cell.strip() for cell in rows[-1]] == ["mean", *shown]


def test_pictures_of_what_has_labels(session, tmp_path, caplog):
    image = scan(9, 5, 5, 0)
    labels = {"T1w": nifti(slabs(2, 41, 3, 0), AFFINE), "T2w": nifti(slabs(0, 0, 0, 0), AFFINE)}
    output, group = session({"T1w": image, "T2w": image}, labels)
    (picture,) = write_pictures(output, group, tmp_path / "pictures")
    assert picture.name == "sub-01_T1w.png" and picture.stat().st_size > 1000
    assert "sub-01_T2w.nii.gz: no label" in caplog.text
