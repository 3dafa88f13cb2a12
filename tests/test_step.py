"""One step: samples that depend on their number alone, rates by hand, what the weights learn."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from training_samples import ball_map, tiny_config

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.learning import step as step_module
from bids_synthseg.learning.distributed import Team
from bids_synthseg.learning.loss import LossConfig
from bids_synthseg.learning.start import first_state
from bids_synthseg.learning.step import (
    Material,
    donors_of,
    learning_rate,
    make_sample,
    train_step,
    uses_bf16,
)
from bids_synthseg.learning.validation import UNTOUCHED, validate
from bids_synthseg.models.heads import Head
from bids_synthseg.models.unet import NetworkConfig, Pyramid

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
HEAD = Head(LabelTable.default())
ALONE = Team(0, 1, CPU)
MATERIAL = Material([ball_map(), ball_map("sub-02", scan=True)], np.array([0.5, 0.5]), [], HEAD)


def new_state(config):
    return first_state(config, HEAD, CPU, print)


def one_step(config, material=MATERIAL, team=ALONE, state=None):
    """The state after a step of `config`, and the loss."""
    state = state or new_state(config)
    loss, making_s = train_step(state, Pyramid(state.network), material, config, team)
    assert making_s > 0
    return state, float(loss)


def gradients(state):
    return [parameter.grad for parameter in state.network.parameters()]


def assert_close(ours, theirs):
    """Float sums in another order: differences are tiny beside the largest value."""
    largest = max(float(value.abs().max()) for value in theirs)
    assert largest > 0
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * largest)


class TestLearningRate:
    def test_cosine(self):
        config = tiny_config(rate=2.0, rate_end=0.1, warm_up=10, steps=110)
        assert learning_rate(config, 0) == pytest.approx(0.2)
        assert learning_rate(config, 9) == learning_rate(config, 10) == pytest.approx(2.0)
        assert learning_rate(config, 60) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
        assert learning_rate(config, 110) == learning_rate(config, 999) == pytest.approx(0.2)

    def test_constant(self):
        config = tiny_config(rate=2.0, schedule="constant", warm_up=4, steps=10)
        rates = [learning_rate(config, step) for step in range(6)]
        assert rates == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0])

    def test_all_of_it_is_warm_up(self):
        config = tiny_config(rate=1.0, warm_up=8, steps=4)
        assert learning_rate(config, 3) == pytest.approx(0.5)

    def test_the_finest_level_may_learn_faster(self):
        """Adam's first step is the rate in every weight, whatever the gradient."""
        config = tiny_config(finest_rate=5.0, rate=1e-3, warm_up=2, clip=1e9)
        state = new_state(config)
        sides = state.network.by_level()
        before = [[value.detach().clone() for value in side] for side in sides]
        one_step(config, state=state)
        moves = [
            max(float((old - new.detach()).abs().max()) for old, new in zip(*pair, strict=True))
            for pair in zip(before, sides, strict=True)
        ]
        # Half of the rate: it is the first of two steps of warm-up.
        assert moves == pytest.approx([2.5e-3, 0.5e-3], rel=0.01)


class TestSamples:
    def test_they_depend_on_seed_step_and_number(self):
        config = tiny_config(seed=3)
        first = make_sample(MATERIAL, config, 5, 1)
        for seed, step, number in ((4, 5, 1), (3, 6, 1), (3, 5, 2)):
            other = make_sample(MATERIAL, tiny_config(seed=seed), step, number)
            assert not torch.equal(first.image, other.image)
        # On nothing else: not on what was drawn before, nor on the size of a step.
        torch.manual_seed(99)
        np.random.default_rng(99).uniform()
        later = tiny_config(seed=3, batch=4, accumulate=2, steps=99, rate=0.5, precision="bf16")
        again = make_sample(MATERIAL, later, 5, 1)
        assert torch.equal(first.image, again.image) and torch.equal(first.classes, again.classes)
        assert first.image.shape == (1, 4, 16, 24, 16) and first.classes.shape == (16, 24, 16)

    def test_maps_are_drawn_as_often_as_asked(self, monkeypatch):
        drawn = []
        real = step_module.working_voxel

        def spy(source, *given):
            drawn.append(len(source.contrasts))  # the second has a scan
            return real(source, *given)

        monkeypatch.setattr(step_module, "working_voxel", spy)
        config = tiny_config(shape=(4, 4, 4))
        for chances, low, high in (((0.0, 1.0), 40, 40), ((0.25, 0.75), 22, 38)):
            drawn.clear()
            material = replace(MATERIAL, chances=np.array(chances))
            for number in range(40):
                make_sample(material, config, 0, number)
            assert low <= sum(drawn) <= high

    @pytest.mark.parametrize(("batch", "accumulate", "size"), [(3, 1, 1), (1, 3, 2), (2, 2, 3)])
    def test_a_team_divides_the_numbers(self, monkeypatch, batch, accumulate, size):
        seen = []
        real = step_module.make_sample

        def spy(material, config, step, number):
            seen.append((step, number))
            return real(material, config, step, number)

        monkeypatch.setattr(step_module, "make_sample", spy)
        config = tiny_config(shape=(4, 4, 4), batch=batch, accumulate=accumulate)
        for rank in range(size):
            one_step(config, team=Team(rank, size, CPU))
        assert sorted(seen) == [(0, number) for number in range(batch * accumulate * size)]

    def test_no_head_to_borrow_from_a_bare_brain(self):
        assert donors_of(MATERIAL.maps) == []


class TestAccumulation:
    @pytest.mark.parametrize(("batch", "accumulate"), [(1, 4), (2, 2)])
    def test_it_equals_a_larger_batch(self, batch, accumulate):
        whole, loss = one_step(tiny_config(batch=4))
        parts, same = one_step(tiny_config(batch=batch, accumulate=accumulate))
        assert same == pytest.approx(loss, rel=1e-5)
        assert_close(gradients(parts), gradients(whole))

    def test_so_does_a_team(self):
        """The mean of two processes' gradients is that of twice the batch."""
        config = tiny_config(clip=1e9)
        whole, loss = one_step(replace(config, batch=2))
        found = [one_step(config, team=Team(rank, 2, CPU)) for rank in (0, 1)]
        assert found[0][1] != found[1][1]
        assert np.mean([own for _, own in found]) == pytest.approx(loss, rel=1e-5)
        pairs = zip(*(gradients(state) for state, _ in found), strict=True)
        assert_close([(one + other) / 2 for one, other in pairs], gradients(whole))

    def test_the_gradient_is_clipped_as_a_whole(self):
        state, _ = one_step(tiny_config(clip=0.01))
        norm = math.sqrt(sum(float(grad.square().sum()) for grad in gradients(state)))
        assert norm == pytest.approx(0.01, rel=1e-3)


def test_average_follows_the_weights():
    config = tiny_config(average=0.9)
    state = new_state(config)
    start = state.network.heads[0].bias.detach().clone()
    one_step(config, state=state)
    new = state.network.heads[0].bias.detach()
    assert not torch.equal(new, start) and state.step == 1
    # The decay of the first step is (1 + 1) / (10 + 1), below the configured one.
    torch.testing.assert_close(state.average.heads[0].bias.detach(), start + 9 / 11 * (new - start))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(monkeypatch, bad):
    """Neither the weights nor Adam's memory; the step counts, so that other samples come next."""
    state, _ = one_step(tiny_config())
    before = [value.clone() for value in state.network.state_dict().values()]
    memory = [value.clone() for one in state.optimiser.state.values() for value in one.values()]
    real = step_module.training_loss
    with monkeypatch.context() as patch:
        patch.setattr(step_module, "training_loss", lambda *given: bad * real(*given))
        _, loss = one_step(tiny_config(), state=state)
    assert not math.isfinite(loss) and state.step == 2
    now = state.network.state_dict().values()
    assert all(torch.equal(old, new) for old, new in zip(before, now, strict=True))
    kept = [value for one in state.optimiser.state.values() for value in one.values()]
    assert all(torch.equal(old, new) for old, new in zip(memory, kept, strict=True))
    one_step(tiny_config(), state=state)
    now = state.network.state_dict().values()
    assert not all(torch.equal(old, new) for old, new in zip(before, now, strict=True))


def test_loss_on_a_lattice_is_close_to_the_loss_everywhere():
    losses = [one_step(tiny_config(loss_step=loss_step))[1] for loss_step in (1, 2)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_coarser_levels_answer_for_themselves_where_asked():
    """The finest logits build on the coarse ones, so it is the size of the gradient that tells."""
    plain, deep = (
        one_step(tiny_config(loss=LossConfig(deep=weight), clip=1e9)) for weight in (0.0, 1.0)
    )
    assert deep[1] > 1.5 * plain[1]
    coarse = [state.network.heads[1].bias.grad for state, _ in (plain, deep)]
    fine = [state.network.heads[0].bias.grad for state, _ in (plain, deep)]
    torch.testing.assert_close(*fine)
    assert coarse[1].norm() > 1.5 * coarse[0].norm()


def test_frozen_parts_stay():
    config = tiny_config(freeze=("encoder",))
    state = new_state(config)
    before = {name: value.clone() for name, value in state.network.state_dict().items()}
    one_step(config, state=state)
    moved = {n for n, v in state.network.state_dict().items() if not torch.equal(v, before[n])}
    assert {name.split(".")[0] for name in moved} == {"laterals", "decoders", "heads"}


def test_precision(monkeypatch):
    cuda = torch.device("cuda")
    table = {("auto", CPU): False, ("auto", cuda): True, ("bf16", CPU): True, ("fp32", cuda): False}
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    for (precision, device), expected in table.items():
        assert uses_bf16(tiny_config(precision=precision), device) is expected
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert uses_bf16(tiny_config(precision="auto"), CPU)
    losses = [one_step(tiny_config(precision=name))[1] for name in ("fp32", "bf16")]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)


def test_training_lowers_the_loss():
    """Labels in fixed intensities, mirrored at random: to be learned within seconds."""
    config = tiny_config(
        shape=(16, 16, 16),
        steps=50,
        batch=2,
        rate=1e-2,
        network=NetworkConfig(features=(8, 12), convs=(1, 1)),
        synthesis=replace(UNTOUCHED, flip=0.5),
    )
    material = replace(MATERIAL, chances=np.array([0.0, 1.0]))
    state = new_state(config)

    def dice():
        scores = validate(state.average, material.maps[1:], config, HEAD, n_synthetic=0)
        return np.mean([score.dice for score in scores])

    before = dice()
    losses = [one_step(config, material, state=state)[1] for _ in range(config.steps)]
    assert state.step == 50
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    assert dice() > before + 0.2
