"""Heads: probabilities by hand, sets by side, mirroring consistent by construction."""

import numpy as np
import pytest
import torch

from bids_synthseg.anatomy.labels import Label, LabelTable
from bids_synthseg.models.heads import Head

TABLE = LabelTable(
    (
        Label(0, "Background", "BG", "#000000", 0, "background", "midline", 0, 0),
        Label(2, "Left-White", "LW", "#000000", 2, "white", "left", 41, 2),
        Label(24, "CSF", "CSF", "#000000", 3, "csf", "midline", 24, 24),
        Label(41, "Right-White", "RW", "#000000", 2, "white", "right", 2, 41),
    )
)
BG, LEFT, CSF, RIGHT = range(4)


def logits_of(structures: list[float], left: float) -> torch.Tensor:
    """(1, n, 1, 1, 1) logits with these probabilities."""
    values = [float(np.log(p)) for p in structures] + [float(np.log(left / (1 - left)))]
    return torch.tensor(values).view(1, -1, 1, 1, 1)


def test_sided_probabilities_by_hand():
    head = Head(TABLE)
    assert head.n_channels == 4  # background, white, csf, side
    found = head.probabilities(logits_of([0.2, 0.7, 0.1], left=0.6)).flatten()
    torch.testing.assert_close(found, torch.tensor([0.2, 0.42, 0.1, 0.28]))


def test_joint_probabilities_are_a_softmax():
    head = Head(TABLE, "joint")
    assert head.n_channels == 4
    logits = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1, 1)
    torch.testing.assert_close(head.probabilities(logits), logits.softmax(1))


@pytest.mark.parametrize("kind", ["sided", "joint"])
def test_probabilities_of_the_shipped_table_sum_to_one(kind):
    head = Head(LabelTable.default(), kind)
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn((2, head.n_channels, 3, 4, 5), generator=generator)
    found = head.probabilities(logits)
    assert found.shape == (2, len(LabelTable.default()), 3, 4, 5) and found.min() >= 0
    torch.testing.assert_close(found.sum(1), torch.ones(2, 3, 4, 5))


def test_turning_the_side_mirrors_the_labels():
    head = Head(LabelTable.default())
    logits = torch.randn((1, head.n_channels, 2, 2, 2), generator=torch.Generator().manual_seed(0))
    turned = torch.cat([logits[:, :-1], -logits[:, -1:]], dim=1)
    mirrored = head.probabilities(logits)[:, head.table.mirror_channels]
    torch.testing.assert_close(head.probabilities(turned), mirrored)


def test_memberships_by_side():
    sets = np.zeros((3, 4), dtype=bool)
    sets[0, LEFT] = True
    sets[1, [LEFT, RIGHT]] = True
    sets[2, [BG, CSF]] = True
    left, right = Head(TABLE).memberships(sets)
    np.testing.assert_array_equal(left, [[0, 1, 0], [0, 1, 0], [1, 0, 1]])
    np.testing.assert_array_equal(right, [[0, 0, 0], [0, 1, 0], [1, 0, 1]])
    both = Head(TABLE, "joint").memberships(sets)
    np.testing.assert_array_equal(both[0], sets)
    np.testing.assert_array_equal(both[1], sets)


@pytest.mark.parametrize("kind", ["sided", "joint"])
def test_memberships_give_the_probability_of_a_set(kind):
    head = Head(LabelTable.default(), kind)
    rng = np.random.default_rng(3)
    sets = rng.uniform(size=(6, len(head.table))) < 0.3
    logits = torch.randn((1, head.n_channels, 2, 2, 2), generator=torch.Generator().manual_seed(1))
    structures, left = head.split(logits)
    in_left, in_right = (torch.from_numpy(m) for m in head.memberships(sets))
    found = in_left @ (structures * left[:, None]).flatten(2) + in_right @ (
        structures * (1 - left[:, None])
    ).flatten(2)
    expected = torch.from_numpy(sets).float() @ head.probabilities(logits).flatten(2)
    torch.testing.assert_close(found, expected)


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'both'"):
        Head(TABLE, "both")
