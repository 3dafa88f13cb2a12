"""Draw and render: replayable, image and target in lockstep, sides exchanged by a flip."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from training_samples import (
    BACKGROUND,
    FLUID,
    LEFT_CORTEX,
    LEFT_WHITE,
    RIGHT_CORTEX,
    RIGHT_WHITE,
    sphere,
    still,
)

from bids_synthseg.anatomy.volume import working_voxel_mm
from bids_synthseg.learning.validation import UNTOUCHED
from bids_synthseg.synthesis.deformation import DeformationConfig
from bids_synthseg.synthesis.recipe import SynthesisConfig, draw, render

SIDE = 24
SHAPE = (SIDE, SIDE, SIDE)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def centre_of(weight: torch.Tensor) -> np.ndarray:
    """Centre of mass of (X, Y, Z) in voxels."""
    places = torch.stack(
        torch.meshgrid(*[torch.arange(float(n)) for n in weight.shape], indexing="ij")
    )
    return ((places * weight).flatten(1).sum(1) / weight.sum()).numpy()


def test_every_effect_off_gives_the_map_and_its_intensities():
    source = sphere(SIDE)
    image, classes = render(source, still(source, SHAPE))
    assert classes.dtype == torch.int64 and image.dtype == torch.float32
    assert torch.equal(classes, source.classes.long())
    torch.testing.assert_close(image, source.classes / 10)


def test_every_effect_off_gives_the_paired_scan():
    source = sphere(SIDE, scan=True)
    image, classes = render(source, still(source, SHAPE, image=0))
    torch.testing.assert_close(image, source.images[0].float(), atol=1e-4, rtol=0)
    assert torch.equal(classes, source.classes.long())


@pytest.mark.parametrize("seed", range(6))
def test_a_bright_class_lands_where_its_label_lands(seed):
    source = sphere(SIDE)
    config = replace(UNTOUCHED, flip=0.5, deformation=DeformationConfig(rotation_deg=30, warp=0.05))
    drawn = draw(source, config, (32, 28, 30), 0.8, rng(seed))
    marked = int(source.twins[LEFT_CORTEX]) if drawn.flip else LEFT_CORTEX
    means = np.zeros_like(drawn.means)
    means[marked] = 1
    image, classes = render(source, replace(drawn, means=means, spreads=0 * means, image=-1))
    assert (classes == marked).any()
    assert torch.equal(image > 0.5, classes == marked)


@pytest.mark.parametrize("seed", range(4))
def test_a_scan_follows_its_map(seed):
    """The scan is interpolated, the map is not: they agree to half a voxel."""
    source = sphere(SIDE)
    scan = (source.classes == FLUID).to(torch.float16)
    source = replace(source, images=scan[None], contrasts=("T2w",))
    config = replace(UNTOUCHED, deformation=DeformationConfig(rotation_deg=30, warp=0.05))
    drawn = draw(source, config, (32, 28, 30), 0.8, rng(seed))
    assert drawn.image == 0
    image, classes = render(source, drawn)
    distance = centre_of(image) - centre_of((classes == FLUID).float())
    assert np.abs(distance).max() < 0.5
    assert ((image > 0.5) != (classes == FLUID)).float().mean() < 0.03


@pytest.mark.parametrize("pool", [2, 3])
def test_pooled_image_and_classes_share_their_place(pool):
    source = sphere(SIDE)
    drawn = draw(source, UNTOUCHED, (12, 12, 12), 0.8, rng(1), pool)
    means = np.zeros_like(drawn.means)
    means[LEFT_WHITE] = 1
    places = []
    for corner in ((0, 0, 0), (pool - 1,) * 3):
        marked = replace(drawn, means=means, spreads=0 * means, image=-1, corner=corner)
        image, classes = render(source, marked)
        assert image.shape == classes.shape == (12, 12, 12)
        places.append(centre_of((classes == LEFT_WHITE).float()))
    # Opposite corners of a pool lie on both sides of the middle that the image averages about.
    assert np.abs(np.mean(places, axis=0) - centre_of(image)).max() < 0.1
    assert np.abs(places[0] - centre_of(image)).max() < 0.6


def test_flip_exchanges_sides_and_keeps_them_in_place():
    source = sphere(SIDE)
    config = replace(UNTOUCHED, flip=1.0)
    drawn = draw(source, config, SHAPE, 0.8, rng())
    assert drawn.flip
    _, classes = render(source, drawn)
    # The ball is symmetrical: mirrored and renamed it is itself, left still on the left.
    assert torch.equal(classes, source.classes.long())
    x = torch.arange(SIDE).view(-1, 1, 1).expand(SHAPE)
    assert x[classes == LEFT_WHITE].max() < x[classes == RIGHT_WHITE].min()


def test_flip_is_an_involution():
    source = sphere(SIDE)
    lopsided = source.classes.clone()
    lopsided[4:8, 9:14, 10:12] = FLUID
    source = replace(source, classes=lopsided)
    flipped = draw(source, replace(UNTOUCHED, flip=1.0), SHAPE, 0.8, rng())
    _, once = render(source, flipped)
    assert not torch.equal(once, lopsided.long())
    _, twice = render(replace(source, classes=once.to(torch.uint8)), flipped)
    assert torch.equal(twice, lopsided.long())


def test_a_flipped_scan_goes_with_its_map():
    source = sphere(SIDE, scan=True)
    flipped = draw(source, replace(UNTOUCHED, flip=1.0), SHAPE, 0.8, rng())
    image, classes = render(source, flipped)
    # Intensities are not renamed: what is left now has the grey value of what was right.
    assert float(image[classes == LEFT_WHITE].median()) == pytest.approx(RIGHT_WHITE / 10, abs=1e-3)
    assert float(image[classes == RIGHT_CORTEX].median()) == pytest.approx(
        LEFT_CORTEX / 10, abs=1e-3
    )


def test_flips_come_as_often_as_asked():
    source = sphere(8)
    for rate in (0.0, 0.3, 1.0):
        config = replace(SynthesisConfig(), flip=rate)
        flips = [draw(source, config, (4, 4, 4), 0.8, rng(seed)).flip for seed in range(300)]
        # Three standard errors of 300 draws; 0 and 1 have none.
        assert np.mean(flips) == pytest.approx(rate, abs=0.08 if 0 < rate < 1 else 0)


def test_real_scans_are_used_as_often_as_asked():
    with_scan, without = sphere(8, scan=True), sphere(8)
    config = replace(SynthesisConfig(), real=0.3)
    used = [draw(with_scan, config, (4, 4, 4), 0.8, rng(seed)).image for seed in range(300)]
    assert set(used) == {-1, 0}
    assert np.mean(np.array(used) == 0) == pytest.approx(0.3, abs=0.08)
    assert draw(without, replace(config, real=1.0), (4, 4, 4), 0.8, rng()).image == -1


def test_same_seed_same_sample():
    source = sphere(SIDE, scan=True)
    first, again, other = (
        draw(source, SynthesisConfig(), SHAPE, 0.8, rng(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first.noise, again.noise) and np.array_equal(first.affine, again.affine)
    assert (
        np.array_equal(first.means, again.means)
        and first.acquisition.gamma == again.acquisition.gamma
    )
    samples = [render(source, drawn) for drawn in (first, again, other)]
    assert torch.equal(samples[0][0], samples[1][0]) and torch.equal(samples[0][1], samples[1][1])
    assert not torch.equal(samples[0][0], samples[2][0])
    assert not torch.equal(samples[0][1], samples[2][1])


@pytest.mark.parametrize("seed", range(8))
def test_default_samples_are_sound(seed):
    source = sphere(SIDE, scan=True)
    drawn = draw(source, SynthesisConfig(), (24, 32, 16), 0.9, rng(seed))
    image, classes = render(source, drawn)
    assert image.shape == classes.shape == (24, 32, 16)
    assert image.isfinite().all() and image.min() >= 0 and image.std() > 0
    assert classes.min() >= 0 and classes.max() < len(drawn.means)


def test_surroundings_are_kept_or_dropped():
    source = sphere(SIDE)
    source = replace(source, surrounding=np.arange(6) == FLUID)
    kept = render(source, still(source, SHAPE, keep_surroundings=True))[1]
    dropped = render(source, still(source, SHAPE, keep_surroundings=False))[1]
    assert (kept == FLUID).any() and not (dropped == FLUID).any()
    assert (dropped[kept == FLUID] == BACKGROUND).all()


def test_beyond_the_map_is_background():
    source = sphere(SIDE)
    shape = (SIDE + 10,) * 3
    image, classes = render(source, still(source, shape, affine=np.eye(4)))
    assert torch.equal(classes[:SIDE, :SIDE, :SIDE], source.classes.long())
    assert not classes[SIDE:].any() and not image[SIDE:].any()


def test_brain_fills_the_grid_as_asked():
    # Sides of 100, 120 and 90 mm in 40, 60 and 40 voxels: the first is the tightest.
    assert working_voxel_mm((100, 120, 90), (40, 60, 40), 0.5) == 5
    source = sphere(48)
    _, classes = render(source, draw(source, UNTOUCHED, (32, 40, 48), 0.75, rng()))
    extent = [torch.nonzero(classes)[:, a] for a in range(3)]
    assert all(abs(int(e.max() - e.min()) + 1 - 24) <= 1 for e in extent)
    np.testing.assert_allclose(centre_of((classes > 0).float()), [15.5, 19.5, 23.5], atol=0.3)


def test_voxels_need_not_be_cubes():
    source = replace(sphere(SIDE), voxel_mm=(1.0, 2.0, 0.5), extent_mm=(19.2, 38.4, 9.6))
    _, classes = render(source, draw(source, UNTOUCHED, (48, 48, 48), 1.0, rng()))
    brain = torch.nonzero(classes)
    extent = (brain.max(0).values - brain.min(0).values + 1).tolist()
    assert extent == pytest.approx([24, 48, 12], abs=2)


def test_a_map_moves_to_a_device_whole():
    moved = sphere(8, scan=True).to(torch.device("meta"))
    assert {moved.classes.device.type, moved.outside.device.type, moved.images.device.type} == {
        "meta"
    }
    assert moved.extent_mm == sphere(8).extent_mm


@pytest.mark.parametrize("seed", range(6))
def test_rendering_stays_on_the_maps_device(seed):
    """On "meta" nothing is computed, but arithmetic that mixes devices is refused."""
    source = sphere(SIDE, scan=True)
    drawn = draw(source, SynthesisConfig(), (16, 16, 16), 0.8, rng(seed), pool=1 + seed % 2)
    image, classes = render(source.to(torch.device("meta")), drawn)
    assert image.device.type == classes.device.type == "meta"
    assert image.shape == classes.shape == (16, 16, 16)


def test_a_t2_like_sample_uses_no_t1w_scan():
    source = sphere(SIDE)
    both = replace(
        source, images=torch.cat([source.images, source.images]), contrasts=("T1w", "T2w")
    )
    config = SynthesisConfig(real=1.0, t2_like=1.0)
    drawn = [draw(both, config, SHAPE, 0.8, np.random.default_rng(k)) for k in range(10)]
    assert {one.image for one in drawn} == {1}
    drawn = [draw(source, config, SHAPE, 0.8, np.random.default_rng(k)) for k in range(3)]
    assert {one.image for one in drawn} == {-1}
