"""Scores of held-out maps: worked out by hand, on images that never change."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from training_samples import ball_map, tiny_config

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.learning.validation import structure_dice, validate
from bids_synthseg.models.heads import Head
from bids_synthseg.models.inputs import to_range
from bids_synthseg.models.unet import NetworkConfig, UNet

TABLE = LabelTable.default()
JOINT = Head(TABLE, "joint")
CONFIG = tiny_config(shape=(24, 24, 24), voxel_mm=1.0)  # the grid of the ball
CORTEX, WHITE, FLUID = "cerebral cortex", "cerebral white matter", "cerebrospinal fluid"


def sets_of(*ids: set[int]) -> np.ndarray:
    """(K, C) bool rows of label ids."""
    return np.array([np.isin(TABLE.ids, list(one)) for one in ids])


class ScanReader(nn.Module):
    """Reads the classes of the ball's scan, whose 1st and 99th percentile are 0.1 and 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.config = NetworkConfig(intensity="range")
        levels = torch.full((len(TABLE),), 9.0)
        for index, grey in ((0, 0.0), (2, 0.1), (41, 0.2), (3, 0.3), (42, 0.4), (24, 0.5)):
            levels[TABLE.channel_of(index)] = (grey - 0.1) / 0.4
        self.levels = nn.Parameter(levels.view(1, -1, 1, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return -100 * (image[:, :1] - self.levels) ** 2


class Spy(UNet):
    """Keeps what it was shown."""

    def __init__(self, intensity: str = "rank") -> None:
        torch.manual_seed(0)
        super().__init__(replace(CONFIG.network, intensity=intensity))
        self.shown: list[torch.Tensor] = []
        self.batches: list[int] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.shown += list(image[:, 0])
        self.batches.append(len(image))
        return super().forward(image)


def test_every_structure_of_a_scan_is_found_by_a_network_that_reads_it():
    scores = validate(ScanReader(), [ball_map(scan=True)], CONFIG, JOINT, n_synthetic=0)
    assert {score.name for score in scores} == {"set/sub-01/T1w"}
    assert {score.structure: score.dice for score in scores} == {CORTEX: 1, WHITE: 1, FLUID: 1}


def test_images_are_the_scans_and_as_many_painted_ones():
    maps = [ball_map("sub-01", scan=True), ball_map("sub-02")]
    scores = validate(ScanReader(), maps, CONFIG, JOINT, n_synthetic=2)
    assert list(dict.fromkeys(score.name for score in scores)) == [
        "set/sub-01/T1w",
        "set/sub-01/synthetic-0",
        "set/sub-01/synthetic-1",
        "set/sub-02/synthetic-0",
        "set/sub-02/synthetic-1",
    ]
    assert {score.structure for score in scores if score.kind == "synthetic"} >= {CORTEX, WHITE}
    # Greys at random are not those that the network knows.
    assert np.mean([score.dice for score in scores if score.kind == "synthetic"]) < 0.5


def test_without_scans_or_painted_images_there_is_nothing_to_say():
    assert validate(ScanReader(), [ball_map()], CONFIG, JOINT, n_synthetic=0) == []
    assert validate(ScanReader(), [], CONFIG, JOINT) == []


def test_the_scan_is_shown_as_it_is():
    """Black where nothing was seen."""
    spy, one = Spy("range"), ball_map(scan=True)
    validate(spy, [one], CONFIG, Head(TABLE), n_synthetic=0)
    (shown,) = spy.shown
    torch.testing.assert_close(shown, to_range(one.source.images[0].float()), atol=1e-4, rtol=0)


def test_painted_images_depend_on_the_name_alone():
    first, again = Spy(), Spy()
    scores = validate(
        first, [ball_map("sub-01", scan=True), ball_map("sub-02", scan=True)], CONFIG, Head(TABLE)
    )
    torch.manual_seed(99)
    np.random.default_rng(99).uniform()
    later = replace(CONFIG, seed=7)
    swapped = validate(
        again, [ball_map("sub-02", scan=True), ball_map("sub-01", scan=True)], later, Head(TABLE)
    )
    assert sorted(scores, key=str) == sorted(swapped, key=str)
    # One scan and two painted images of each map.
    for here, there in ((0, 3), (1, 4), (2, 5), (3, 0), (4, 1), (5, 2)):
        assert torch.equal(first.shown[here], again.shown[there])
    painted = [first.shown[k] for k in (1, 2, 4, 5)]
    assert not any(torch.equal(a, b) for k, a in enumerate(painted) for b in painted[k + 1 :])


def test_a_scan_is_never_called_painted():
    config = replace(CONFIG, synthesis=replace(CONFIG.synthesis, real=1.0))
    spy, plain = Spy(), Spy()
    validate(spy, [ball_map(scan=True)], config, Head(TABLE))
    validate(plain, [ball_map(scan=True)], CONFIG, Head(TABLE))
    assert all(torch.equal(a, b) for a, b in zip(spy.shown, plain.shown, strict=True))


def test_batches_do_not_matter():
    alone, together = Spy(), Spy()
    scores = validate(alone, [ball_map(scan=True)], CONFIG, Head(TABLE), n_synthetic=4)
    batched = validate(
        together, [ball_map(scan=True)], replace(CONFIG, batch=3), Head(TABLE), n_synthetic=4
    )
    assert (alone.batches, together.batches) == ([1] * 5, [3, 2])
    assert [s.name for s in scores] == [s.name for s in batched]
    np.testing.assert_allclose([s.dice for s in scores], [s.dice for s in batched], atol=0.02)


def test_weights_and_their_gradients_are_left_alone():
    spy = Spy()
    before = {name: value.clone() for name, value in spy.state_dict().items()}
    validate(spy, [ball_map(scan=True)], CONFIG, Head(TABLE))
    assert all(torch.equal(before[name], value) for name, value in spy.state_dict().items())
    assert all(parameter.grad is None for parameter in spy.parameters())


class TestStructureDice:
    """On lines of voxels: label ids found, against rows of sets."""

    @staticmethod
    def dice(found: list[int], classes: list[int], sets: np.ndarray) -> dict[str, float]:
        labels = torch.tensor([TABLE.channel_of(i) for i in found]).view(-1, 1, 1)
        return structure_dice(labels, torch.tensor(classes).view(-1, 1, 1), sets, TABLE)

    def test_both_sides_of_a_structure_are_one(self):
        # Left: 1 of 2 found; right: 2 of 2 found, and 1 too many.
        found = self.dice([3, 42, 42, 42, 0], [1, 1, 2, 2, 0], sets_of({0}, {3}, {42}))
        assert found == {CORTEX: pytest.approx((2 * 1 / (1 + 2) + 2 * 2 / (3 + 2)) / 2)}

    def test_a_swap_of_sides_is_seen(self):
        assert self.dice([42, 3], [1, 2], sets_of({0}, {3}, {42})) == {CORTEX: 0.0}

    def test_a_set_of_several_structures_is_one(self):
        found = self.dice([10, 53, 2, 0], [0, 0, 0, 1], sets_of({10, 49, 17, 53}, {0}))
        assert found == {"thalamus + hippocampus": pytest.approx(2 * 2 / (2 + 3))}

    def test_classes_of_one_set_are_one(self):
        assert self.dice([3, 2], [1, 2], sets_of({0}, {3}, {3})) == {CORTEX: 2 * 1 / (1 + 2)}

    def test_what_is_absent_or_may_be_background_is_not_judged(self):
        sets = sets_of({0}, {0, 24}, {3}, {2})
        assert self.dice([0, 24, 3], [0, 1, 2], sets) == {CORTEX: 1.0}
        assert self.dice([3, 2], [0, 1], sets) == {}

    def test_what_another_set_allows_is_no_false_positive(self):
        # CSF where the map says "background or CSF" does not count against CSF; a cortex there
        # counts against cortex.
        sets = sets_of({0, 24}, {24}, {3})
        found = self.dice([24, 24, 3, 3], [0, 1, 0, 2], sets)
        assert found == {FLUID: 1.0, CORTEX: pytest.approx(2 * 1 / (2 + 1))}

    def test_a_right_answer_has_dice_1_where_sets_overlap(self):
        found = self.dice([10, 10, 17], [1, 2, 2], sets_of({0}, {10}, {10, 17}))
        assert found == {"thalamus": 1.0, "thalamus + hippocampus": 1.0}

    def test_nothing_found_is_0(self):
        assert self.dice([0, 0], [1, 0], sets_of({0}, {3})) == {CORTEX: 0.0}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_judges_as_the_cpu():
    here = validate(Spy(), [ball_map(scan=True)], CONFIG, Head(TABLE))
    there = validate(Spy().cuda(), [ball_map(scan=True)], CONFIG, Head(TABLE))
    assert [s.name for s in here] == [s.name for s in there]
    np.testing.assert_allclose([s.dice for s in here], [s.dice for s in there], atol=0.02)
