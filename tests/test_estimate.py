"""Priors from scans: robust within a scan, over subjects and not over scans, sides apart."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bids_synthseg.errors import InputMissing
from bids_synthseg.learning.estimate import FEWEST_VOXELS, estimate_priors, scan_statistics
from bids_synthseg.synthesis.priors import (
    CENTRE_SD_FLOOR,
    SPREAD_FLOOR,
    SPREAD_SD_FLOOR,
    priors_text,
    read_priors,
)

SHAPE = (30, 20, 20)
LABELS = np.array([0, 2, 41, 0, 24])
# A fifth of the grid each, along x: air, left and right white matter, no brain, fluid.
CLASSES = np.broadcast_to(np.arange(30)[:, None, None] // 6, SHAPE).astype(np.uint8)
GREYS = np.array([0.0, 0.3, 0.4, 0.1, 0.9])


def scan(greys: np.ndarray = GREYS, noise: float = 0.02, seed: int = 0) -> np.ndarray:
    """Greys by class, with noise but in air; its 2nd percentile is 0.1 and its 98th 0.9 or so."""
    field = np.random.default_rng(seed).standard_normal(SHAPE)
    return np.where(CLASSES > 0, greys[CLASSES] + noise * field, 0).astype(np.float32)


def one_map(subject: str = "01", dataset: str = "set", **scans: np.ndarray) -> SimpleNamespace:
    source = SimpleNamespace(
        classes=torch.from_numpy(CLASSES.copy()),
        labels=LABELS,
        contrasts=tuple(scans),
        images=torch.from_numpy(np.array([*scans.values()], dtype=np.float16)),
    )
    return SimpleNamespace(name=f"sub-{subject}", subject=subject, dataset=dataset, source=source)


def test_statistics_are_those_of_the_scaled_label():
    values = scan()
    low, high = np.percentile(values[values > 0], (2, 98))
    found = scan_statistics(values, LABELS[CLASSES], np.array([2, 24, 41]))
    np.testing.assert_allclose(
        found[0, [0, 2]], (np.array([0.3, 0.4]) - low) / (high - low), atol=3e-3
    )
    np.testing.assert_allclose(found[1, [0, 2]], 0.02 / (high - low), rtol=0.06)
    assert found[0, 1] > 0.95


def test_scale_and_a_few_wrong_voxels_do_not_matter():
    ids = np.array([2, 24, 41])
    plain = scan_statistics(scan(), LABELS[CLASSES], ids)
    np.testing.assert_allclose(
        scan_statistics(250 * scan(), LABELS[CLASSES], ids), plain, atol=1e-5
    )
    spoilt = scan()
    spoilt[8:10, :4, :10] = 5.0  # 80 of 2,400 voxels of label 2, under 1 % of the positive ones
    np.testing.assert_allclose(scan_statistics(spoilt, LABELS[CLASSES], ids), plain, atol=0.01)


def test_border_voxels_count_only_where_there_are_no_others():
    mixed = scan(noise=0)
    mixed[6] = 0.2  # the layer of label 2 that touches air
    mixed[12:18] = 0.4
    found = scan_statistics(mixed, LABELS[CLASSES], np.array([2]))
    assert found[1, 0] == 0
    thin = np.zeros(SHAPE, dtype=int)
    thin[3:5], thin[10:20] = 2, 41  # two layers of label 2: all of it is border
    mixed[3], mixed[4] = 0.3, 0.5
    found = scan_statistics(mixed, thin, np.array([2]))
    assert np.isfinite(found).all() and found[1, 0] > 0.1


def test_black_voxels_and_small_labels_tell_nothing():
    few = np.zeros(SHAPE, dtype=int)
    few[8, 4, :20] = 2
    assert FEWEST_VOXELS > 20
    few[20:, 1:] = 24
    values = scan()
    values[20:, :, :10] = 0
    found = scan_statistics(values, few, np.array([2, 24, 99]))
    assert np.isnan(found[:, [0, 2]]).all() and found[0, 1] > 0.1
    for grey in (0.0, 0.5):
        assert np.isnan(scan_statistics(np.full(SHAPE, grey), few, np.array([24]))).all()


def test_mean_and_population_sd_are_between_subjects():
    """Fluid and the lowest class fix the scale; label 2 is at 0.25, 0.25 (twice) and 0.5 of it."""
    low, high = (
        one_map("01", T2w=scan(np.array([0, 0.3, 0.4, 0.1, 0.9]), 0)),
        one_map("02", T2w=scan(np.array([0, 0.5, 0.4, 0.1, 0.9]), 0)),
    )
    found = estimate_priors([low, low, high])["T2w"]
    assert found.labels.tolist() == [2, 24, 41] and found.subjects.tolist() == [2, 2, 2]
    np.testing.assert_allclose(found.centre_mean, [0.375, 1.0, 0.375], atol=1e-3)
    np.testing.assert_allclose(
        found.centre_sd, [0.125, CENTRE_SD_FLOOR, CENTRE_SD_FLOOR], atol=1e-3
    )
    assert (found.spread_mean == SPREAD_FLOOR).all() and (found.spread_sd == SPREAD_SD_FLOOR).all()
    apart = estimate_priors([low, one_map("01", "other", T2w=low.source.images[0].numpy()), high])
    np.testing.assert_allclose(apart["T2w"].centre_mean[0], 1 / 3, atol=1e-3)


def test_contrasts_are_apart_and_a_label_may_be_absent():
    without = one_map("02", T1w=scan())
    without.source.classes[24:] = 0
    found = estimate_priors([one_map("01", T1w=scan(), T2w=1 - scan()), without, one_map("03")])
    assert list(found) == ["T1w", "T2w"]
    assert found["T1w"].subjects.tolist() == [2, 1, 2] and found["T2w"].subjects.tolist() == [1] * 3
    t1w, t2w = (found[name].of(np.array([2, 24]))[:, 0] for name in ("T1w", "T2w"))
    assert t1w[0] < t1w[1] and t2w[0] > t2w[1]


def test_the_table_can_be_written_and_read(tmp_path):
    found = estimate_priors([one_map(T1w=scan())])
    (tmp_path / "own.tsv").write_text(priors_text(found), encoding="utf-8")
    again = read_priors(tmp_path / "own.tsv")["T1w"]
    np.testing.assert_allclose(again.centre_mean, found["T1w"].centre_mean, atol=6e-5)


@pytest.mark.parametrize("maps", [[], [one_map()], [one_map(T1w=np.full(SHAPE, 0.5))]])
def test_no_scan_that_tells_anything_is_one_clear_line(maps):
    with pytest.raises(InputMissing, match=r"_T1w\.nii\.gz or .* beside") as caught:
        estimate_priors(maps)
    assert "\n" not in str(caught.value)
