"""Surroundings: the brain stays as it is, shells follow each other outwards."""

import numpy as np
import pytest
import torch
from training_samples import sphere

from bids_synthseg.synthesis.head import (
    BLOB,
    CSF,
    FAT,
    N_CLASSES,
    SKIN,
    SKULL,
    HeadConfig,
    HeadDraw,
    draw_head,
    paint_head,
)

N_MAP = 6
EVEN = np.zeros((3, 3, 3), dtype=np.float32)


def painted(draw: HeadDraw, has_csf: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(classes, distance) of the sphere with a head painted around it."""
    source = sphere(24)
    classes = paint_head(source.classes.long(), source.outside, N_MAP, has_csf, draw)
    return classes, source.outside


@pytest.mark.parametrize("has_csf", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_brain_is_never_touched(seed, has_csf):
    config = HeadConfig(shells=0.7, csf_only=0.3, blobs=1)
    classes, _ = painted(draw_head(config, np.random.default_rng(seed)), has_csf)
    brain = sphere(24).classes > 0
    assert torch.equal(classes[brain], sphere(24).classes[brain].long())
    assert (classes[~brain] != 0).any(), "nothing was painted"
    assert ((classes[~brain] == 0) | (classes[~brain] >= N_MAP)).all()
    assert classes.max() < N_MAP + N_CLASSES


def test_zero_probabilities_paint_nothing():
    for seed in range(5):
        draw = draw_head(HeadConfig(shells=0, csf_only=0, blobs=0), np.random.default_rng(seed))
        assert torch.equal(painted(draw)[0], sphere(24).classes.long())


def test_even_shells_are_intervals_of_distance():
    classes, distance = painted(HeadDraw((2.0, 4.0, 5.0, 7.0), EVEN, None))
    background = sphere(24).classes == 0
    for number, shell in ((1, CSF), (2, CSF), (3, SKULL), (4, SKULL), (5, FAT), (6, SKIN)):
        assert (classes[background & (distance == number)] == N_MAP + shell).all()
    assert (classes[distance >= 8] == 0).all() and (distance >= 8).any()


def test_a_map_with_csf_starts_with_the_skull():
    classes, distance = painted(HeadDraw((2.0, 4.0, 5.0, 7.0), EVEN, None), has_csf=True)
    background = sphere(24).classes == 0
    assert not (classes == N_MAP + CSF).any()
    assert (classes[background & (distance == 1)] == N_MAP + SKULL).all()
    assert (classes[background & (distance == 3)] == N_MAP + FAT).all()


@pytest.mark.parametrize("seed", range(5))
def test_uneven_shells_are_nested(seed):
    draw = draw_head(HeadConfig(shells=1, csf_only=0, blobs=0), np.random.default_rng(seed))
    assert list(draw.edges) == sorted(draw.edges)
    classes, distance = painted(HeadDraw(draw.edges, draw.unevenness[:3, :3, :3] * 0.2, None))
    means = [distance[classes == N_MAP + s].float().mean() for s in range(BLOB)]
    means = [float(mean) for mean in means if not torch.isnan(mean)]
    assert means == sorted(means) and len(means) >= 2


def test_csf_only_paints_csf_only():
    draw = draw_head(HeadConfig(shells=0, csf_only=1, blobs=0), np.random.default_rng(0))
    assert set(painted(draw)[0].unique().tolist()) - set(range(N_MAP)) == {N_MAP + CSF}


def test_blobs_lie_outside_the_head_in_levels():
    field = np.linspace(-2, 2, 27, dtype=np.float32).reshape(3, 3, 3)
    classes, distance = painted(HeadDraw((1.0, 2.0, 2.5, 3.0), EVEN, field))
    blobs = classes >= N_MAP + BLOB
    assert blobs.any() and distance[blobs].min() > 5
    rising = [float((classes == N_MAP + BLOB + n).float().argmax()) for n in range(3)]
    assert len(set(rising)) == 3


def test_more_than_certain_is_refused():
    with pytest.raises(ValueError, match="shells and csf_only"):
        HeadConfig(shells=0.8, csf_only=0.3)
