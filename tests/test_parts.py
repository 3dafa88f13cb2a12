"""Parts: a tissue is cut where its thresholds are, and only a tissue that has parts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bids_synthseg.synthesis.contrast import TISSUE_OF, ContrastConfig
from bids_synthseg.synthesis.parts import MOST, PartsConfig, PartsDraw, draw_parts, part_of

BACKGROUND, CSF, GREY, WHITE, OTHER = TISSUE_OF.values()


def drawn(seed: int = 0, n_images: int = 1, **config) -> PartsDraw:
    settings = PartsConfig(**{"probability": 1.0, **config})
    found = draw_parts(settings, ContrastConfig(), n_images, np.random.default_rng(seed))
    assert found is not None
    return found


def with_counts(*counts: int, n_images: int = 1) -> PartsDraw:
    return replace(drawn(n_images=n_images), counts=np.array(counts))


def thresholds(**cuts: tuple[float, ...]) -> np.ndarray:
    """No thresholds but those of tissues by name."""
    table = np.full((5, MOST, MOST - 1), np.inf, dtype=np.float32)
    for name, values in cuts.items():
        table[TISSUE_OF[name], len(values), : len(values)] = values
    return table


def line(*values: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype).reshape(1, 1, -1)


def test_the_part_is_the_number_of_thresholds_below():
    table = thresholds(grey=(0.25, 0.5), white=(0.75,))
    tissue = line(GREY, GREY, GREY, GREY, GREY, WHITE, WHITE, OTHER, dtype=torch.int64)
    scan = line(0.0, 0.25, 0.375, 0.5, 1.0, 0.625, 0.875, 0.4)
    found = part_of(tissue, scan, table, with_counts(0, 1, 3, 2, 1))
    wanted = [18, 18, 19, 19, 20, 27, 28, 36]
    assert found.dtype == torch.int64 and found.flatten().tolist() == wanted


def test_it_agrees_with_counting():
    rng = np.random.default_rng(0)
    table = np.sort(rng.uniform(0, 1, (5, MOST, MOST - 1)).astype(np.float32), axis=2)
    table[np.arange(MOST - 1) >= np.arange(MOST)[:, None] + np.zeros((5, 1, 1), int)] = np.inf
    draw = with_counts(4, 9, 1, 5, 2)
    tissue, scan = rng.integers(0, 5, (6, 7, 8)), rng.uniform(0.01, 1, (6, 7, 8)).astype(np.float32)
    cuts = table[tissue, draw.counts[tissue] - 1]
    wanted = tissue * MOST + (cuts < scan[..., None]).sum(axis=-1)
    found = part_of(torch.from_numpy(tissue), torch.from_numpy(scan), table, draw)
    assert np.array_equal(found.numpy(), wanted)


def test_background_has_parts_where_the_scan_has_a_grey():
    table = thresholds(background=(0.5,))
    scan = line(0.0, 0.1, 0.9)
    tissue = torch.zeros((1, 1, 3), dtype=torch.int64)
    assert part_of(tissue, scan, table, with_counts(2, 1, 1, 1, 1)).flatten().tolist() == [-1, 0, 1]
    assert part_of(tissue, scan, table, with_counts(0, 1, 1, 1, 1)).flatten().tolist() == [-1] * 3


@pytest.mark.parametrize("tissue", TISSUE_OF.values())
def test_a_tissue_without_parts_keeps_its_classes(tissue):
    counts = [2] * 5
    counts[tissue] = 0
    where = torch.full((4, 5, 6), tissue)
    for scan, table, n_images in ((torch.rand(4, 5, 6), thresholds(), 1), (None, None, 0)):
        assert (part_of(where, scan, table, with_counts(*counts, n_images=n_images)) == -1).all()


def test_a_tissue_that_the_scan_could_not_cut_is_one_part():
    where = torch.full((3, 3, 3), GREY)
    assert (part_of(where, torch.rand(3, 3, 3), thresholds(), with_counts(*[9] * 5)) == 18).all()


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_parts_in_space_take_about_equal_shares_and_hang_together(count):
    shape = (40, 44, 36)
    where = torch.full(shape, WHITE)
    shares, borders = np.zeros(count), []
    for seed in range(12):
        draw = replace(drawn(seed, n_images=0), counts=np.array([0, 1, 1, count, 1]))
        part = part_of(where, None, None, draw) - WHITE * MOST
        assert part.min() >= 0 and part.max() < count
        shares += np.bincount(part.flatten().numpy(), minlength=count) / part.numel() / 12
        borders.append(float((part.diff(dim=0) != 0).float().mean()))
    assert shares.min() > 0.5 / count and shares.max() < 1.6 / count
    assert np.mean(borders) < 0.5 * (1 - 1 / count) + 1e-9  # at random it would be 1 - 1 / count


def test_without_a_scan_the_surroundings_are_left_alone():
    for seed in range(20):
        draw = drawn(seed, n_images=0, clusters_min=2)
        assert draw.image == -1 and draw.field is not None and draw.counts[BACKGROUND] == 0
        part = part_of(torch.zeros((4, 4, 4), dtype=torch.int64), None, None, draw)
        assert (part == -1).all()


def test_draws_are_in_range_and_use_every_scan():
    config = ContrastConfig(mean_min=0.1, mean_max=0.9, spread_min=0.02, spread_max=0.1)
    rng = np.random.default_rng(0)
    many = [draw_parts(PartsConfig(1, clusters_max=9), config, 3, rng) for _ in range(200)]
    counts = np.stack([one.counts for one in many])
    assert {*counts.flatten().tolist()} == set(range(1, 10))
    assert {one.image for one in many} == {0, 1, 2} and all(one.field is None for one in many)
    means, spreads = (
        np.stack([getattr(one, name) for one in many]) for name in ("means", "spreads")
    )
    assert means.shape == (200, 5, MOST) and means.dtype == spreads.dtype == np.float32
    assert means.min() >= 0.1 and means.max() <= 0.9
    assert spreads.min() >= 0.02 and spreads.max() <= np.float32(0.1)


@pytest.mark.parametrize(("tissues", "surroundings"), [(0, 1), (1, 0), (0, 0), (1, 1)])
def test_brain_and_surroundings_are_told_apart(tissues, surroundings):
    counts = drawn(
        tissues=tissues, surroundings=surroundings, clusters_min=4, clusters_max=4
    ).counts
    assert counts.tolist() == [4 * surroundings] + [4 * tissues] * 4


def test_probability_is_how_often():
    rng = np.random.default_rng(0)
    many = [draw_parts(PartsConfig(0.3), ContrastConfig(), 1, rng) for _ in range(400)]
    assert np.mean([one is not None for one in many]) == pytest.approx(0.3, abs=0.07)
    assert all(draw_parts(PartsConfig(), ContrastConfig(), 1, rng) is None for _ in range(20))


def test_same_seed_same_parts():
    first, again = drawn(5, n_images=0), drawn(5, n_images=0)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(vars(first).values(), vars(again).values(), strict=True)
    )
    where = torch.full((8, 8, 8), GREY)
    assert torch.equal(part_of(where, None, None, first), part_of(where, None, None, again))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_the_same_parts():
    tissue, scan = torch.randint(0, 5, (30, 30, 30)), torch.rand(30, 30, 30)
    table = thresholds(grey=(0.25, 0.5), white=(0.75,))
    draw = with_counts(1, 1, 3, 2, 1)
    there = part_of(tissue.cuda(), scan.cuda(), table, draw)
    assert torch.equal(there.cpu(), part_of(tissue, scan, table, draw))


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"probability": 1.5}, "probability"),
        ({"tissues": -1}, "tissues"),
        ({"clusters_min": 0}, "clusters_min"),
        ({"clusters_min": 4, "clusters_max": 3}, "clusters_min"),
        ({"clusters_max": 10}, "clusters_max"),
    ],
)
def test_a_setting_out_of_range_is_refused(config, complaint):
    with pytest.raises(ValueError, match=complaint):
        PartsConfig(**config)
