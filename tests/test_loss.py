"""Label-set loss: plain cross-entropy and Dice where sets are single labels, Fidon's rule else."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bids_synthseg.anatomy.labels import Label, LabelTable
from bids_synthseg.learning.loss import label_set_loss
from bids_synthseg.models.heads import Head

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
    found = label_set_loss(logits, classes, SINGLE, head, dice_weight=0.5)
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
    losses = [label_set_loss(p, classes, sets, JOINT, dice_weight=100) for p in (little, much)]
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
