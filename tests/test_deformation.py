"""Deformation: zero is identity, the warp folds nothing, indices follow coordinates."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bids_synthseg.synthesis.deformation import (
    DeformationConfig,
    displacement,
    draw_affine,
    draw_velocity,
    identity_grid,
    nearest_index,
    resize,
    sample_linear,
    sampling_coordinates,
)

SHAPE = (20, 24, 16)
NOTHING = DeformationConfig(rotation_deg=0, scale=0, shear=0, shift=0, warp=0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_zero_ranges_draw_the_identity():
    np.testing.assert_allclose(draw_affine(NOTHING, SHAPE, False, rng()), np.eye(4), atol=1e-12)
    assert not draw_velocity(NOTHING, SHAPE, rng()).any()


def test_flip_mirrors_the_first_axis_about_the_centre():
    affine = draw_affine(NOTHING, SHAPE, True, rng())
    np.testing.assert_allclose(affine @ [0, 5, 7, 1], [19, 5, 7, 1], atol=1e-12)
    np.testing.assert_allclose(affine @ affine, np.eye(4), atol=1e-12)


@pytest.mark.parametrize("flip", [False, True])
def test_affines_stay_in_their_ranges(flip):
    config = DeformationConfig(rotation_deg=10, scale=0.2, shear=0, shift=0.1, warp=0)
    centre = np.array([*(np.array(SHAPE) - 1) / 2, 1])
    for seed in range(20):
        affine = draw_affine(config, SHAPE, flip, rng(seed))
        scales = np.linalg.svd(affine[:3, :3])[1]
        assert scales.min() >= 1 / 1.2 - 1e-9 and scales.max() <= 1.2 + 1e-9
        assert np.sign(np.linalg.det(affine[:3, :3])) == (-1 if flip else 1)
        assert (np.abs((affine @ centre - centre)[:3]) <= 0.1 * np.array(SHAPE) + 1e-9).all()


def test_rotation_is_in_degrees():
    config = DeformationConfig(rotation_deg=15, scale=0, shear=0, shift=0, warp=0)
    for seed in range(10):
        linear = draw_affine(config, SHAPE, False, rng(seed))[:3, :3]
        angle = np.rad2deg(np.arccos((np.trace(linear) - 1) / 2))
        np.testing.assert_allclose(linear @ linear.T, np.eye(3), atol=1e-12)
        assert 0 < angle <= 3 * 15


@pytest.mark.parametrize(("sharing", "correlation"), [(0.0, 0.0), (1.0, 1.0)])
def test_axes_share_their_scale_as_asked(sharing, correlation):
    config = DeformationConfig(
        rotation_deg=0, scale=0.25, scale_sharing=sharing, shear=0, shift=0, warp=0
    )
    scales = np.array(
        [np.diag(draw_affine(config, SHAPE, False, rng(seed)))[:3] for seed in range(400)]
    )
    # Up to 1.25 and down to its inverse, whatever is shared.
    np.testing.assert_allclose([scales.min(), scales.max()], [0.8, 1.25], atol=0.005)
    found = np.corrcoef(np.log(scales).T)[np.triu_indices(3, 1)]
    np.testing.assert_allclose(found, correlation, atol=0.15)


def test_shear_stays_in_its_range():
    config = DeformationConfig(rotation_deg=0, scale=0, shear=0.03, shift=0, warp=0)
    linear = np.array([draw_affine(config, SHAPE, False, rng(k))[:3, :3] for k in range(200)])
    np.testing.assert_allclose(np.diagonal(linear, axis1=1, axis2=2), 1)
    slants = linear[:, ~np.eye(3, dtype=bool)]
    assert np.abs(slants).max() <= 0.03 and (np.ptp(slants, axis=0) > 0.055).all()


def test_nodes_and_strength_of_the_warp():
    config = DeformationConfig(warp=0.1, warp_nodes_min=4, warp_nodes=6)
    drawn = [draw_velocity(config, (10, 20, 30), rng(seed)) for seed in range(300)]
    assert {field.shape for field in drawn} == {(3, n, n, n) for n in (4, 5, 6)}
    assert drawn[0].dtype == np.float32
    # A tenth of the mean side, 20 voxels, is the largest SD; 192 values show it to a few percent.
    deviations = [field.std() for field in drawn]
    assert 1.9 < max(deviations) < 2.3 and min(deviations) < 0.05


@pytest.mark.parametrize(
    "wrong",
    [{"scale_sharing": 1.5}, {"scale_sharing": -0.1}, {"warp_nodes_min": 1}, {"warp_nodes": 2}],
)
def test_ranges_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match="scale_sharing in"):
        DeformationConfig(**wrong)


def test_no_velocity_no_displacement():
    assert not displacement(torch.zeros(3, 4, 4, 4), SHAPE).any()
    coordinates = sampling_coordinates(torch.eye(4), torch.zeros(3, 4, 4, 4), SHAPE)
    torch.testing.assert_close(coordinates, identity_grid(SHAPE))


def test_constant_velocity_moves_by_itself():
    velocity = torch.tensor([1.5, -1.0, 0.5]).view(3, 1, 1, 1).expand(3, 3, 3, 3)
    moved = displacement(velocity, SHAPE)
    expected = torch.tensor([1.5, -1.0, 0.5]).view(3, 1, 1, 1).expand(3, *SHAPE)
    torch.testing.assert_close(moved, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_warp_does_not_fold(seed):
    velocity = torch.from_numpy(draw_velocity(DeformationConfig(), (48, 48, 48), rng(seed)))
    place = (identity_grid((48, 48, 48)) + displacement(velocity, (48, 48, 48))).numpy()
    jacobian = np.stack([np.stack(np.gradient(axis)) for axis in place])
    determinant = np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1)))
    assert determinant.min() > 0
    assert determinant.std() > 0.005, "the warp does nothing"


def test_negative_velocity_leads_back():
    velocity = 1.3 * torch.randn((3, 5, 5, 5), generator=torch.Generator().manual_seed(3))
    there, back = displacement(velocity, (48, 48, 48)), displacement(-velocity, (48, 48, 48))
    place = identity_grid((48, 48, 48)) + there
    returned = place + sample_linear(back, place)
    inner = (slice(None), *[slice(12, 36)] * 3)
    error = (returned - identity_grid((48, 48, 48)))[inner].abs()
    assert there[inner].abs().max() > 1
    assert error.mean() < 0.1 and error.max() < 0.5


def test_affine_follows_the_warp():
    affine = torch.eye(4)
    affine[0, 0], affine[0, 3] = 2.0, 1.0
    velocity = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1, 1).expand(3, 2, 2, 2)
    coordinates = sampling_coordinates(affine, velocity, SHAPE)
    # 2 (x + 1) + 1, not 2 x + 1 + 1
    assert coordinates[0, 4, 0, 0].item() == pytest.approx(11, abs=1e-3)
    assert coordinates[1, 4, 3, 0].item() == pytest.approx(3, abs=1e-3)


def test_nearest_index_rounds_and_knows_the_border():
    points = torch.tensor([[0.4, 0.0, 0.0], [0.6, 0.0, 2.4], [-0.6, 0.0, 0.0], [1.0, 2.0, 2.6]])
    index = nearest_index(points.T.reshape(3, 4, 1, 1), (2, 3, 3))
    assert index.flatten().tolist() == [0, 9 + 2, -1, -1]


def test_sample_linear_is_linear_inside_and_clamped_outside():
    field = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 2, 2)
    points = torch.tensor([[1.25, 0.5, 1.0], [-3.0, 0.0, 0.0], [9.0, 1.0, 1.0]])
    values = sample_linear(field, points.T.reshape(3, 3, 1, 1)).flatten()
    torch.testing.assert_close(values, torch.tensor([1.25, 0.0, 3.0]))


def test_resize_keeps_corners():
    field = torch.tensor([0.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    torch.testing.assert_close(resize(field, (5, 3, 3))[0, :, 1, 1], torch.arange(5.0))


@pytest.mark.parametrize("nodes", [(4, 5, 3), (1, 2, 2), (20, 24, 16)])
def test_resize_is_trilinear(nodes):
    field = torch.randn((2, *nodes), generator=torch.Generator().manual_seed(4))
    expected = F.interpolate(field[None], size=SHAPE, mode="trilinear", align_corners=True)[0]
    torch.testing.assert_close(resize(field, SHAPE), expected, atol=1e-5, rtol=1e-5)
