"""Draw and render: replayable, image and target in lockstep, sides exchanged by a flip."""

import pickle
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
from bids_synthseg.synthesis import head
from bids_synthseg.synthesis.acquisition import AcquisitionConfig
from bids_synthseg.synthesis.artefacts import ArtefactConfig
from bids_synthseg.synthesis.contrast import TISSUE_OF, ContrastConfig
from bids_synthseg.synthesis.deformation import DeformationConfig
from bids_synthseg.synthesis.head import AIR, BORROWED, INSIDE, Donor, HeadConfig
from bids_synthseg.synthesis.parts import MOST, PartsConfig, PartsDraw
from bids_synthseg.synthesis.priors import read_priors
from bids_synthseg.synthesis.recipe import (
    Draw,
    SourceMap,
    SynthesisConfig,
    draw,
    render,
    working_voxel,
)
from bids_synthseg.synthesis.shape import ShapeConfig, ShapeDraw

SIDE = 24
SHAPE = (SIDE, SIDE, SIDE)
STILL = replace(UNTOUCHED, real=0.0)
QUIET = UNTOUCHED.acquisition
ACQUISITIONS = {
    "bias": {"bias": 0.3},
    "gamma": {"gamma": 0.5},
    "blur": {"blur": 3.0},
    "coarse": {"sharp": 0.0, "isotropic_max": 2.5, "blur": 1.0},
    "uneven": {"sharp": 0.0, "isotropic_max": 2.5, "uneven": True, "blur": 1.0},
    "thick slices": {"sharp": 0.0, "one_axis": 1.0, "spacing_max": 4.0, "blur": 1.0},
    "gapless": {"sharp": 0.0, "one_axis": 1.0, "spacing_max": 4.0, "gapless": 1.0, "blur": 1.0},
    "noise": {"noise_max": 0.2},
    "absolute noise": {"noise_max": 0.05, "noise_relative": False},
    "rician": {"noise_max": 0.2, "rician": 1.0},
}
EFFECTS = {
    "flip": {"flip": 1.0},
    "rotation": {"deformation": replace(UNTOUCHED.deformation, rotation_deg=30)},
    "scale": {"deformation": replace(UNTOUCHED.deformation, scale=0.2, scale_sharing=0.0)},
    "shear": {"deformation": replace(UNTOUCHED.deformation, shear=0.1)},
    "shift": {"deformation": replace(UNTOUCHED.deformation, shift=0.1)},
    "warp": {"deformation": replace(UNTOUCHED.deformation, warp=0.06)},
    "shape": {"shape": ShapeConfig(ventricles=1, cortex=1)},
    "shells": {"head": HeadConfig(shells=1, csf_only=0, blobs=0)},
    "csf": {"head": HeadConfig(shells=0, csf_only=1, blobs=0)},
    "blobs": {"head": HeadConfig(shells=0, csf_only=0, blobs=1)},
    "borrowed head": {"head": HeadConfig(shells=0, csf_only=0, borrowed=1, blobs=0)},
    "surroundings dropped": {"keep_surroundings": 0.0},
    **{name: {"acquisition": replace(QUIET, **what)} for name, what in ACQUISITIONS.items()},
    **{
        name: {"artefacts": ArtefactConfig(**{name: 1.0})}
        for name in ("voids", "halo", "structured", "blurred")
    },
    "misplaced": {"artefacts": ArtefactConfig(misplaced=1, shift_max=1, turn_max_deg=2)},
}
"""Every effect by itself; what has no name in SynthesisConfig is off."""

EXACT = list(EFFECTS)[: list(EFFECTS).index("bias")]
"""Effects that leave intensities as they were painted."""

EVERYTHING = SynthesisConfig(
    real=0.2,
    shape=ShapeConfig(ventricles=1, cortex=1),
    contrast=ContrastConfig(prior=0.5, fuse=0.5),
    parts=PartsConfig(probability=0.7),
    head=HeadConfig(shells=0.3, csf_only=0.2, borrowed=0.5, blobs=0.5),
    acquisition=AcquisitionConfig(rician=0.5),
    artefacts=ArtefactConfig(misplaced=0.7, voids=0.7, halo=0.7, structured=0.7, blurred=0.7),
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def donor(side: int = 40) -> Donor:
    """A ball of brain in two shells of a head, of 2 mm voxels; the brain's box is a half, the
    first shell ends at 0.65 and the second at 0.8 of the volume's sides."""
    x, y, z = np.meshgrid(*[np.arange(side) - (side - 1) / 2] * 3, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2) / (side / 2)
    classes = np.select([radius < 0.5, radius < 0.65, radius < 0.8], [1, 2, 3], 0)
    return Donor(
        torch.from_numpy(classes.astype(np.uint8)),
        np.array([AIR, INSIDE, 1, 2]),
        voxel_mm=(2.0, 2.0, 2.0),
        centre=((side - 1) / 2,) * 3,
        extent_mm=(float(side),) * 3,
    )


def clustered() -> SourceMap:
    """The ball with a scan, 0.1 in its left and 0.2 in its right half, whose white matter and
    background are clustered in two: by side, and the surroundings where they are bright."""
    source = sphere(SIDE, scan=True)
    images = 0.1 * (source.images > 0)
    images[0, SIDE // 2 :] *= 2
    images[0, :2] = 0.25
    images[0, 2:4] = 0.75
    thresholds = np.full((1, len(TISSUE_OF), MOST, MOST - 1), np.inf, dtype=np.float32)
    thresholds[0, TISSUE_OF["white"], 1, 0] = 0.15
    thresholds[0, TISSUE_OF["background"], 1, 0] = 0.5
    return replace(source, images=images, thresholds=thresholds)


def parts_of(image: int = 0, field: np.ndarray | None = None, **counts: int) -> PartsDraw:
    """Parts by tissue; intensity of part p of tissue t: (10 t + p) / 100."""
    numbers = np.arange(len(TISSUE_OF))[:, None] * 10 + np.arange(MOST)
    return PartsDraw(
        counts=np.array([counts.get(name, 0) for name in TISSUE_OF]),
        means=(numbers / 100).astype(np.float32),
        spreads=np.zeros(numbers.shape, dtype=np.float32),
        image=image,
        field=field,
    )


def marked(drawn: Draw, classes: list[int], **changes: object) -> Draw:
    """The draw with some classes white and all else black."""
    means = np.zeros_like(drawn.means)
    means[classes] = 1
    changes = {"means": means, "spreads": 0 * means, "image": -1, "parts": None, **changes}
    return replace(drawn, **changes)


def same(one: Draw, other: Draw) -> bool:
    """Whether all numbers of two draws agree."""
    return pickle.dumps(one) == pickle.dumps(other)


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


@pytest.mark.parametrize("effect", EFFECTS)
def test_image_and_target_are_in_lockstep_whatever_the_effect(effect):
    """A marked class, off the centre and of one side, is seen where the target has it."""
    source = sphere(SIDE)
    config = replace(STILL, **EFFECTS[effect])
    offsets = []
    for seed in range(6):
        drawn = draw(source, config, (32, 28, 30), 0.8, rng(seed), donors=[donor()])
        of_side = int(source.twins[LEFT_CORTEX]) if drawn.flip else LEFT_CORTEX
        image, classes = render(source, marked(drawn, [of_side]), [donor()])
        target = classes == of_side
        assert target.any()
        if effect in EXACT:
            assert torch.equal(image, target.float())
        noise = 0.35 if "noise" in effect or effect == "rician" else 0.0
        seen = (image / image.max() - noise).clamp(min=0)
        offsets.append(centre_of(seen) - centre_of(target.float()))
    # Uneven loss of signal moves a centre of mass by chance, a wrong grid by the same each time.
    assert np.abs(offsets).max() < 1.5
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.4


@pytest.mark.parametrize("effect", ["coarse", "uneven", "thick slices", "gapless", "blur"])
def test_resolution_moves_nothing(effect):
    """Not by a fraction of a voxel: grids of another spacing cover the same length."""
    source = sphere(SIDE)
    for seed in range(8):
        drawn = draw(source, replace(STILL, **EFFECTS[effect]), SHAPE, 0.8, rng(seed))
        image, classes = render(source, marked(drawn, [LEFT_WHITE]))
        target = (classes == LEFT_WHITE).float()
        assert np.abs(centre_of(image) - centre_of(target)).max() < 0.12


@pytest.mark.parametrize("seed", range(8))
def test_a_marked_class_lands_where_its_label_lands_under_everything_that_moves(seed):
    source = sphere(SIDE)
    config = replace(
        STILL, flip=0.5, deformation=DeformationConfig(rotation_deg=30, warp=0.05),
        shape=ShapeConfig(cortex=0.5), head=HeadConfig(borrowed=0.2),
    )  # fmt: skip
    drawn = draw(source, config, (32, 28, 30), 0.8, rng(seed), donors=[donor()])
    image, classes = render(source, marked(drawn, [LEFT_CORTEX, 6 + head.CSF]), [donor()])
    bright = (classes == LEFT_CORTEX) | (classes == 6 + head.CSF)
    assert bright.any() and torch.equal(image > 0.5, bright)


def test_zero_strength_of_everything_is_identity():
    """All strengths zero, whatever the seed: each class has its mean, each voxel its class."""
    source = sphere(SIDE)
    nothing = SynthesisConfig(
        flip=0,
        keep_surroundings=1,
        deformation=DeformationConfig(rotation_deg=0, scale=0, shear=0, shift=0, warp=0),
        contrast=ContrastConfig(spread_min=0, spread_max=0, dark_background=0),
        head=HeadConfig(shells=0, csf_only=0, blobs=0),
        acquisition=AcquisitionConfig(
            bias=0, gamma=0, noise_max=0, sharp=1, one_axis=0, blur=0, rician=1
        ),
        artefacts=ArtefactConfig(
            misplaced=1, structured=1, blurred=1, voids=1,
            shift_max=0, turn_max_deg=0, structured_max=0, blur_max=0, loss_max=0,
        ),
    )  # fmt: skip
    for seed in range(6):
        drawn = draw(source, nothing, SHAPE, 1.0, rng(seed))
        image, classes = render(source, drawn)
        assert torch.equal(classes, source.classes.long())
        torch.testing.assert_close(image, torch.from_numpy(drawn.means)[classes])


def test_no_probability_draws_nothing():
    """Probabilities of 0 switch off what would be strong."""
    source = clustered()
    off = replace(
        STILL,
        artefacts=ArtefactConfig(shift_max=9, turn_max_deg=90, halo_max=50, blur_max=9),
        shape=ShapeConfig(radius_max=9, cortex_max=9),
        parts=PartsConfig(clusters_max=9),
    )
    for seed in range(6):
        drawn = draw(source, off, SHAPE, 1.0, rng(seed), donors=[donor()])
        assert drawn.parts is None and drawn.head.donor == -1 and drawn.image == -1
        drawn = replace(drawn, spreads=0 * drawn.spreads)
        image, classes = render(source, drawn, [donor()])
        assert torch.equal(classes, source.classes.long())
        torch.testing.assert_close(image, torch.from_numpy(drawn.means)[classes])


def test_parts_of_a_scan():
    """Left and right white matter differ in the scan: each is a part, and no longer a class."""
    source = clustered()
    drawn = still(source, SHAPE, parts=parts_of(white=2))
    image, classes = render(source, drawn)
    assert torch.equal(classes, source.classes.long())
    expected = classes / 10
    expected[classes == LEFT_WHITE], expected[classes == RIGHT_WHITE] = 0.30, 0.31
    torch.testing.assert_close(image, expected)


def test_parts_of_the_scans_own_surroundings():
    """Background where the scan is not black has parts, by the thresholds; the target has none."""
    source = clustered()
    image, classes = render(source, still(source, SHAPE, parts=parts_of(background=2)))
    assert torch.equal(classes, source.classes.long())
    expected = classes / 10
    expected[:2], expected[2:4] = 0.0, 0.01
    # The ball begins beyond the fourth layer, but for two voxels of fluid in its middle.
    brain = source.classes > 0
    torch.testing.assert_close(image[~brain], expected[~brain])
    torch.testing.assert_close(image[brain], classes[brain] / 10)


def test_a_painted_head_has_no_parts():
    source = clustered()
    config = replace(STILL, head=HeadConfig(shells=1, csf_only=0, blobs=0))
    drawn = draw(source, config, SHAPE, 1.0, rng())
    parts = parts_of(background=2, other=1)
    painted = 6 + np.arange(head.N_CLASSES)
    image, classes = render(source, marked(drawn, painted.tolist(), parts=parts))
    assert (classes >= 6).any()
    assert (image[classes >= 6] == 1).all() and (image[classes < 6] < 0.5).all()


def test_parts_follow_their_tissue_and_their_scan():
    """Under a deformation and a flip the parts are still those of the scan at the same place."""
    source = clustered()
    config = replace(STILL, flip=1.0, deformation=DeformationConfig(rotation_deg=20))
    drawn = draw(source, config, SHAPE, 1.0, rng(3))
    drawn = replace(marked(drawn, []), parts=parts_of(white=2))
    image, classes = render(source, drawn)
    # Sides exchange their names, the scan does not: left white matter is the brighter one.
    left, right = (image[classes == one] for one in (LEFT_WHITE, RIGHT_WHITE))
    # The scan is interpolated, so that along the midline a few voxels are of the other part.
    assert (left == left.new_tensor(0.31)).float().mean() > 0.9
    assert (right == right.new_tensor(0.30)).float().mean() > 0.9
    assert not image[(classes != LEFT_WHITE) & (classes != RIGHT_WHITE)].any()


def test_parts_of_space_where_there_is_no_scan():
    source = sphere(SIDE)
    config = replace(STILL, parts=PartsConfig(probability=1, clusters_min=3, clusters_max=3))
    drawn = draw(source, config, SHAPE, 1.0, rng(1))
    assert drawn.parts is not None and drawn.parts.image == -1
    # Nobody knows where the surroundings end.
    assert drawn.parts.counts.tolist() == [0, 3, 3, 3, 3]
    parts = parts_of(image=-1, field=drawn.parts.field, csf=3, grey=3, white=3)
    image, classes = render(source, replace(drawn, parts=parts))
    assert torch.equal(classes, source.classes.long())
    for tissue, members in (("csf", (5,)), ("grey", (3, 4)), ("white", (1, 2))):
        there = torch.isin(classes, torch.tensor(members))
        values = set((image[there] * 100).round().int().tolist())
        first = 10 * TISSUE_OF[tissue]
        assert values == {first, first + 1, first + 2}


def test_a_borrowed_head_is_scaled_to_the_brain():
    """The donor's shell from 1 to 1.3 and 1.6 of its brain surrounds any brain at 1 to 1.6."""
    source = sphere(SIDE)  # its brain's box: 0.8 of the map, the ball up to 0.8
    config = replace(STILL, head=HeadConfig(shells=0, csf_only=0, borrowed=1, blobs=0))
    drawn = draw(source, config, (48, 48, 48), 0.8, rng(), donors=[donor()])
    assert drawn.head.donor == 0
    smooth = replace(drawn.head, edges=(0.0,) * 4, unevenness=0 * drawn.head.unevenness)
    drawn = marked(replace(drawn, head=smooth), [6 + BORROWED])
    image, classes = render(source, drawn, [donor()])
    inner, outer = classes == 6 + BORROWED, classes == 6 + BORROWED + 1
    assert torch.equal(image > 0.5, inner)
    places = torch.stack(torch.meshgrid(*[torch.arange(48) - 23.5] * 3, indexing="ij"))
    radius = places.square().sum(0).sqrt() * 0.8 / 9.6  # 9.6 mm: radius of the brain
    for shell, low, high in ((inner, 1.0, 1.3), (outer, 1.3, 1.6)):
        assert float(radius[shell].min()) == pytest.approx(low, abs=0.13)
        assert float(radius[shell].max()) == pytest.approx(high, abs=0.13)
    assert not (classes[radius > 1.8] > 0).any()
    np.testing.assert_allclose(centre_of(outer.float()), 23.5, atol=0.2)


def test_a_borrowed_head_follows_the_deformation():
    source = sphere(SIDE)
    config = replace(
        STILL,
        deformation=replace(UNTOUCHED.deformation, shift=0.15),
        head=HeadConfig(shells=0, csf_only=0, borrowed=1, blobs=0),
    )
    for seed in range(3):
        drawn = draw(source, config, (48, 48, 48), 1.0, rng(seed), donors=[donor()])
        _, classes = render(source, drawn, [donor()])
        shell = centre_of((classes == 6 + BORROWED).float())
        brain = centre_of(((classes > 0) & (classes < 6)).float())
        assert np.abs(brain - 23.5).max() > 1, "nothing moved"
        # Each is rounded to voxels by itself.
        np.testing.assert_allclose(shell, brain, atol=0.8)


def test_a_cortex_that_grows_is_painted_where_it_is_labelled():
    source = sphere(SIDE)
    ones = np.ones((2, 2, 2, 2), dtype=np.float32)
    drawn = still(source, SHAPE, reshaping=ShapeDraw(0.0, 2.0, ones))
    image, classes = render(source, drawn)
    torch.testing.assert_close(image, classes / 10)
    for cortex in (LEFT_CORTEX, RIGHT_CORTEX):
        assert (classes == cortex).sum() > 1.2 * (source.classes == cortex).sum()
    assert torch.equal(classes == FLUID, source.classes == FLUID)


def test_tissue_under_a_scan_keeps_its_place():
    """A scan's own intensities would not follow."""
    source = sphere(SIDE, scan=True)
    ones = np.ones((2, 2, 2, 2), dtype=np.float32)
    drawn = still(source, SHAPE, reshaping=ShapeDraw(0.0, 2.0, ones), image=0)
    image, classes = render(source, drawn)
    assert torch.equal(classes, source.classes.long())
    torch.testing.assert_close(image, source.images[0].float(), atol=1e-3, rtol=0)


def test_a_prior_tells_its_contrast():
    source = sphere(8)
    white, cortex = (read_priors("newborn")["T2w"].of(np.array([one]))[0, 0] for one in (2, 3))
    config = replace(STILL, contrast=ContrastConfig(prior=1, prior_contrasts=("T2w",)))
    drawn = [draw(source, config, (4, 4, 4), 1.0, rng(seed)) for seed in range(200)]
    assert {one.contrast for one in drawn} == {"T2w"}
    means = np.mean([one.means for one in drawn], axis=0)
    assert means[LEFT_WHITE] == pytest.approx(white, abs=0.03)
    assert means[LEFT_CORTEX] == pytest.approx(cortex, abs=0.03)
    # The fluid that the head paints is fluid to the prior as well, what else it paints is random.
    assert means[6 + head.CSF] == pytest.approx(means[FLUID], abs=0.03)
    assert np.std([one.means[6 + head.SKULL] for one in drawn]) > 0.2


def test_a_contrast_is_told_only_of_what_was_seen():
    source = clustered()
    at_random = replace(STILL, contrast=ContrastConfig(prior=0))
    by_parts = replace(
        STILL, contrast=ContrastConfig(prior=1), parts=PartsConfig(probability=1, surroundings=0)
    )
    scan = replace(STILL, real=1.0, contrast=ContrastConfig(prior=1))
    for config, contrast in ((at_random, ""), (by_parts, ""), (scan, "T1w")):
        assert draw(source, config, (4, 4, 4), 1.0, rng()).contrast == contrast


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
    drawn = draw(source, config, SHAPE, 1.0, rng())
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
    flipped = draw(source, replace(UNTOUCHED, flip=1.0), SHAPE, 1.0, rng())
    _, once = render(source, flipped)
    assert not torch.equal(once, lopsided.long())
    _, twice = render(replace(source, classes=once.to(torch.uint8)), flipped)
    assert torch.equal(twice, lopsided.long())


def test_a_flipped_scan_goes_with_its_map():
    source = sphere(SIDE, scan=True)
    flipped = draw(source, replace(UNTOUCHED, flip=1.0), SHAPE, 1.0, rng())
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


def test_same_seed_same_draw():
    first, again, other = (
        draw(clustered(), EVERYTHING, SHAPE, 0.8, rng(seed), donors=[donor()]) for seed in (5, 5, 6)
    )
    assert same(first, again) and not same(first, other)


@pytest.mark.parametrize("seed", range(6))
def test_same_draw_same_sample(seed):
    """Twice, and after a draw was stored; and rendering changes neither map, donor nor draw."""
    source, heads = clustered(), [donor()]
    drawn = draw(source, EVERYTHING, SHAPE, 0.8, rng(seed), pool=1 + seed % 2, donors=heads)
    stored = pickle.dumps(drawn)
    image, classes = render(source, drawn, heads)
    for replayed in (drawn, pickle.loads(stored)):
        again = render(source, replayed, heads)
        assert torch.equal(again[0], image) and torch.equal(again[1], classes)
    assert pickle.dumps(drawn) == stored
    fresh = clustered()
    assert torch.equal(source.classes, fresh.classes) and torch.equal(source.images, fresh.images)
    assert torch.equal(heads[0].classes, donor().classes)


@pytest.mark.parametrize("seed", range(3))
def test_the_number_of_threads_changes_nothing(seed):
    source, threads = clustered(), torch.get_num_threads()
    drawn = draw(source, EVERYTHING, (40, 40, 40), 0.6, rng(seed), donors=[donor()])
    samples = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            samples.append(render(source, drawn, [donor()]))
    finally:
        torch.set_num_threads(threads)
    for image, classes in samples[1:]:
        assert torch.equal(classes, samples[0][1])
        torch.testing.assert_close(image, samples[0][0], atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("seed", range(12))
def test_the_same_draw_on_cpu_and_gpu(seed):
    """Rounding may send a voxel on a border to its neighbour, but no more."""
    source, heads, gpu = clustered(), [donor()], torch.device("cuda")
    drawn = draw(source, EVERYTHING, (48, 56, 40), 0.6, rng(seed), pool=1 + seed % 2, donors=heads)
    image, classes = render(source, drawn, heads)
    on_gpu = render(source.to(gpu), drawn, [one.to(gpu) for one in heads])
    assert {one.device.type for one in on_gpu} == {"cuda"}
    assert (on_gpu[1].cpu() == classes).float().mean() > 0.999
    difference = (on_gpu[0].cpu() - image).abs() / image.max()
    assert difference.mean() < 1e-3 and difference.median() < 1e-4


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
    source, shape = sphere(48), (32, 40, 48)
    voxel_mm = working_voxel(source, shape, 0.75)
    _, classes = render(source, draw(source, UNTOUCHED, shape, voxel_mm, rng()))
    extent = [torch.nonzero(classes)[:, a] for a in range(3)]
    assert all(abs(int(e.max() - e.min()) + 1 - 24) <= 1 for e in extent)
    np.testing.assert_allclose(centre_of((classes > 0).float()), [15.5, 19.5, 23.5], atol=0.3)


def test_voxels_need_not_be_cubes():
    source = replace(sphere(SIDE), voxel_mm=(1.0, 2.0, 0.5), extent_mm=(19.2, 38.4, 9.6))
    _, classes = render(source, draw(source, UNTOUCHED, (48, 48, 48), 1.0, rng()))
    brain = torch.nonzero(classes)
    extent = (brain.max(0).values - brain.min(0).values + 1).tolist()
    assert extent == pytest.approx([19.2, 38.4, 9.6], abs=1.7)


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


def test_only_scans_of_a_wanted_contrast_are_used():
    source = sphere(8, scan=True)
    both = replace(source, images=source.images.repeat(2, 1, 1, 1), contrasts=("T1w", "T2w"))
    wants_t2w = ContrastConfig(prior_contrasts=("T2w",))
    for contrast, expected in ((ContrastConfig(), {0, 1}), (wants_t2w, {1})):
        config = SynthesisConfig(real=1.0, contrast=contrast)
        drawn = [draw(both, config, (4, 4, 4), 0.8, rng(seed)) for seed in range(20)]
        assert {one.image for one in drawn} == expected
        assert all(one.contrast == both.contrasts[one.image] for one in drawn)
    config = SynthesisConfig(real=1.0, contrast=wants_t2w)
    assert draw(source, config, (4, 4, 4), 0.8, rng()).image == -1


def test_on_a_fixed_grid_a_brain_has_its_size():
    small = sphere(SIDE)  # a ball of 20 voxels
    large = replace(small, voxel_mm=(1.5, 1.5, 1.5), extent_mm=(28.8,) * 3)
    for source, extent in ((small, 25), (large, 37.5)):
        assert working_voxel(source, (40, 40, 40), 0.9, 0.8) == 0.8
        _, classes = render(source, draw(source, STILL, (40, 40, 40), 0.8, rng()))
        brain = torch.nonzero((classes > 0) & (classes < 6))
        sides = (brain.max(0).values - brain.min(0).values + 1).tolist()
        assert sides == pytest.approx([extent] * 3, abs=1)
    # Without a fixed voxel the brain decides: both fill the grid alike.
    assert working_voxel(large, SHAPE, 0.5) == pytest.approx(1.5 * working_voxel(small, SHAPE, 0.5))


def test_air_around_a_brain_is_certain_whatever_its_map_says():
    source = sphere(SIDE)
    drawn = still(source, (SIDE + 10,) * 3, affine=np.eye(4))
    plain, certain = (render(source, drawn, certain_air=sure)[1] for sure in (False, True))
    changed = plain != certain
    assert changed.any() and (certain[changed] == len(source.tissues) + head.SKULL).all()
    # The brain stays, and so does what lies against it.
    assert (plain[changed] == 0).all() and (certain == 0).any()
    brain = torch.nn.functional.max_pool3d((plain > 0).float()[None], 3, 1, 1)[0] > 0
    assert not (changed & brain).any()
