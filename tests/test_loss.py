"""Losses: plain cross-entropy and Dice where sets are single labels, Fidon's rule else; SynthSeg's
warm-up; levels put together."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bids_synthseg.anatomy.labels import Label, LabelTable
from bids_synthseg.learning.loss import (
    LossConfig,
    label_set_loss,
    logit_l2_loss,
    training_loss,
)
from bids_synthseg.models.heads import Head
from bids_synthseg.models.unet import Lattice

TABLE = LabelTable(
    (
        Label(0, "Background", "BG", "#000000", 0, "background", "midline", 0, 0),
        Label(2, "Left-White", "LW", "#000000", 2, "white", "left", 41, 2),
        Label(41, "Right-White", "RW", "#000000", 2, "white", "right", 2, 41),
        Label(24, "CSF", "CSF", "#000000", 3, "csf", "midline", 24, 24),
    )
)
BG, LEFT, RIGHT, CSF = range(4)
JOINT, SIDED = Head(TABLE, "joint"), Head(TABLE)


def sets_of(*members: tuple[int, ...]) -> np.ndarray:
    """(K, 4) bool."""
    sets = np.zeros((len(members), len(TABLE)), dtype=bool)
    for row, channels in zip(sets, members, strict=True):
        row[list(channels)] = True
    return sets


SINGLE = sets_of((BG,), (LEFT,), (RIGHT,), (CSF,))


def line(*values: object) -> torch.Tensor:
    """(N, 1, 1) classes, or (1, n, N, 1, 1) logits from N rows of probabilities."""
    if isinstance(values[0], int):
        return torch.tensor(values).view(-1, 1, 1)
    return torch.tensor(values, dtype=torch.float32).log().T[None, :, :, None, None]


def random_logits(head: Head, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn((1, head.n_channels, *shape), generator=generator)


def test_two_voxels_by_hand():
    logits = line([0.5, 0.2, 0.2, 0.1], [0.1, 0.6, 0.2, 0.1])
    found = label_set_loss(logits, line(BG, LEFT), SINGLE, JOINT)
    cross_entropy = -(np.log(0.5) + np.log(0.6)) / 2
    dice_bg = (2 * 0.5 + 1) / (1 + (0.5 + 0.1) + 1)
    dice_left = (2 * 0.6 + 1) / (1 + (0.2 + 0.6) + 1)
    assert float(found) == pytest.approx(cross_entropy + 1 - (dice_bg + dice_left) / 2, rel=1e-5)


@pytest.mark.parametrize("head", [JOINT, SIDED], ids=["joint", "sided"])
def test_single_labels_give_plain_cross_entropy_and_dice(head):
    logits = random_logits(head, 4, 5, 6)
    classes = torch.randint(4, (4, 5, 6), generator=torch.Generator().manual_seed(1))
    chance = head.probabilities(logits)
    truth = F.one_hot(classes, 4).movedim(-1, 0)[None].float()
    cross_entropy = F.nll_loss(chance.log(), classes[None])
    both = (chance * truth).flatten(2).sum(2)
    dice = (2 * both + 1) / (truth.flatten(2).sum(2) + chance.flatten(2).sum(2) + 1)
    expected = cross_entropy + 0.5 * (1 - dice.mean())
    found = label_set_loss(logits, classes, SINGLE, head, dice=0.5)
    torch.testing.assert_close(found, expected)


def test_a_set_counts_the_sum_of_its_members():
    sets = sets_of((BG,), (LEFT, RIGHT, CSF))
    uneven = line([0.1, 0.7, 0.1, 0.1], [0.9, 0.05, 0.04, 0.01])
    even = line([0.1, 0.3, 0.3, 0.3], [0.9, 0.01, 0.08, 0.01])
    losses = [label_set_loss(p, line(1, 0), sets, JOINT) for p in (uneven, even)]
    torch.testing.assert_close(losses[0], losses[1])


def test_an_overlapping_set_makes_no_false_positive():
    """Where "background or CSF" is all that is said, CSF does not count against the CSF label."""
    sets = sets_of((BG, CSF), (CSF,), (LEFT,))
    classes = line(0, 1, 2)
    little = line([0.9, 0.02, 0.02, 0.06], [0.1, 0.1, 0.1, 0.7], [0.1, 0.7, 0.1, 0.1])
    much = line([0.06, 0.02, 0.02, 0.9], [0.1, 0.1, 0.1, 0.7], [0.1, 0.7, 0.1, 0.1])
    losses = [label_set_loss(p, classes, sets, JOINT) for p in (little, much)]
    torch.testing.assert_close(losses[0], losses[1])
    # With background said alone, the same CSF does count.
    sets = sets_of((BG,), (CSF,), (LEFT,))
    losses = [label_set_loss(p, classes, sets, JOINT, dice=100) for p in (little, much)]
    assert losses[1] - losses[0] > 10


def test_sets_that_do_not_occur_take_no_part():
    logits = random_logits(JOINT, 3, 3, 3)
    classes = torch.tensor([0, 1, 3] * 9).view(3, 3, 3)
    full = label_set_loss(logits, classes, SINGLE, JOINT)
    renumbered = torch.tensor([0, 1, 0, 2])[classes]
    lean = label_set_loss(logits, renumbered, SINGLE[[BG, LEFT, CSF]], JOINT)
    torch.testing.assert_close(full, lean)


def test_classes_of_one_set_are_one_question():
    logits = random_logits(JOINT, 3, 3, 3)
    classes = torch.tensor([0, 1, 2] * 9).view(3, 3, 3)
    doubled = sets_of((BG,), (LEFT,), (LEFT,))
    merged = label_set_loss(logits, classes.clamp(max=1), doubled[:2], JOINT)
    torch.testing.assert_close(label_set_loss(logits, classes, doubled, JOINT), merged)


def test_perfect_and_wrong_answers():
    classes = line(BG, LEFT, RIGHT, CSF)
    sure = 20 * F.one_hot(classes, 4).movedim(-1, 0)[None].float()
    assert label_set_loss(sure, classes, SINGLE, JOINT) < 1e-4
    assert label_set_loss(-sure, classes, SINGLE, JOINT) > 2
    assert label_set_loss(-100 * sure, classes, SINGLE, JOINT).isfinite()


@pytest.mark.parametrize("head", [JOINT, SIDED], ids=["joint", "sided"])
def test_a_step_down_the_gradient_moves_probability_into_the_set(head):
    sets = sets_of((BG,), (LEFT, CSF))
    classes = torch.zeros(2, 2, 2, dtype=torch.long)
    classes[1] = 1
    logits = random_logits(head, 2, 2, 2).requires_grad_()
    label_set_loss(logits, classes, sets, head).backward()
    mask = torch.from_numpy(sets)[classes].movedim(-1, 0)[None]
    before = (head.probabilities(logits) * mask).sum(1)
    after = (head.probabilities(logits.detach() - 0.1 * logits.grad) * mask).sum(1)
    assert (after > before).all()


def test_targets_without_side_teach_no_side():
    classes = torch.tensor([0, 1] * 4).view(2, 2, 2)
    logits = random_logits(SIDED, 2, 2, 2).requires_grad_()
    label_set_loss(logits, classes, sets_of((BG,), (LEFT, RIGHT)), SIDED).backward()
    assert logits.grad[:, :-1].abs().min() > 0
    assert logits.grad[:, -1].abs().max() < 1e-7
    logits.grad = None
    label_set_loss(logits, classes, sets_of((BG,), (LEFT,)), SIDED).backward()
    assert (logits.grad[0, -1][classes == 1] < 0).all(), "towards the left"


def test_half_precision_logits_are_summed_in_full():
    logits = random_logits(JOINT, 4, 4, 4)
    classes = torch.randint(4, (4, 4, 4), generator=torch.Generator().manual_seed(1))
    rounded = logits.bfloat16()
    exact = label_set_loss(rounded.float(), classes, SINGLE, JOINT)
    assert label_set_loss(rounded, classes, SINGLE, JOINT) == exact


def plain_loss(logits, classes, sets, head):
    """The label-set loss written down without care for speed, in double precision."""
    chance = torch.einsum(
        "kc,bc...->bk...", torch.from_numpy(sets).double(), head.probabilities(logits.double())
    )[0].flatten(1)
    target = classes.flatten()
    cross_entropy = -chance.gather(0, target[None]).log().mean()
    scores = []
    for row, own in enumerate(sets):
        if (target == row).any():
            free = torch.tensor([(own & other).any() for other in sets])
            free[row] = False
            counted = chance[row][~free[target]].sum()
            hit = chance[row][target == row].sum()
            scores.append((2 * hit + 1) / ((target == row).sum() + counted + 1))
    return cross_entropy + 1 - torch.stack(scores).mean()


@pytest.mark.parametrize("head", [JOINT, SIDED], ids=["joint", "sided"])
@pytest.mark.parametrize("chunk", [7, 8192])
def test_value_and_slope_are_those_of_the_plain_formula(head, chunk, monkeypatch):
    monkeypatch.setattr("bids_synthseg.learning.loss._CHUNK", chunk)
    sets = sets_of((BG, CSF), (CSF,), (LEFT,), (LEFT, RIGHT), (RIGHT, CSF))
    classes = torch.randint(4, (3, 4, 5), generator=torch.Generator().manual_seed(1))
    fast, slow = (random_logits(head, 3, 4, 5).requires_grad_() for _ in range(2))
    found, expected = (
        label_set_loss(fast, classes, sets, head),
        plain_loss(slow, classes, sets, head),
    )
    torch.testing.assert_close(found, expected.float())
    (3 * found).backward()
    (3 * expected).backward()
    torch.testing.assert_close(fast.grad, slow.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("head", [JOINT, SIDED], ids=["joint", "sided"])
def test_what_is_most_surely_wrong_can_still_be_learned(head):
    logits = torch.zeros(1, head.n_channels, 2, 2, 2)
    logits[:, BG] = 20.0
    logits[:, -1] = 20.0  # CSF of the joint head, left of the sided one
    logits.requires_grad_()
    label_set_loss(logits, torch.full((2, 2, 2), RIGHT), SINGLE, head, dice=0.0).backward()
    channel = head.structure_channels[RIGHT]
    assert (logits.grad[:, channel] < -0.12).all()
    assert head is JOINT or (logits.grad[:, -1] > 0.12).all()


def test_weights_of_the_two_terms():
    logits, classes = line([0.5, 0.2, 0.2, 0.1], [0.1, 0.6, 0.2, 0.1]), line(BG, LEFT)
    entropy, dice, both = (
        label_set_loss(logits, classes, SINGLE, JOINT, *weights)
        for weights in ((0.0, 1.0), (1.0, 0.0), (2.0, 3.0))
    )
    assert float(entropy) == pytest.approx(-(np.log(0.5) + np.log(0.6)) / 2, rel=1e-5)
    torch.testing.assert_close(both, 2 * dice + 3 * entropy)


def test_warm_up_is_that_of_synthseg_for_single_labels():
    """sum(w (z - 5 (2 g - 1))^2) / (L sum(w)), w = 1 + 1e-4 for tissue and 1e-4 for background."""
    logits = random_logits(JOINT, 4, 5, 6)
    classes = torch.randint(4, (4, 5, 6), generator=torch.Generator().manual_seed(1))
    truth = F.one_hot(classes, 4).movedim(-1, 0)[None].float()
    weight = 1 - truth[:, 0] + 1e-4
    expected = (weight * (logits - 5 * (2 * truth - 1)) ** 2).sum() / (4 * weight.sum())
    torch.testing.assert_close(logit_l2_loss(logits, classes, SINGLE, JOINT), expected)


@pytest.mark.parametrize(
    ("members", "logits", "expected"),
    [
        # Channels are background, white, CSF, left. Met exactly: nothing to learn.
        ((LEFT,), (-5.0, 5.0, -5.0, 5.0), 0.0),
        ((RIGHT,), (-5.0, 5.0, -5.0, -5.0), 0.0),
        ((CSF,), (-5.0, -5.0, 5.0, 3.0), 0.0),
        ((LEFT, RIGHT), (-5.0, 5.0, -5.0, 3.0), 0.0),
        ((LEFT, CSF), (-5.0, 5 - np.log(2), 5 - np.log(2), 3.0), 0.0),
        ((LEFT, CSF), (-5.0, 5.0, -40.0, 3.0), 0.0),
        # One channel of four is off.
        ((LEFT,), (-5.0, 5.0, -5.0, 3.0), 1.0),
        ((RIGHT,), (-5.0, 5.0, -5.0, -1.0), 4.0),
        ((LEFT, RIGHT), (-5.0, 2.0, -5.0, 3.0), 9 / 4),
        ((LEFT, CSF), (-4.0, 5.0, -40.0, 3.0), 1 / 4),
    ],
)
def test_warm_up_of_sets_and_sides_by_hand(members, logits, expected):
    found = logit_l2_loss(
        torch.tensor(logits, dtype=torch.float32).view(1, 4, 1, 1, 1),
        torch.zeros(1, 1, 1, dtype=torch.long),
        sets_of(members),
        SIDED,
    )
    assert float(found) == pytest.approx(expected, abs=1e-5)


def pyramid_of(classes: torch.Tensor, levels: int) -> list[torch.Tensor]:
    shapes = [[n // 2**level for n in classes.shape] for level in range(levels)]
    return [random_logits(JOINT, *shape) for shape in shapes]


def test_coarser_levels_count_half_as_much_each():
    classes = torch.randint(4, (8, 8, 8), generator=torch.Generator().manual_seed(1))
    pyramid = pyramid_of(classes, 3)
    coarse = (classes, classes[1::2, 1::2, 1::2], classes[2::4, 2::4, 2::4])
    each = [label_set_loss(p, c, SINGLE, JOINT) for p, c in zip(pyramid, coarse, strict=True)]
    found = training_loss(pyramid, classes, SINGLE, JOINT, LossConfig(deep=0.5), 0)
    torch.testing.assert_close(found, each[0] + 0.5 * each[1] + 0.25 * each[2])
    alone = training_loss(pyramid, classes, SINGLE, JOINT, LossConfig(), 0)
    torch.testing.assert_close(alone, each[0])


def test_the_warm_up_ends_at_its_step():
    classes = torch.randint(4, (4, 4, 4), generator=torch.Generator().manual_seed(1))
    pyramid = pyramid_of(classes, 1)
    config = LossConfig(dice=2.0, warm_up_l2=3)
    found = [training_loss(pyramid, classes, SINGLE, JOINT, config, step) for step in (2, 3)]
    torch.testing.assert_close(found[0], logit_l2_loss(pyramid[0], classes, SINGLE, JOINT))
    torch.testing.assert_close(found[1], label_set_loss(pyramid[0], classes, SINGLE, JOINT, 2.0))


def test_only_the_finest_level_looks_at_a_lattice():
    classes = torch.randint(4, (8, 8, 8), generator=torch.Generator().manual_seed(1))
    fine, coarse = pyramid_of(classes, 2)
    fine = fine[:, :, 1::2, ::2]
    found = training_loss(
        [fine, coarse], classes, SINGLE, JOINT, LossConfig(deep=1.0), 0, Lattice(2, 1, 0)
    )
    seen = label_set_loss(fine, classes[1::2, ::2], SINGLE, JOINT)
    rest = label_set_loss(coarse, classes[1::2, 1::2, 1::2], SINGLE, JOINT)
    torch.testing.assert_close(found, seen + rest)


@pytest.mark.parametrize("wrong", [{"dice": -1.0}, {"dice": 0.0, "cross_entropy": 0.0}])
def test_impossible_weights_are_refused(wrong):
    with pytest.raises(ValueError, match="dice"):
        LossConfig(**wrong)
