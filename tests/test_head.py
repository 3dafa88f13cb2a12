"""Surroundings: the brain stays as it is, shells follow each other outwards, a borrowed head lies
around the brain as around the donor's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from training_samples import sphere

from bids_synthseg.synthesis.deformation import identity_grid
from bids_synthseg.synthesis.head import (
    AIR,
    BLOB,
    BORROWED,
    CSF,
    FAT,
    INSIDE,
    MOST_BORROWED,
    N_CLASSES,
    SKIN,
    SKULL,
    Donor,
    HeadConfig,
    HeadDraw,
    donor_of,
    draw_head,
    paint_head,
)

N_MAP = 6
EVEN = np.zeros((3, 3, 3), dtype=np.float32)
BARE = HeadDraw((0.0,) * 4, EVEN, None, donor=0)
LENDS = np.array([False, False, True, True, True])
"""Which classes of `head_map` are no brain."""


def painted(draw: HeadDraw, has_csf: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(classes, distance) of the sphere with a head painted around it."""
    source = sphere(24)
    classes = paint_head(source.classes.long(), source.outside, N_MAP, has_csf, draw)
    return classes, source.outside


def head_map() -> torch.Tensor:
    """(12, 12, 12) uint8: a brain of 4^3 voxels in the middle, one voxel of class 2 around it, two
    of class 3, or 4 from the middle of the first axis on, then one of air."""
    away = (identity_grid((12,) * 3) - 5.5).abs().amax(0)
    half = torch.arange(12).view(-1, 1, 1) >= 6
    around = torch.where(half, 4, 3)
    classes = torch.where(away < 2, 1, torch.where(away < 3, 2, around))
    return torch.where(away > 5, 0, classes).to(torch.uint8)


def lend(classes: torch.Tensor, surrounding: np.ndarray = LENDS, mm: float = 2.0) -> Donor | None:
    """The donor of `head_map` or a map like it, of voxels of so many mm."""
    return donor_of(classes, surrounding, (mm,) * 3, (5.5,) * 3, (4 * mm,) * 3)


def borrowing(
    classes: torch.Tensor, donor: Donor, has_csf: bool = False, draw: HeadDraw = BARE
) -> torch.Tensor:
    """(X, Y, Z) `classes` of 1 mm with a borrowed head around a brain of 8^3 mm in the middle.

    Two voxels are as long as one of `head_map`, as the brains' boxes tell.
    """
    side = classes.shape[0]
    relative = (identity_grid((side,) * 3) - (side - 1) / 2) / 8
    return paint_head(classes, 2 * (classes == 0), N_MAP, has_csf, draw, relative, donor)


def doubled(classes: torch.Tensor) -> torch.Tensor:
    """Every voxel in two along each axis, int64."""
    for axis in range(3):
        classes = classes.repeat_interleave(2, axis)
    return classes.long()


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


def test_a_body_leaves_no_air():
    field = np.linspace(-3, 3, 27, dtype=np.float32).reshape(3, 3, 3)
    classes, distance = painted(HeadDraw((1.0, 2.0, 2.5, 3.0), EVEN, field, body=True))
    around = classes[distance > 3]
    assert set(around.unique().tolist()) == {N_MAP + BLOB, N_MAP + BLOB + 1, N_MAP + BLOB + 2}


@pytest.mark.parametrize("mm", [0.5, 2.0, 3.0])
def test_a_borrowed_head_is_the_donors_at_the_size_of_the_brain(mm):
    brain = doubled(head_map()) == 1
    result = borrowing(brain.long(), lend(head_map(), mm=mm))
    painted_as = torch.tensor([0, 1, *(N_MAP + BORROWED + n for n in range(3))])
    assert torch.equal(result, painted_as[doubled(head_map())])


def test_boxes_fit_axis_by_axis():
    donor = Donor(head_map(), lend(head_map()).kinds, (2, 1, 4), (5.5,) * 3, (8, 4, 16))
    brain = (doubled(head_map()) == 1).long()
    assert torch.equal(borrowing(brain, donor), borrowing(brain, lend(head_map())))


@pytest.mark.parametrize(("has_csf", "filling"), [(False, CSF), (True, SKULL)])
def test_what_the_donors_brain_leaves_is_filled(has_csf, filling):
    brain = doubled(head_map()) == 1
    smaller = brain.clone()
    smaller[8:10] = False
    result = borrowing(smaller.long(), lend(head_map()), has_csf)
    gap = brain & ~smaller
    assert gap.sum() == 2 * 8 * 8 and (result[gap] == N_MAP + filling).all()
    assert (result[smaller] == 1).all()
    whole = borrowing(brain.long(), lend(head_map()), has_csf)
    assert torch.equal(result[~gap], whole[~gap])


def test_a_larger_brain_stays_whole():
    larger = (doubled(head_map()) > 0).long()
    assert torch.equal(borrowing(larger, lend(head_map())), larger)


def test_fluid_lies_between_brain_and_bone_where_asked():
    brain = doubled(head_map()) == 1
    relative = (identity_grid((24,) * 3) - 11.5) / 8
    outside = ((identity_grid((24,) * 3) - 11.5).abs().amax(0) - 3.5).clamp(min=0)
    draw = replace(BARE, edges=(1.0,) * 4)
    result = paint_head(brain.long(), outside, N_MAP, False, draw, relative, lend(head_map()))
    assert (result[outside == 1] == N_MAP + CSF).all()
    assert (result[outside == 2] == N_MAP + BORROWED).all()
    own_fluid = paint_head(brain.long(), outside, N_MAP, True, draw, relative, lend(head_map()))
    assert (own_fluid[outside == 1] == N_MAP + BORROWED).all()


def test_beyond_the_donors_volume_is_air():
    wide = torch.nn.functional.pad((doubled(head_map()) == 1).long(), (5,) * 6)
    donor = lend(head_map().clamp(min=2))  # its head reaches its border
    assert (donor.classes > 0).all()
    result = borrowing(wide, donor)
    core = torch.zeros_like(wide, dtype=torch.bool)
    core[5:-5, 5:-5, 5:-5] = True
    assert not result[~core].any() and result[core].all()


@pytest.mark.parametrize("seed", range(4))
def test_a_borrowed_head_leaves_any_brain_alone(seed):
    rng = np.random.default_rng(seed)
    draw = draw_head(HeadConfig(shells=0, csf_only=0, borrowed=1, blobs=1), rng, n_donors=1)
    brain = torch.from_numpy(rng.integers(-2, N_MAP, (24, 24, 24))).clamp(min=0)
    result = borrowing(brain, lend(head_map()), bool(seed % 2), draw)
    assert torch.equal(result[brain > 0], brain[brain > 0])
    new = result[brain == 0]
    assert ((new == 0) | (new >= N_MAP)).all() and new.max() < N_MAP + N_CLASSES
    assert (new >= N_MAP + BORROWED).any()


def test_without_a_donor_nothing_is_borrowed():
    brain = (doubled(head_map()) == 1).long()
    assert torch.equal(borrowing(brain, None), brain)


def test_a_donor_tells_brain_air_and_the_classes_of_its_head():
    classes = head_map()
    donor = lend(classes)
    assert donor.kinds.tolist() == [AIR, INSIDE, 1, 2, 3]
    assert donor.classes is classes, "a volume as large as the map's is held twice"
    assert donor.to(torch.device("meta")).classes.device.type == "meta"


def test_absent_classes_are_not_lent():
    more = np.append(LENDS, [True, True])
    classes = head_map()
    classes[classes == 2] = 6
    assert lend(classes, more).kinds.tolist() == [AIR, INSIDE, INSIDE, 1, 2, INSIDE, 3]


def test_too_many_classes_share():
    classes = torch.arange(12**3).view(12, 12, 12) % 32
    donor = lend(classes.to(torch.uint8), np.arange(32) > 1)
    assert donor.kinds[2:].min() == 1 and donor.kinds.max() == MOST_BORROWED


def with_little_head() -> torch.Tensor:
    """A head a quarter as large as the brain's 4^3 voxels, in three classes."""
    classes = (head_map() == 1).to(torch.uint8)
    classes[0, 0, :12] = torch.tensor([2, 3, 4] * 4)
    classes[0, 1, :4] = 2
    return classes


@pytest.mark.parametrize(
    ("classes", "surrounding"),
    [
        (head_map(), np.zeros(5, dtype=bool)),  # all of it is brain
        (head_map().clamp(max=3), LENDS),  # two classes only
        ((head_map() == 1).to(torch.uint8), LENDS),  # a bare brain
        (with_little_head(), LENDS),
    ],
)
def test_a_map_with_too_little_of_a_head_lends_none(classes, surrounding):
    assert lend(classes, surrounding) is None


def test_heads_are_borrowed_as_often_as_asked():
    config = HeadConfig(shells=0.3, csf_only=0.2, borrowed=0.4)
    draws = [draw_head(config, np.random.default_rng(seed), 3) for seed in range(600)]
    donors = np.array([draw.donor for draw in draws])
    assert set(donors) == {-1, 0, 1, 2}
    # Three standard errors of 600 draws.
    assert np.mean(donors >= 0) == pytest.approx(0.4, abs=0.06)
    shells = np.array([draw.edges[SKIN] > draw.edges[CSF] for draw in draws])
    assert shells.mean() == pytest.approx(0.3, abs=0.06) and not (shells & (donors >= 0)).any()
    bare = np.array([draw.edges[SKIN] == 0 for draw in draws])
    assert bare.mean() == pytest.approx(0.1, abs=0.04)


def test_without_donors_shells_take_their_place():
    config = HeadConfig(shells=0, csf_only=0, borrowed=1)
    draws = [draw_head(config, np.random.default_rng(seed)) for seed in range(5)]
    assert {draw.donor for draw in draws} == {-1}
    assert all(draw.edges[SKULL] > draw.edges[CSF] > 0 for draw in draws)


@pytest.mark.parametrize("seed", range(3))
def test_donors_change_nothing_where_none_is_wanted(seed):
    first, second = (draw_head(HeadConfig(), np.random.default_rng(seed), n) for n in (0, 5))
    assert first.edges == second.edges and second.donor == -1
    assert np.array_equal(first.unevenness, second.unevenness)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shells": 0.8, "csf_only": 0.3},
        {"shells": 0.5, "csf_only": 0.3, "borrowed": 0.3},
        {"borrowed": -0.1},
        {"blobs": 1.5},
    ],
)
def test_more_than_certain_is_refused(wrong):
    with pytest.raises(ValueError, match="shells, csf_only, borrowed"):
        HeadConfig(**wrong)
