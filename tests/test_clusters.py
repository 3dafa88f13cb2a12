"""Clusters: thresholds lie between what was mixed, ascend, and never ask too much of a tissue."""

import numpy as np
import pytest
import torch

from bids_synthseg.learning.clusters import SAMPLE, intensity_thresholds
from bids_synthseg.synthesis.contrast import TISSUE_OF
from bids_synthseg.synthesis.parts import MOST, PartsDraw, part_of

GREY, WHITE, CSF = TISSUE_OF["grey"], TISSUE_OF["white"], TISSUE_OF["csf"]


def mixed(*parts: tuple[float, float, int], seed: int = 0) -> np.ndarray:
    """(N, 1, 1) values of Gaussians given as mean, SD and number."""
    rng = np.random.default_rng(seed)
    values = np.concatenate([mean + sd * rng.standard_normal(n) for mean, sd, n in parts])
    return rng.permutation(values).reshape(-1, 1, 1)


def cut(values: np.ndarray, tissue: int = GREY, seed: int = 42) -> np.ndarray:
    """(MOST, MOST - 1) thresholds of one tissue."""
    return intensity_thresholds(values, np.full(values.shape, tissue), seed)[tissue]


def test_equal_neighbours_part_in_the_middle():
    found = cut(mixed((0.2, 0.03, 1000), (0.5, 0.03, 1000), (0.8, 0.03, 1000)))
    np.testing.assert_allclose(found[2, :2], [0.35, 0.65], atol=0.02)


def test_neighbours_part_where_they_are_equally_probable():
    """Weights 3 to 1, SD 0.1, means 0.3 and 0.7: at 0.5 + 0.01 log(3) / 0.4."""
    found = cut(mixed((0.3, 0.1, 3000), (0.7, 0.1, 1000)))
    assert found[1, 0] == pytest.approx(0.5 + 0.01 * np.log(3) / 0.4, abs=0.03)


def test_thresholds_ascend_and_the_rest_is_infinite():
    values = mixed((0.3, 0.1, 800), (0.6, 0.02, 500))
    table = intensity_thresholds(values, np.full(values.shape, GREY))
    assert table.shape == (5, MOST, MOST - 1) and table.dtype == np.float32
    for count in range(1, MOST + 1):
        own = table[GREY, count - 1]
        assert np.isfinite(own[: count - 1]).all() and np.isinf(own[count - 1 :]).all()
        assert (np.diff(own[: count - 1]) >= 0).all()
        assert (own[: count - 1] > values.min()).all() and (own[: count - 1] < values.max()).all()
    assert np.isinf(np.delete(table, GREY, axis=0)).all()


def test_a_tissue_has_no_more_clusters_than_greys():
    assert np.isinf(cut(np.full((10, 10, 10), 0.4))).all()
    found = cut(np.tile([0.2, 0.6], 50).reshape(-1, 1, 1))
    assert 0.2 < found[1, 0] < 0.6 and np.isinf(found[2:]).all()


def test_tissues_are_cut_each_for_itself_and_background_where_there_is_a_grey():
    shape = (3000, 1, 1)
    tissues = np.repeat([0, WHITE, CSF], 1000).reshape(shape)
    scan = np.concatenate(
        [
            np.where(np.arange(1000) < 600, 0, mixed((0.3, 0.02, 500), (0.5, 0.02, 500)).ravel()),
            mixed((0.2, 0.02, 500), (0.4, 0.02, 500)).ravel(),
            mixed((0.6, 0.02, 500), (0.9, 0.02, 500)).ravel(),
        ]
    ).reshape(shape)
    found = intensity_thresholds(scan, tissues)[:, 1, 0]
    np.testing.assert_allclose(found[[0, WHITE, CSF]], [0.4, 0.3, 0.75], atol=0.03)
    assert np.isinf(np.delete(found, [0, WHITE, CSF])).all()


def test_same_seed_same_thresholds_and_half_precision_will_do():
    values = mixed((0.3, 0.1, SAMPLE), (0.6, 0.1, SAMPLE))  # more than are looked at
    assert np.array_equal(cut(values), cut(values))
    assert not np.array_equal(cut(values), cut(values, seed=7))
    np.testing.assert_allclose(cut(values.astype(np.float16))[1, 0], cut(values)[1, 0], atol=0.02)


def test_parts_rise_with_brightness():
    values = mixed((0.2, 0.05, 500), (0.5, 0.05, 500), (0.8, 0.05, 500))
    tissues = np.full(values.shape, GREY)
    table = intensity_thresholds(values, tissues)
    nothing = np.zeros((5, MOST), dtype=np.float32)
    draw = PartsDraw(np.array([1, 1, 3, 1, 1]), nothing, nothing, 0, None)
    part = part_of(torch.from_numpy(tissues), torch.from_numpy(values).float(), table, draw).numpy()
    means = [values[part == GREY * MOST + number].mean() for number in range(3)]
    np.testing.assert_allclose(means, [0.2, 0.5, 0.8], atol=0.03)
