"""Slices and outlines: where they lie, which way up, and in which colour."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from bids_synthseg.anatomy.volume import Grid, Volume
from bids_synthseg.bids.report_figures import (
    DISAGREEMENT,
    MARGIN_MM,
    WHOLE,
    Crop,
    doubt_colours,
    draw_disagreement,
    draw_doubt,
    draw_outlines,
    grey_levels,
    outline,
    slice_positions,
)
from bids_synthseg.errors import BadData


def pixels(panel):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(panel.image.split(",")[1]))))


def area(path):
    """What an outline encloses, in pixels: shoelace formula, holes are run through backwards."""
    total = 0.0
    for piece in path.split("z")[:-1]:
        numbers = [int(n) for n in re.findall(r"-?\d+", piece)]
        corners = np.cumsum(np.reshape(numbers, (-1, 2)), axis=0)
        x, y = corners.T
        total += (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2
    return abs(total) / 4


def head(shape=(20, 30, 40), voxel_mm=(1.0, 1.0, 1.0)):
    """A box of label 3 with a smaller one of label 10, off the middle towards +x, +y, +z."""
    labels = np.zeros(shape, np.int32)
    labels[4:16, 5:25, 6:34] = 3
    labels[10:14, 13:21, 18:28] = 10
    return Volume(labels, Grid(shape, np.diag([*voxel_mm, 1.0])))


@pytest.mark.parametrize(
    ("mask", "path"),
    [
        # A pixel in row 1, column 2 covers x from 4 to 6 and y from 2 to 4: a diamond in it.
        ([[0, 0, 0], [0, 0, 1]], {(5, 2), (6, 3), (5, 4), (4, 3)}),
        # Straight runs are one step: the corners of a 2 x 3 block are cut, nothing else.
        ([[1, 1, 1], [1, 1, 1]], {(1, 0), (5, 0), (6, 1), (6, 3), (5, 4), (1, 4), (0, 3), (0, 1)}),
    ],
)
def test_outline_by_hand(mask, path):
    drawn = outline(np.array(mask, bool))
    assert drawn.startswith("M") and drawn.endswith("z") and drawn.count("M") == 1
    numbers = [int(n) for n in re.findall(r"-?\d+", drawn)]
    assert {tuple(p) for p in np.cumsum(np.reshape(numbers, (-1, 2)), axis=0).tolist()} == path


def test_outline_leaves_holes_out():
    mask = np.ones((10, 12), bool)
    whole = area(outline(mask))
    mask[3:7, 4:9] = False
    drawn = outline(mask)
    assert drawn.count("z") == 2
    # Corners are cut by an eighth of a pixel each.
    assert whole == 120 - 4 / 8 and area(drawn) == pytest.approx(whole - (20 - 4 / 8))


def test_nothing_has_no_outline():
    assert outline(np.zeros((3, 3), bool)) == ""


def test_slices_are_spread_over_the_labels():
    inside = np.zeros((5, 5, 100), bool)
    inside[2, 2, 10:70] = True
    assert slice_positions(inside, 2, 5) == [20, 30, 40, 49, 59]
    assert slice_positions(inside, 0, 3) == [2, 2, 2]


@pytest.mark.parametrize("turn", ["RAS", "flipped"])
def test_left_is_left_and_up_is_up(turn):
    volume = head()
    grey = np.zeros(volume.grid.shape, np.uint8)
    grey[10:14, 13:21, 18:28] = 200
    if turn == "flipped":  # the same head in an image whose voxels run the other way
        affine = volume.grid.affine @ np.array(
            [[0, -1, 0, 19], [1, 0, 0, 0], [0, 0, -1, 39], [0, 0, 0, 1.0]]
        )
        turned = Grid((30, 20, 40), affine)
        volume = Volume(volume.data.transpose(1, 0, 2)[:, ::-1, ::-1], turned)
        scan = Volume(grey.transpose(1, 0, 2)[:, ::-1, ::-1], turned)
    else:
        scan = Volume(grey, volume.grid)
    crop = Crop.around(volume)
    small = crop.of(volume)
    sheet = draw_outlines(crop.of(scan).data, small, count=1)
    axial, coronal, sagittal = sheet.panels
    for panel, ends, across, up in (
        (axial, "LRPA", 10, 13),
        (coronal, "LRIS", 10, 18),
        (sagittal, "PAIS", 13, 18),
    ):
        assert panel.ends == ends
        bright = np.argwhere(pixels(panel) == 200)
        assert len(bright)
        # Rows run downwards: what lies at a high coordinate stands near the top.
        rows = panel.rows - 1 - bright[:, 0]
        assert (bright[:, 1].min(), rows.min()) == (across, up)
    assert axial.caption == "z = 20 mm"


def test_outlines_enclose_their_labels_and_inner_ones_come_last():
    sheet = draw_outlines(np.zeros((20, 30, 40), np.uint8), head(), count=1)
    axial = sheet.panels[0]
    assert [one.index for one in axial.outlines] == [3, WHOLE, 10]
    areas = {one.index: area(one.path) for one in axial.outlines}
    assert areas[10] == pytest.approx(4 * 8, abs=0.5)
    assert areas[WHOLE] == pytest.approx(12 * 20, abs=0.5)
    assert areas[3] == pytest.approx(12 * 20 - 4 * 8, abs=1)


def test_thick_slices_keep_their_shape():
    sheet = draw_outlines(
        np.zeros((20, 30, 40), np.uint8), head(voxel_mm=(1, 1, 3)), count=2, width=404
    )
    coronal = sheet.panels[2]
    assert coronal.width == 200 and coronal.height == pytest.approx(200 * 120 / 20)
    assert (coronal.columns, coronal.rows) == (20, 40)
    assert sheet.panels[1].x == 204 and sheet.width == 404
    assert sheet.height == pytest.approx(sheet.panels[-1].y + sheet.panels[-1].height, abs=0.1)


def test_crop_keeps_the_surroundings_in_their_place():
    volume = head(shape=(60, 60, 60), voxel_mm=(2.0, 2.0, 2.0))
    crop = Crop.around(volume)
    small = crop.of(volume)
    margin = round(MARGIN_MM / 2)
    assert small.data.shape == (4 + 12 + margin, 20 + 2 * margin, 28 + 2 * margin)
    where = small.grid.to_world(np.argwhere(small.data == 10)[0])
    assert where.tolist() == volume.grid.to_world(np.argwhere(volume.data == 10)[0]).tolist()


def test_without_labels_there_is_nothing_to_show():
    empty = Volume(np.zeros((4, 4, 4), np.int32), Grid((4, 4, 4), np.eye(4)))
    with pytest.raises(BadData, match="no label"):
        Crop.around(empty)


def test_grey_levels_show_the_brain_not_the_fat():
    scan = np.tile(np.linspace(0, 100, 1000), (2, 1)).reshape(2, 10, 100).astype(np.float32)
    labels = np.ones(scan.shape, int)
    scan[0, 0, :50], labels[0, 0, :50] = 5000, 0
    grey = grey_levels(scan, labels)
    assert grey.dtype == np.uint8 and grey[0, 0, 0] == 255
    assert abs(int(grey[1, 5, 0]) - 128) < 4


@pytest.mark.parametrize(
    ("factor", "offset"), [(1e-20, 0), (1e20, 0), (1e-20, 1e-18), (1, -1000), (3, 500)]
)
def test_grey_levels_do_not_depend_on_the_unit(factor, offset):
    scan = np.random.default_rng(0).uniform(0, 100, (8, 9, 10))
    labels = scan > 20
    expected = grey_levels(scan.astype(np.float32), labels).astype(int)
    found = grey_levels((scan * factor + offset).astype(np.float32), labels)
    assert np.ptp(expected) == 255 and np.abs(found - expected).max() <= 1
    assert not grey_levels(np.full(scan.shape, 7.0), labels).any()


def test_doubt_is_coloured_where_confidence_is_known_and_low():
    grey = np.full((20, 30, 40), 100, np.uint8)
    confidence = np.ones(grey.shape)
    confidence[10:14] = 0.5
    confidence[:4] = 0.0  # outside of what was segmented: not known
    axial = pixels(draw_doubt(grey, head(), confidence, count=1).panels[0])
    assert (axial[:, :4] == 100).all() and (axial[:, 5:9] == 100).all()
    red, _, blue = axial[15, 12].astype(int)
    assert red > blue + 100
    assert doubt_colours()[0].endswith("/ 0.00)") and doubt_colours()[-1].endswith("/ 1.00)")


def test_disagreement_has_its_colour_only_where_it_is():
    grey = np.zeros((20, 30, 40), np.uint8)
    volume = head()
    axial = pixels(draw_disagreement(grey, volume, volume.data == 10, count=1).panels[0])
    full = [int(DISAGREEMENT[k : k + 2], 16) for k in (1, 3, 5)]
    assert np.allclose(axial[30 - 1 - 17, 11], 0.8 * np.array(full), atol=1)
    assert (axial.any(axis=-1)).sum() == 4 * 8
