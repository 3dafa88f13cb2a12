"""Networks that begin as others: what may not change does not, and what is new learns."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from bids_synthseg.models.growth import (
    add_evidence,
    add_stem,
    drop_evidence,
    drop_stem,
    grow,
    shrink,
    widen,
)
from bids_synthseg.models.unet import NetworkConfig, UNet, upsample

COARSE = NetworkConfig(features=(6, 8), channels_in=2, channels_out=3, convs=(1, 2))
FINE = NetworkConfig(features=(4, 6, 8), channels_in=2, channels_out=3, convs=(2, 1, 2))


def network(config: NetworkConfig) -> UNet:
    torch.manual_seed(0)
    return UNet(config)


def image(*shape: int) -> torch.Tensor:
    return torch.randn((1, 2, *shape), generator=torch.Generator().manual_seed(1))


def chance() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def learn(net: UNet, side: int = 16, steps: int = 2) -> dict[str, torch.Tensor]:
    """Train a little; returns what the weights were before."""
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    truth = torch.zeros(1, side, side, side, dtype=torch.long)
    truth[:, side // 2 :] = 1
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(net(image(side, side, side)), truth).backward()
        optimiser.step()
    return before


def test_growing_changes_nothing_at_first():
    coarse = network(COARSE)
    fine = grow(coarse, 4, 2)
    assert fine.config == FINE
    picture = image(16, 8, 24)
    with torch.no_grad():
        expected = upsample(coarse(F.avg_pool3d(picture, 2)))
        torch.testing.assert_close(fine(picture), expected, atol=1e-5, rtol=0)


def test_a_grown_level_learns():
    fine = grow(network(COARSE), 4, 2)
    before = learn(fine)  # two steps: the new encoder is behind weights that start at zero
    changed = {n for n, value in fine.state_dict().items() if not torch.equal(value, before[n])}
    for name in ("heads.0", "encoders.0.0", "encoders.0.3", "laterals.0", "decoders.0.0"):
        assert f"{name}.weight" in changed, name
    grown_input = fine.state_dict()["encoders.1.0.weight"][:, 2:]
    assert grown_input.abs().max() > 0


def test_shrinking_undoes_growing():
    coarse = network(COARSE)
    back = shrink(grow(coarse, 4, 2))
    assert back.config == COARSE
    state = back.state_dict()
    assert all(torch.equal(state[name], value) for name, value in coarse.state_dict().items())


def test_a_shrunk_network_has_weights_of_its_own():
    fine = network(FINE)
    coarse = shrink(fine)
    before = fine.state_dict()["heads.1.bias"].clone()
    with torch.no_grad():
        coarse.heads[0].bias += 1
    assert torch.equal(fine.state_dict()["heads.1.bias"], before)


def test_one_level_cannot_shrink():
    with pytest.raises(ValueError, match="one level"):
        shrink(network(NetworkConfig((4,), 2, 3, (1,))))


@pytest.mark.parametrize("residual", [False, True])
def test_a_stem_repeats_the_answer_of_the_mean(residual):
    coarse = network(replace(COARSE, residual=residual))
    fine = add_stem(coarse)
    assert fine.config == replace(coarse.config, stem=True)
    picture = image(16, 8, 24)
    with torch.no_grad():
        answer = fine(picture)
        expected = coarse(F.avg_pool3d(picture, 2))
    # Within a cube of eight the coarser levels' share of the answer is interpolated.
    torch.testing.assert_close(F.avg_pool3d(answer, 2), expected, atol=1e-5, rtol=0)


def test_a_stem_learns_what_differs_within_a_cube():
    fine = add_stem(network(COARSE))
    learn(fine)
    weight = fine.state_dict()["heads.0.weight"].unflatten(0, (3, 8))
    assert weight.std(1).max() > 0


@pytest.mark.parametrize("residual", [False, True])
def test_dropping_the_stem_undoes_adding_it(residual):
    coarse = network(replace(COARSE, residual=residual))
    back = drop_stem(add_stem(coarse))
    assert back.config == coarse.config
    for name, value in coarse.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], value)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("features", [(4, 6, 8), (7, 6, 20), (16, 12, 9)])
def test_widening_changes_no_answer(features, residual):
    narrow = network(replace(FINE, residual=residual))
    wide = widen(narrow, features, chance())
    assert wide.config == replace(narrow.config, features=features)
    picture = image(16, 8, 24)
    with torch.no_grad():
        torch.testing.assert_close(wide(picture), narrow(picture), atol=1e-4, rtol=0)


def test_copies_of_a_feature_part_ways():
    wide = widen(network(COARSE), (12, 16), chance())
    weights = wide.state_dict()["encoders.0.0.weight"]
    assert torch.equal(weights[:6], weights[6:])
    learn(wide)
    weights = wide.state_dict()["encoders.0.0.weight"]
    assert (weights[:6] - weights[6:]).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("features", "complaint"),
    [((6, 7), r"none may be below \[6, 8\]"), ((6,), "2 levels, not 1")],
)
def test_a_level_does_not_become_narrower(features, complaint):
    with pytest.raises(ValueError, match=complaint):
        widen(network(COARSE), features, chance())


@pytest.mark.parametrize("stem", [False, True])
def test_evidence_is_not_heeded_at_first_but_learns(stem):
    plain = network(replace(COARSE, stem=stem))
    told = add_evidence(plain, 3)
    picture = image(16, 8, 24)
    with torch.no_grad():
        torch.testing.assert_close(told(picture), plain(picture))
    learn(told)
    assert told.evidence[0].weight.abs().max() > 0
    assert drop_evidence(told).config == plain.config


@pytest.mark.parametrize("has", [{"stem": True}, {"evidence": 3}])
def test_stem_and_evidence_are_taken_off_before_anything_else_grows(has):
    net = network(replace(COARSE, **has))
    with pytest.raises(ValueError, match="take off"):
        grow(net, 4, 1)
    with pytest.raises(ValueError, match="take off"):
        widen(net, (8, 8), chance())
