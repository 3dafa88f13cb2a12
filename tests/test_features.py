import numpy as np
import pytest

from bids_synthseg.learning.features import FEATURES, shape_features
from bids_synthseg.synthesis.contrast import TISSUE_OF

# Classes: background, fluid, cortex, white matter, a vessel, the skull.
TISSUES = np.array([TISSUE_OF[t] for t in ("background", "csf", "grey", "white", "other", "other")])
SURROUNDING = np.array([0, 0, 0, 0, 0, 1], dtype=bool)
ONE_MM = (1.0, 1.0, 1.0)


def features(classes, voxel_mm=ONE_MM):
    found = shape_features(classes.astype(np.uint8), TISSUES, SURROUNDING, voxel_mm)
    assert found.shape == (len(FEATURES),) and found.dtype == np.float32
    return dict(zip(FEATURES, found.tolist(), strict=True))


def blocks(*, fluid=False, skull=False):
    """A block of 4 x 3 x 2 grey and one of 4 x 3 x 4 white voxels on top of it, in 10^3."""
    classes = np.full((10, 10, 10), 5 if skull else 0)
    if fluid:
        classes[1:8, 1:8, 1:9] = 1
    classes[2:6, 3:6, 2:4] = 2
    classes[2:6, 3:6, 4:8] = 3
    return classes


def test_by_hand():
    found = features(blocks(), (1.0, 2.0, 0.5))
    # Faces in mm2: 2 * 0.5 across x, 1 * 0.5 across y, 1 * 2 across z; two thirds of them count.
    grey = 2 / 3 * 2 * (6 * 1.0 + 8 * 0.5 + 12 * 2.0)
    white = 2 / 3 * 2 * (12 * 1.0 + 16 * 0.5 + 12 * 2.0)
    brain = 2 / 3 * 2 * (18 * 1.0 + 24 * 0.5 + 12 * 2.0)
    expected = {
        "brain_volume_ml": 0.072,
        "brain_surface_cm2": brain / 100,
        "brain_surface_to_volume_per_mm": brain / 72,
        "csf_volume_to_brain": np.nan,
        "grey_volume_to_brain": 1 / 3,
        "white_volume_to_brain": 2 / 3,
        "csf_surface_to_volume_per_mm": np.nan,
        "grey_surface_to_volume_per_mm": grey / 24,
        "white_surface_to_volume_per_mm": white / 48,
    }
    assert found == pytest.approx(expected, rel=1e-6, nan_ok=True)


def test_what_is_around_the_brain_is_no_part_of_it():
    bare, clothed = features(blocks()), features(blocks(fluid=True, skull=True))
    fluid = 7 * 7 * 8 - 72
    surface = 2 / 3 * (2 * (7 * 7 + 7 * 8 + 7 * 8) + 2 * (4 * 3 + 4 * 6 + 3 * 6))
    for name, value in clothed.items():
        if not name.startswith("csf"):
            assert value == pytest.approx(bare[name])
    assert clothed["csf_volume_to_brain"] == pytest.approx(fluid / 72)
    assert clothed["csf_surface_to_volume_per_mm"] == pytest.approx(surface / fluid)


def test_a_vessel_counts_as_brain_alone():
    classes = blocks()
    classes[2, 3, 2] = 4
    found = features(classes)
    assert found["brain_volume_ml"] == pytest.approx(0.072)
    assert found["grey_volume_to_brain"] == pytest.approx(23 / 72)


def test_maps_that_label_little():
    classes = blocks()
    classes[classes == 3] = 0
    found = features(classes)
    assert found["grey_volume_to_brain"] == 1
    assert np.isnan([found[n] for n in found if n.startswith(("csf", "white"))]).all()
    assert np.isnan(list(features(np.zeros((3, 3, 3))).values())).all()
    fluid_alone = features(np.ones((3, 3, 3)))
    assert fluid_alone["csf_surface_to_volume_per_mm"] == pytest.approx(2 / 3 * 54 / 27)
    assert np.isnan(fluid_alone["brain_volume_ml"])


def test_finer_voxels_and_turned_axes_are_the_same_brain():
    classes = blocks(fluid=True, skull=True)
    coarse = features(classes, (1.0, 2.0, 0.5))
    finer = classes.repeat(2, axis=0).repeat(3, axis=2)
    assert features(finer, (0.5, 2.0, 0.5 / 3)) == pytest.approx(coarse)
    assert features(classes.transpose(2, 0, 1)[:, ::-1], (0.5, 1.0, 2.0)) == pytest.approx(coarse)


@pytest.mark.parametrize("voxel_mm", [(1.0, 1.0, 1.0), (0.7, 0.7, 0.7), (0.8, 0.8, 1.3)])
def test_area_of_a_ball(voxel_mm):
    radius = 14.0
    axes = [np.arange(-17, 17, step) + 0.3 for step in voxel_mm]
    squared = sum(np.square(axis) for axis in np.ix_(*axes))
    found = features(np.where(squared < radius**2, 3, 0), voxel_mm)
    assert found["brain_volume_ml"] == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.02)
    assert found["brain_surface_cm2"] == pytest.approx(4 * np.pi * radius**2 / 100, rel=0.03)
    assert found["brain_surface_to_volume_per_mm"] == pytest.approx(3 / radius, rel=0.04)
