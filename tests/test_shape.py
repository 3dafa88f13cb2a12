"""Shape: borders move as far as drawn, into the tissue that may yield, and nowhere else."""

import numpy as np
import pytest
import torch

from bids_synthseg.synthesis.shape import (
    ROLE_OF,
    ShapeConfig,
    ShapeDraw,
    draw_shape,
    reshape_tissue,
)

# Background, ventricles, white matter, cortex by side, then deep grey matter and CSF.
BACKGROUND, V_LEFT, V_RIGHT, W_LEFT, W_RIGHT, C_LEFT, C_RIGHT, DEEP, FLUID = range(9)
_NAMES = ("other", "ventricle", "ventricle", "white", "white", "cortex", "cortex", "other", "csf")
ROLES = np.array([ROLE_OF[name] for name in _NAMES], dtype=np.int8)
EVERYWHERE = np.ones((2, 2, 2, 2), dtype=np.float32)
NONE = ShapeDraw(0.0, 0.0, EVERYWHERE)


def line(text: str) -> torch.Tensor:
    """(n, 5, 5) classes that change along the first axis alone, one digit per voxel."""
    return torch.tensor([int(c) for c in text]).view(-1, 1, 1).expand(-1, 5, 5).contiguous()


def text(classes: torch.Tensor) -> str:
    assert (classes == classes[:, :1, :1]).all()
    return "".join(str(int(c)) for c in classes[:, 0, 0])


# fluid, cortex, white, ventricle of the left, then of the right.
BRAIN = "088555333331122444446660"


@pytest.mark.parametrize(
    ("ventricles", "cortex", "expected"),
    [
        (0, 0, "088555333331122444446660"),
        (1.0, 0, "088555333311122244446660"),
        (2.9, 0, "088555333111122224446660"),
        (3.0, 0, "088555331111122222446660"),
        (9.0, 0, "088555111111122222226660"),
        (0, 1.5, "088555533331122444466660"),
        (0, 2.0, "088555553331122444666660"),
        (0, -1.0, "088553333331122444444660"),
        (0, -9.0, "088533333331122444444460"),
        (1.0, 1.0, "088555533311122244466660"),
    ],
)
def test_borders_move_as_drawn(ventricles, cortex, expected):
    drawn = ShapeDraw(ventricles, cortex, EVERYWHERE)
    assert text(reshape_tissue(line(BRAIN), ROLES, drawn)) == expected


def test_growth_stops_at_what_is_not_white_matter():
    grown = reshape_tissue(line("0337113300"), ROLES, ShapeDraw(3.0, 0.0, EVERYWHERE))
    assert text(grown) == "0337111100"


def test_nothing_drawn_is_the_same_map():
    brain = line(BRAIN)
    assert reshape_tissue(brain, ROLES, NONE) is brain
    assert (
        reshape_tissue(brain, ROLES, draw_shape(ShapeConfig(), np.random.default_rng(1))) is brain
    )


@pytest.mark.parametrize("missing", ["ventricle", "white"])
def test_maps_without_a_role_stay_as_they_are(missing):
    roles = np.where(np.isin(ROLES, ROLE_OF[missing]), 0, ROLES)
    brain = line(BRAIN)
    assert reshape_tissue(brain, roles, ShapeDraw(3.0, 0.0, EVERYWHERE)) is brain


def test_role_that_a_map_knows_but_does_not_show_is_no_fault():
    brain = line("0553333550")
    assert text(reshape_tissue(brain, ROLES, ShapeDraw(3.0, 0.0, EVERYWHERE))) == "0553333550"


def test_ball_grows_to_a_ball():
    x, y, z = np.meshgrid(*[np.arange(31) - 15.0] * 3, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    classes = torch.from_numpy(np.where(radius <= 5, V_LEFT, W_LEFT))
    grown = reshape_tissue(classes, ROLES, ShapeDraw(3.0, 0.0, EVERYWHERE)).numpy() == V_LEFT
    assert grown[radius <= 6.5].all() and not grown[radius > 9].any()
    counted, exact = grown.sum(), (radius <= 8).sum()
    assert 0.8 < counted / exact < 1.2


def test_uneven_growth_is_less_where_the_share_is_small():
    classes = line("3" * 8 + "11" + "3" * 8)
    uneven = EVERYWHERE.copy()
    uneven[0, 0] = 0.0  # none at the start of the line, all at its end
    grown = text(reshape_tissue(classes, ROLES, ShapeDraw(4.0, 0.0, uneven)))
    # At voxel 7 the share is 7 / 17 of 4 voxels, so one step; at 12 it is 12 / 17 of 4.
    assert grown == "3333333" + "1" + "11" + "11" + "3" * 6


def test_draws_follow_the_configuration():
    config = ShapeConfig(ventricles=0.7, cortex=0.4, radius_max=4.0, cortex_max=1.5)
    rng = np.random.default_rng(2)
    drawn = [draw_shape(config, rng) for _ in range(400)]
    ventricles, cortex = (
        np.array([getattr(d, n) for d in drawn]) for n in ("ventricles", "cortex")
    )
    # Three standard errors.
    assert np.mean(ventricles > 0) == pytest.approx(0.7, abs=0.07)
    assert np.mean(cortex != 0) == pytest.approx(0.4, abs=0.075)
    assert np.mean(cortex[cortex != 0] > 0) == pytest.approx(0.5, abs=0.12)
    assert ventricles[ventricles > 0].min() >= 1 and 3.8 < ventricles.max() <= 4
    assert np.abs(cortex[cortex != 0]).min() >= 1 and np.abs(cortex).max() <= 1.5
    assert all(d.unevenness.min() >= 0.2 and d.unevenness.max() <= 1 for d in drawn)
    again = draw_shape(config, np.random.default_rng(2))
    assert again.ventricles == drawn[0].ventricles
    np.testing.assert_array_equal(again.unevenness, drawn[0].unevenness)


@pytest.mark.parametrize("wrong", [{"ventricles": 1.5}, {"cortex": -0.1}, {"radius_max": 0.5}])
def test_impossible_ranges_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ShapeConfig(**wrong)
