"""The network: shapes, refused architectures, its answers on every level, its stem."""

from dataclasses import replace

import pytest
import torch

from bids_synthseg.models import unet
from bids_synthseg.models.unet import (
    Lattice,
    NetworkConfig,
    Pyramid,
    UNet,
    channels_to_cubes,
    cubes_to_channels,
    upsample,
)

COARSE = NetworkConfig(features=(6, 8), channels_in=2, channels_out=3, convs=(1, 2))
FINE = NetworkConfig(features=(4, 6, 8), channels_in=2, channels_out=3, convs=(2, 1, 2))


def network(config: NetworkConfig) -> UNet:
    torch.manual_seed(0)
    return UNet(config)


def image(*shape: int) -> torch.Tensor:
    return torch.randn((1, 2, *shape), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm", ["instance", "group", "none"])
@pytest.mark.parametrize("activation", ["leaky_relu", "elu", "relu"])
def test_every_kind_answers_in_every_voxel(norm, activation):
    config = NetworkConfig((8, 8, 8), 2, 5, (1, 1, 1), norm=norm, activation=activation)
    logits = network(config)(image(8, 12, 16))
    assert logits.shape == (1, 5, 8, 12, 16) and logits.isfinite().all() and logits.std() > 0


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"features": ()}, "at least one level"),
        ({"features": (4, 8), "convs": (1,)}, "one number per level"),
        ({"norm": "batch"}, "norm must be one of"),
        ({"activation": "swish"}, "activation one of"),
        ({"kernel": 2}, "kernel must be odd"),
        ({"convs": (1, 0, 1, 1, 1)}, "convs must be from 1"),
    ],
)
def test_impossible_architectures_are_refused(wrong, complaint):
    with pytest.raises(ValueError, match=complaint):
        NetworkConfig(**wrong)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_divisor_is_the_smallest_side(levels):
    config = NetworkConfig((4,) * levels, 2, 3, (1,) * levels, norm="none")
    assert config.divisor == 2 ** (levels - 1)
    side = config.divisor
    assert network(config)(image(side, side, 2 * side)).shape[2:] == (side, side, 2 * side)


def test_names_of_shipped_weights_stay():
    state = UNet(NetworkConfig((4, 8), 2, 3, (1, 1))).state_dict()
    expected = {"encoders.0.0", "encoders.0.1", "encoders.1.0", "encoders.1.1", "laterals.0"}
    expected |= {"decoders.0.0", "decoders.0.1", "heads.0", "heads.1"}
    assert set(state) == {f"{n}.{kind}" for n in expected for kind in ("weight", "bias")}
    assert state["encoders.1.0.weight"].shape == (8, 2 + 4, 3, 3, 3)


def test_batch_entries_are_independent():
    net = network(COARSE)
    first, second = image(8, 8, 8), -image(8, 8, 8)
    together = net(torch.cat([first, second]))
    torch.testing.assert_close(together[:1], net(first), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[1:], net(second), atol=1e-5, rtol=1e-5)


def test_upsampling_keeps_voxel_centres():
    ramp = torch.arange(8.0).view(1, 1, 8, 1, 1).expand(1, 1, 8, 2, 2)
    fine = upsample(ramp)[0, 0, 1:-1, 0, 0]
    # Fine voxel k lies at coarse voxel (k - 0.5) / 2.
    torch.testing.assert_close(fine, (torch.arange(1.0, 15.0) - 0.5) / 2)


def test_the_pyramid_answers_on_every_grid():
    net, picture = network(FINE), image(16, 8, 24)
    with torch.no_grad():
        answers = net.pyramid(picture)
        assert torch.equal(answers[0], net(picture))
        called = Pyramid(net)(picture)
    assert [tuple(a.shape[2:]) for a in answers] == [(16, 8, 24), (8, 4, 12), (4, 2, 6)]
    assert all(torch.equal(a, b) for a, b in zip(answers, called, strict=True))


def test_each_answer_adds_to_the_upsampled_one_below():
    net, picture = network(FINE), image(16, 8, 24)
    with torch.no_grad():
        net.heads[0].weight.zero_()
        net.heads[0].bias.fill_(0.25)
        finest, below, _ = net.pyramid(picture)
    torch.testing.assert_close(finest, upsample(below) + 0.25)


def test_cubes_become_channels_and_back():
    picture = torch.arange(2.0 * 4 * 2 * 6).reshape(1, 2, 4, 2, 6)
    channels = cubes_to_channels(picture)
    assert channels.shape == (1, 16, 2, 1, 3)
    # Channel 8 c + 4 i + 2 j + k is voxel (2 x + i, 2 y + j, 2 z + k) of channel c.
    assert channels[0, 8 + 4 + 1, 1, 0, 2] == picture[0, 1, 3, 0, 5]
    assert torch.equal(channels_to_cubes(channels), picture)


def test_a_stem_halves_the_grid_but_not_the_answer():
    net, picture = network(replace(COARSE, stem=True)), image(16, 8, 24)
    assert net.config.divisor == 4
    with torch.no_grad():
        answers = net.pyramid(picture)
    assert [tuple(a.shape[2:]) for a in answers] == [(16, 8, 24), (4, 2, 6)]
    assert net.encoders[0][0].in_channels == 16 and net.heads[0].out_channels == 24
    single = network(NetworkConfig((4,), 2, 3, (1,), stem=True))
    assert single(picture).shape == (1, 3, 16, 8, 24)


def test_voxels_of_a_cube_get_answers_of_their_own():
    net = network(replace(COARSE, stem=True))
    with torch.no_grad():
        answer = net(image(8, 8, 8))
    assert cubes_to_channels(answer)[0, :8].std(0).min() > 0


def test_the_input_of_a_residual_block_is_added():
    config = replace(COARSE, residual=True, norm="none")
    net = network(config)
    with torch.no_grad():
        for layer in net.encoders[0]:
            if isinstance(layer, torch.nn.Conv3d) and layer.kernel_size == (3, 3, 3):
                layer.weight.zero_()
                layer.bias.zero_()
        picture = image(8, 8, 8)
        expected = net.encoders[0].short(picture)
        torch.testing.assert_close(net.encoders[0](picture), expected)


@pytest.mark.parametrize("stem", [False, True])
@pytest.mark.parametrize("step, first, second", [(2, 1, 0), (3, 2, 1), (4, 3, 2), (1, 0, 0)])
def test_a_lattice_gets_the_answers_that_its_places_have(stem, step, first, second):
    net, picture = network(replace(COARSE, stem=stem)), image(16, 24, 8)
    whole, below = net.pyramid(picture)
    part, same = net.pyramid(picture, Lattice(step, first, second))
    torch.testing.assert_close(part, whole[:, :, first::step, second::step])
    assert torch.equal(same, below)


@pytest.mark.parametrize("stem", [False, True])
def test_slabs_give_what_the_whole_gives(stem, monkeypatch):
    monkeypatch.setattr(unet, "SLAB_VOXELS", 50)
    net, picture = network(replace(COARSE, stem=stem)), image(16, 24, 8)
    with torch.no_grad():
        found = net(picture)
    torch.testing.assert_close(found, net(picture).detach())


def test_instances_are_normalised_alone():
    layer, picture = unet._norm("instance", 2), image(4, 6, 8) * 5 + 3
    torch.testing.assert_close(layer(picture), torch.nn.functional.instance_norm(picture))


def test_a_product_of_matrices_is_the_convolution():
    layer, picture = unet.Pointwise(2, 5), image(4, 6, 8)
    expected = torch.nn.functional.conv3d(picture, layer.weight, layer.bias)
    torch.testing.assert_close(layer(picture), expected)
