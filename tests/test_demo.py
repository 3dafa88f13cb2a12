"""The phantom and the demo data set made of it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from bids_synthseg import console, nifti, phantom, workbench
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.metrics import remap, volumes_mm3
from bids_synthseg.bids.query import find_scan_groups
from bids_synthseg.demo import write_demo
from bids_synthseg.errors import CannotCreate

TABLE = LabelTable.default()
COARSE = (55, 65, 48)


@pytest.fixture(scope="module")
def labels():
    return phantom.phantom_labels(COARSE, 2.0)


@pytest.fixture(scope="module")
def fine():
    return phantom.phantom_labels()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    pytest.importorskip("nilearn")
    folder = tmp_path_factory.mktemp("demo") / "bids"
    return write_demo(folder, shape=COARSE, voxel_mm=2.0)


def test_every_label_is_there(fine):
    assert fine.data.shape == phantom.SHAPE
    assert fine.data.dtype == np.int32
    assert set(np.unique(fine.data)) == set(TABLE.ids.tolist())


def test_left_is_on_the_left(fine):
    x = fine.grid.to_world(np.argwhere(fine.data > 0))[:, 0]
    ids = fine.data[fine.data > 0]
    for row in TABLE.rows:
        centre = x[ids == row.index].mean() if row.index else 0.0
        assert {"left": centre < -1, "right": centre > 1, "midline": abs(centre) < 1}[row.side]


def test_sides_mirror_each_other(fine):
    twins = {row.index: row.mirror for row in TABLE.rows}
    # An even number of columns: none lies in the middle, where a sided voxel would have no twin.
    assert phantom.SHAPE[0] % 2 == 0
    assert np.array_equal(remap(fine.data[::-1], twins), fine.data)


def test_volumes_are_those_of_a_newborn(fine):
    volume = volumes_mm3(fine.data, TABLE.ids.tolist(), 1.0)
    brain_ml = sum(size for index, size in volume.items() if index not in (0, 24)) / 1000
    assert 200 < brain_ml < 450
    assert volume[10] > volume[11] > volume[26] > 100
    assert volume[2] + volume[41] > volume[3] + volume[42] > volume[8] + volume[47]


def test_cortex_is_a_folded_sheet(fine):
    cortex = np.isin(fine.data, (3, 42))
    pieces, _ = ndimage.label(fine.data == 3)
    assert np.bincount(pieces.ravel())[1:].max() > 0.95 * (fine.data == 3).sum()
    # A sheet: hardly anything is deeper than its thickness. Folded: CSF reaches in beyond the hull.
    assert ndimage.distance_transform_edt(cortex).max() < 2 * 2.3 + 1
    cerebrum = np.isin(fine.data, (2, 3, 41, 42))
    hull = ndimage.binary_closing(cerebrum, iterations=5)
    assert (hull & (fine.data == 24)).sum() > 0.03 * cerebrum.sum()


def test_the_size_of_voxels_does_not_change_the_phantom():
    fine, coarse = (
        volumes_mm3(p.data, (2, 3, 10, 16, 24), p.grid.voxel_volume_mm3)
        for p in (phantom.phantom_labels(), phantom.phantom_labels(COARSE, 2.0))
    )
    for index, size in fine.items():
        assert coarse[index] == pytest.approx(size, rel=0.15), index


def test_seeds():
    def make(seed):
        return phantom.phantom_labels(COARSE, 2.0, np.random.default_rng(seed)).data

    assert np.array_equal(make(3), make(3))
    assert (make(3) != make(4)).mean() > 0.01


@pytest.mark.parametrize(("contrast", "order"), [("T1w", (24, 2, 3)), ("T2w", (3, 2, 24))])
def test_contrast_is_that_of_a_newborn(labels, contrast, order):
    image = phantom.phantom_image(labels, contrast)
    assert image.data.dtype == np.float32 and image.data.min() >= 0
    assert image.grid == labels.grid
    means = [image.data[labels.data == index].mean() for index in order]
    assert means == sorted(means)
    # A head around the brain: bright scalp on a dark background.
    away = ndimage.distance_transform_edt(labels.data == 0) * 2.0
    assert image.data[(away > 3) & (away < 5)].mean() > 5 * image.data[away > 9].mean()


def test_noise_and_bias_are_drawn(labels):
    def make(seed):
        return phantom.phantom_image(labels, "T1w", np.random.default_rng(seed)).data

    assert np.array_equal(make(1), make(1))
    white = labels.data == 2
    first, second = make(1)[white], make(2)[white]
    assert 2 < np.std(first - second) < 40
    with pytest.raises(ValueError, match="PD"):
        phantom.phantom_image(labels, "PD")


def test_the_app_finds_the_demo(demo):
    groups = find_scan_groups(demo)
    assert {g.label: list(g.by_contrast) for g in groups} == {
        "sub-adult": ["T1w"],
        "sub-infant": ["T1w", "T2w"],
    }
    scans = [nifti.read_scan(scan.path) for group in groups for scan in group.scans]
    assert [scan.warnings for scan in scans] == [(), (), ()]
    adult, infant = scans[0].volume, scans[1].volume
    assert adult.data.shape == (197, 233, 189) and adult.data.max() == 1000
    # Brain-extracted, 1.9 litres with CSF.
    assert 1.7e6 < (adult.data > 0).sum() < 2.0e6
    assert infant.grid.voxel_size_mm.tolist() == [2, 2, 2]


def test_the_reference_lies_on_the_scan(demo):
    anat = Path("sub-infant") / "anat"
    reference = nifti.read_labels(demo / "derivatives/reference" / anat / "sub-infant_dseg.nii.gz")
    scan = nifti.read_scan(demo / anat / "sub-infant_T2w.nii.gz")
    assert reference.volume.grid == scan.volume.grid
    assert reference.volume.data.max() == 2004
    values = scan.volume.data[reference.volume.data == 24]
    assert values.mean() > scan.volume.data[reference.volume.data == 3].mean()


def test_the_demo_is_valid_bids(demo):
    validator = shutil.which("bids-validator-deno", path=Path(sys.executable).parent)
    if validator is None:
        pytest.skip("bids-validator-deno is not installed")
    for folder in (demo, demo / "derivatives" / "reference"):
        result = subprocess.run(
            [validator, folder, "--json"], capture_output=True, text=True, check=False
        )
        issues = json.loads(result.stdout)["issues"]["issues"]
        assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_again_but_never_over_something_else(demo, tmp_path):
    before = (demo / "sub-infant/anat/sub-infant_T1w.nii.gz").read_bytes()
    write_demo(demo, shape=COARSE, voxel_mm=2.0)
    assert (demo / "sub-infant/anat/sub-infant_T1w.nii.gz").read_bytes() == before
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(CannotCreate, match="not empty"):
        write_demo(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_figure_of_it(demo, tmp_path, capsys):
    matplotlib_image = pytest.importorskip("matplotlib.image")
    scan = demo / "sub-infant/anat/sub-infant_T2w.nii.gz"
    reference = demo / "derivatives/reference/sub-infant/anat/sub-infant_dseg.nii.gz"
    picture = tmp_path / "new" / "infant.png"
    arguments = ["figure", scan, reference, picture]
    assert console.run(workbench.command, [str(a) for a in arguments]) == 0
    pixels = matplotlib_image.imread(picture)[..., :3]
    spread = pixels.max(-1) - pixels.min(-1)
    assert (spread > 0.2).mean() > 0.02, "no coloured labels"
    assert ((spread < 0.02) & (pixels.mean(-1) > 0.3)).mean() > 0.005, "no grey image"
    # Beside every slice with labels is the same slice without: half of the panels are all grey.
    columns = np.array_split((spread[spread.shape[0] // 8 :] > 0.2).mean(0), 8)
    shares = [float(column.mean()) for column in columns]
    assert max(shares[0::2]) < 0.1 * min(shares[1::2])
    other = demo / "sub-adult/anat/sub-adult_T1w.nii.gz"
    arguments = ["figure", other, reference, picture]
    assert console.run(workbench.command, [str(a) for a in arguments]) == 65
    assert "another grid" in capsys.readouterr().err
