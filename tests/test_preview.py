"""The sheet of samples: slices the right way up, every data set shown, no figure library needed."""

import logging
import sys
from dataclasses import replace

import numpy as np
import pytest
from training_samples import ball_map, tiny_config

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.learning import preview
from bids_synthseg.learning.preview import paint, preview_sheet, slices, turns

CONFIG = tiny_config()


def test_slices_by_hand():
    volume = np.zeros((2, 3, 4))
    volume[0, 2, 2] = 1  # left, anterior, in the middle from below: axial slice, top left
    volume[1, 1, 3] = 2  # in the coronal and the sagittal slice, on top
    volume[1, 0, 2] = 3  # axial slice, bottom right; sagittal, posterior, second from above
    np.testing.assert_array_equal(
        slices(volume),
        [
            # axial (3 rows, centred), coronal, sagittal from posterior to anterior
            [1, 0, 0, 2, 0, 2, 0],
            [0, 0, 0, 0, 3, 0, 0],
            [0, 3, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0],
        ],
    )
    colours = np.stack([volume, volume, volume], axis=-1)
    np.testing.assert_array_equal(slices(colours)[..., 1], slices(volume))


def test_data_sets_take_turns():
    maps = [ball_map(f"sub-{n}", "a") for n in range(3)] + [ball_map("sub-9", "b")]
    picked = turns(maps, 7, np.random.default_rng(0))
    assert [one.dataset for one in picked] == ["a", "b"] * 3 + ["a"]
    # No map again before all of its data set were seen.
    assert {one.name for one in picked[0:6:2]} == {"sub-0", "sub-1", "sub-2"}
    assert picked[6].name == picked[0].name
    assert len({turns(maps, 1, np.random.default_rng(seed))[0].name for seed in range(20)}) == 3


def test_the_same_seed_paints_the_same():
    maps = [ball_map(dataset="a"), ball_map(dataset="b")]
    first, again = (list(paint(maps, CONFIG, 3, seed=4)) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.classes, other.classes)
    # A smaller sheet is the beginning of a larger one.
    (alone,) = paint(maps, CONFIG, 1, seed=4)
    np.testing.assert_array_equal(alone.image, first[0].image)
    (other,) = paint(maps, CONFIG, 1, seed=5)
    assert not np.array_equal(other.image, first[0].image)


def test_titles():
    (painted,) = paint([ball_map(dataset="a")], CONFIG, 1, seed=0)
    voxel = f"{painted.voxel_mm:.2f} mm"
    assert painted.title == f"a/sub-01: random contrast, {voxel}"
    synthesis = replace(
        CONFIG.synthesis,
        real=1.0,
        contrast=replace(CONFIG.synthesis.contrast, prior_contrasts=("T1w",)),
    )
    (real,) = paint(
        [ball_map(dataset="a", scan=True)], replace(CONFIG, synthesis=synthesis), 1, seed=0
    )
    assert real.title == f"a/sub-01: T1w of a scan, {voxel}"


def test_colours_are_those_of_the_label_table():
    colours = preview._colours(np.array([0, 2, -7, 24]), 6)
    table = {row.index: row.color for row in LabelTable.default().rows}
    assert table[2] == "#f5f5f5"
    np.testing.assert_allclose(colours[1], 0xF5 / 255)
    np.testing.assert_allclose(colours[[0, 2, 4, 5]], [[0] * 3, [1] * 3, [0] * 3, [0] * 3])


@pytest.mark.parametrize("n", [1, 4])
def test_a_sheet(tmp_path, n):
    image = pytest.importorskip("matplotlib.image")
    path = tmp_path / "new" / "preview.png"
    assert preview_sheet([ball_map(dataset="a"), ball_map(dataset="b")], CONFIG, path, n=n)
    sheet = image.imread(path)[..., :3]
    height, width = sheet.shape[:2]
    # Two columns; the samples fill their rows, colours only the right half of a sample.
    filled = sheet.max(axis=-1) > 0.1
    coloured = np.ptp(sheet, axis=-1) > 0.1
    assert 1900 < width < 2100 and height > 150 * (n // 2)
    assert filled[:, : width // 2].any() and filled[:, width // 2 :].any() == (n > 1)
    assert coloured[:, width // 4 : width // 2].any() and not coloured[:, : width // 5].any()


def test_without_matplotlib(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level(logging.INFO, "bids_synthseg"):
        assert not preview_sheet([ball_map()], CONFIG, tmp_path / "preview.png")
    assert len(caplog.records) == 1 and "matplotlib is missing" in caplog.text
    assert list(tmp_path.iterdir()) == []
