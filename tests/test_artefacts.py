"""Artefacts: none is the same image, each does what its draw says and no more."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bids_synthseg.synthesis.acquisition import blur
from bids_synthseg.synthesis.artefacts import (
    ArtefactConfig,
    ArtefactDraw,
    Halo,
    Misplacement,
    Slab,
    Spots,
    Voids,
    apply_artefacts,
    draw_artefacts,
)

SHAPE = (14, 18, 16)
NONE = ArtefactDraw(None, None, None, None, None)
ALL = ArtefactConfig(misplaced=1, voids=1, halo=1, structured=1, blurred=1, slab=1)
NAMES = {"blurred": "spots"}
ONES = np.ones((2, 2, 2), dtype=np.float32)


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) + 0.1


@pytest.fixture
def distance() -> torch.Tensor:
    """A brain of five layers at the start of the first axis."""
    return (torch.arange(14.0) - 4).clamp(min=0).view(-1, 1, 1).expand(SHAPE)


def place(axis: int, layers: list[int], pose: tuple[float, float, float], weight: float = 1.0):
    poses = np.array([pose] * len(layers), dtype=np.float32)
    return replace(NONE, misplaced=Misplacement(axis, np.array(layers), poses, weight))


def test_nothing_drawn_is_the_same_image(image, distance):
    assert apply_artefacts(image, distance, NONE) is image
    for seed in range(5):
        assert draw_artefacts(ArtefactConfig(), SHAPE, np.random.default_rng(seed)) == NONE


@pytest.mark.parametrize(
    ("strength", "effect"),
    [
        ({"shift_max": 0, "turn_max_deg": 0}, "misplaced"),
        ({"loss_max": 0}, "voids"),
        ({"structured_max": 0}, "structured"),
        ({"blur_max": 0}, "blurred"),
    ],
)
def test_no_strength_is_the_same_image(image, distance, strength, effect):
    drawn = draw_artefacts(
        ArtefactConfig(**{effect: 1.0}, **strength), SHAPE, np.random.default_rng(3)
    )
    name = NAMES.get(effect, effect)
    assert getattr(drawn, name) is not None
    assert torch.equal(apply_artefacts(image, distance, drawn), image)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_move_by_their_shift_and_no_other(image, distance, axis):
    layers = [2, 3, 9]
    moved = apply_artefacts(image, distance, place(axis, layers, (2.0, -3.0, 0.0)))
    before, after = image.movedim(axis, 0), moved.movedim(axis, 0)
    others = [n for n in range(SHAPE[axis]) if n not in layers]
    assert torch.equal(after[others], before[others])
    torch.testing.assert_close(after[layers][:, 2:, :-3], before[layers][:, :-2, 3:])
    assert after[layers][:, :2].max() < 1e-5 and after[layers][:, :, -3:].max() < 1e-5


def test_quarter_turn_by_hand(distance):
    image = torch.rand((4, 9, 9), generator=torch.Generator().manual_seed(2))
    turned = apply_artefacts(image, distance[:4, :9, :9], place(0, [1], (0, 0, np.pi / 2)))
    # A voxel at (r, c) from the middle takes the value at (c, -r).
    torch.testing.assert_close(turned[1], torch.rot90(image[1]), atol=1e-5, rtol=0)


def test_turn_keeps_distances_in_slices_that_are_not_square(distance):
    image = torch.zeros(3, 21, 41)
    image[1, 18, 20] = 1.0  # 8 voxels from the middle
    turned = apply_artefacts(image, distance[:3], place(0, [1], (0, 0, np.pi / 2)))[1]
    assert divmod(int(turned.argmax()), 41) in ((10, 12), (10, 28))
    assert turned.max().item() == pytest.approx(1, abs=1e-4)


def test_weight_mixes_the_misplaced_with_the_right_slice(image, distance):
    whole = apply_artefacts(image, distance, place(2, [5], (1.0, 1.5, 0.1)))
    part = apply_artefacts(image, distance, place(2, [5], (1.0, 1.5, 0.1), weight=0.25))
    torch.testing.assert_close(part, 0.75 * image + 0.25 * whole)


def test_voids_by_hand(image, distance):
    losses = np.zeros(SHAPE[1], dtype=np.float32)
    losses[[4, 7]] = 0.5, 1.0
    dark = apply_artefacts(image, distance, replace(NONE, voids=Voids(1, losses, ONES)))
    expected = image.clone()
    expected[:, 4] *= 0.5
    expected[:, 7] = 0
    torch.testing.assert_close(dark, expected)


@pytest.mark.parametrize(
    ("edge", "fade", "kept"),
    [
        (3.0, 0.0, [1, 1, 0.5, 0, 0]),
        (0.0, 0.0, [0, 0, 0, 0, 0]),
        (3.0, 4.0, [1, 0.75, 0.5, 0.25, 0]),
        (-9.0, 1.0, [0, 0, 0, 0, 0]),
    ],
)
def test_halo_by_hand(image, distance, edge, fade, kept):
    drawn = replace(NONE, halo=Halo(edge, fade, 0 * ONES))
    masked = apply_artefacts(image, distance, drawn)
    assert torch.equal(masked[:5], image[:5]), "the brain itself is never cut"
    # Layers 5 to 9 are 1 to 5 units away.
    expected = torch.tensor(kept).view(-1, 1, 1) * image[5:10]
    torch.testing.assert_close(masked[5:10], expected)
    assert not masked[11:].any()


def test_uneven_halo_is_wider_where_the_field_is(image, distance):
    uneven = 0 * ONES
    uneven[:, 1] = 6.0
    kept = apply_artefacts(image, distance, replace(NONE, halo=Halo(1.5, 0.0, uneven))) > 0
    assert kept[:, 0].sum() == 6 * SHAPE[2] and kept[:, -1].sum() == 12 * SHAPE[2]


@pytest.mark.parametrize(
    ("margins", "kept"),
    # The brain is layers 0 to 4 of 14, five long.
    [((0.0, 0.4), 7), ((0.5, 0.0), 5), ((0.0, -0.2), 4), ((9.0, 9.0), 14)],
)
def test_slab_by_hand(image, distance, margins, kept):
    result = apply_artefacts(image, distance, replace(NONE, slab=Slab(0, margins)))
    assert torch.equal(result[:kept], image[:kept]) and not result[kept:].any()


def test_a_slab_of_no_brain_is_all_there_is(image, distance):
    drawn = replace(NONE, slab=Slab(1, (0.0, 0.0)))
    assert torch.equal(apply_artefacts(image, distance + 1, drawn), image)


def test_structure_changes_the_brain_alone(image, distance):
    drawn = replace(NONE, structured=np.float32(0.3) * ONES)
    changed = apply_artefacts(image, distance, drawn)
    torch.testing.assert_close(changed[:5], 1.3 * image[:5])
    assert torch.equal(changed[5:], image[5:])
    assert not apply_artefacts(image, distance, replace(NONE, structured=-2 * ONES))[:5].any()


def test_spots_are_blurred_and_the_rest_is_not(image, distance):
    field = -ONES
    field[1] = 3.0
    spotted = apply_artefacts(image, distance, replace(NONE, spots=Spots(1.2, field)))
    # From -1 to 3 along the 14 layers: above 0 from layer 3.25 on, above 1 from 6.5 on.
    assert torch.equal(spotted[:4], image[:4])
    torch.testing.assert_close(spotted[7:], blur(image, (1.2, 1.2, 1.2))[7:])


@pytest.mark.parametrize("seed", range(4))
def test_nothing_moves_beyond_the_configuration(seed):
    config = replace(ALL, shift_max=2.0, turn_max_deg=5.0, loss_max=0.6, halo_max=9.0)
    rng = np.random.default_rng(seed)
    for _ in range(20):
        drawn = draw_artefacts(config, SHAPE, rng)
        moved, voids, halo = drawn.misplaced, drawn.voids, drawn.halo
        assert np.abs(moved.poses[:, :2]).max() <= 2
        assert 0 < np.abs(moved.poses[:, 2]).max() <= np.deg2rad(5) + 1e-6
        assert 0 < len(moved.places) < SHAPE[moved.axis] and 0.3 <= moved.weight <= 1
        assert voids.losses.shape == (SHAPE[voids.axis],) and voids.losses.max() <= 0.6
        assert voids.share.min() >= 0 and voids.share.max() <= 1
        assert halo.edge == 0 or 3 <= halo.edge <= 9
        assert drawn.spots.sigma <= config.blur_max


def test_moved_point_stays_within_its_shift(distance):
    config = ArtefactConfig(misplaced=1.0, shift_max=2.0, turn_max_deg=0.0)
    point = torch.zeros(SHAPE)
    point[7, 9, 8] = 1.0
    for seed in range(30):
        moved = apply_artefacts(
            point, 0 * distance, draw_artefacts(config, SHAPE, np.random.default_rng(seed))
        )
        reached = moved.nonzero() - torch.tensor([7, 9, 8])
        assert reached.abs().max() <= 2


def test_image_and_draw_are_left_alone_and_a_draw_can_be_replayed(image, distance):
    before = image.clone()
    drawn, again = (draw_artefacts(ALL, SHAPE, np.random.default_rng(8)) for _ in range(2))
    first = apply_artefacts(image, distance, drawn)
    assert first.shape == image.shape and first.isfinite().all() and first.min() >= 0
    assert (first - image).abs().mean() > 0.01
    assert torch.equal(first, apply_artefacts(image, distance, again))
    assert torch.equal(image, before)


@pytest.mark.parametrize("effect", ["misplaced", "voids", "halo", "structured", "blurred"])
def test_probability_is_that_of_each_effect(effect):
    config, rng = ArtefactConfig(**{effect: 0.3}), np.random.default_rng(4)
    drawn = [draw_artefacts(config, SHAPE, rng) for _ in range(300)]
    name = NAMES.get(effect, effect)
    share = np.mean([getattr(d, name) is not None for d in drawn])
    assert share == pytest.approx(0.3, abs=0.08)
    assert all(replace(d, **{name: None}) == NONE for d in drawn)


@pytest.mark.parametrize("wrong", [{"halo": 1.5}, {"voids": -0.1}, {"shift_max": -1.0}])
def test_impossible_ranges_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ArtefactConfig(**wrong)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_gives_the_same_image(image, distance):
    drawn = draw_artefacts(ALL, SHAPE, np.random.default_rng(8))
    there = apply_artefacts(image.cuda(), distance.cuda(), drawn).cpu()
    torch.testing.assert_close(there, apply_artefacts(image, distance, drawn), atol=1e-4, rtol=0)
