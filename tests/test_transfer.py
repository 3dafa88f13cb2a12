"""Starting from a model: channels move by name, levels come and go, parts stay frozen."""

import pytest
import torch
import torch.nn.functional as F

from bids_synthseg.anatomy.labels import Label, LabelTable
from bids_synthseg.learning.transfer import freeze, start_network
from bids_synthseg.models.checkpoint import Model
from bids_synthseg.models.growth import drop_stem
from bids_synthseg.models.heads import Head
from bids_synthseg.models.unet import NetworkConfig, UNet, upsample

LEVELS = {"features": (6, 8), "channels_in": 2, "convs": (1, 2)}


def label(index: int, name: str, structure: str, side: str = "midline", mirror: int = -1) -> Label:
    mirror = index if mirror < 0 else mirror
    return Label(index, name, name, "#000000", 0, structure, side, mirror, index)


BACKGROUND = label(0, "Background", "background")
WHITE = (label(2, "Left-White", "white", "left", 41), label(41, "Right-White", "white", "right", 2))
FLUID, STEM = label(24, "CSF", "fluid"), label(16, "Stem", "stem")
ADULT = LabelTable((BACKGROUND, *WHITE, STEM))
INFANT = LabelTable((BACKGROUND, FLUID, WHITE[1], WHITE[0]))


def config_of(head: Head, **changes) -> NetworkConfig:
    return NetworkConfig(**{**LEVELS, "channels_out": head.n_channels, **changes})


def model_of(head: Head, **changes) -> Model:
    torch.manual_seed(0)
    return Model(UNet(config_of(head, **changes)), head, (8, 8, 8), 0.9)


def image() -> torch.Tensor:
    return torch.randn((1, 2, 8, 12, 16), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["sided", "joint"])
def test_the_same_head_and_levels_give_the_same_network(kind):
    model = model_of(Head(ADULT, kind))
    started = start_network(model, model.network.config, model.head)
    with torch.no_grad():
        assert torch.equal(started.network(image()), model.network(image()))
    assert (started.fresh, started.dropped) == ((), ())
    assert started.line == "4 of 4 channels moved"


@pytest.mark.parametrize(
    ("kind", "pairs"),
    [
        # (new, old): sided ADULT is background, white, stem, side; INFANT background, fluid, ...
        ("sided", [(0, 0), (2, 1), (3, 3)]),
        # joint ADULT is background, left, right, stem; INFANT background, fluid, right, left.
        ("joint", [(0, 0), (2, 2), (3, 1)]),
    ],
)
def test_channels_move_by_name(kind, pairs):
    model = model_of(Head(ADULT, kind))
    head = Head(INFANT, kind)
    started = start_network(model, config_of(head), head)
    with torch.no_grad():
        now, before = (n.pyramid(image()) for n in (started.network, model.network))
    new, old = map(list, zip(*pairs, strict=True))
    for answer, given in zip(now, before, strict=True):
        torch.testing.assert_close(answer[:, new], given[:, old])
    assert now[0][:, 1].std() > 0, "fluid begins as in a new network"
    assert started.fresh == (("fluid",) if kind == "sided" else ("CSF",))
    assert started.dropped == (("stem",) if kind == "sided" else ("Stem",))
    assert started.line.startswith("3 of 4 channels moved; fresh: ")


def test_labels_of_a_joint_head_begin_as_their_structure():
    model, head = model_of(Head(ADULT)), Head(INFANT, "joint")
    started = start_network(model, config_of(head), head)
    with torch.no_grad():
        now, before = started.network(image()), model.network(image())
    torch.testing.assert_close(now[:, [0, 2, 3]], before[:, [0, 1, 1]])
    assert started.moved == ("Background", "Right-White", "Left-White")
    assert started.dropped == ("stem", "left or right")


def test_structures_of_a_sided_head_begin_as_the_mean_of_their_labels():
    model, head = model_of(Head(ADULT, "joint")), Head(INFANT)
    started = start_network(model, config_of(head), head)
    with torch.no_grad():
        now, before = started.network(image()), model.network(image())
    torch.testing.assert_close(now[:, 2], (before[:, 1] + before[:, 2]) / 2)
    assert started.fresh == ("fluid", "left or right")


def test_levels_are_grown_on_top_of_other_labels():
    model, head = model_of(Head(ADULT)), Head(INFANT)
    wanted = config_of(head, features=(3, 4, 6, 8), convs=(1, 1, 1, 2))
    picture = F.interpolate(image(), scale_factor=4)
    with torch.no_grad():
        now = start_network(model, wanted, head).network(picture)
        before = upsample(upsample(model.network(image())))
    torch.testing.assert_close(now[:, [0, 2, 3]], before[:, [0, 1, 3]], atol=1e-5, rtol=0)


def test_levels_are_dropped():
    model = model_of(Head(ADULT), features=(3, 6, 8), convs=(2, 1, 2))
    started = start_network(model, config_of(model.head), model.head)
    given = model.network.state_dict()
    for name in ("encoders.1.0", "heads.0", "laterals.0"):
        room, level, *rest = name.split(".")
        old = ".".join([room, str(int(level) + 1), *rest])
        found = started.network.state_dict()[f"{name}.weight"]
        assert torch.equal(found, given[f"{old}.weight"])


@pytest.mark.parametrize("stem", [False, True])
def test_levels_become_wider_and_get_a_stem(stem):
    model = model_of(Head(ADULT), stem=stem)
    wanted = config_of(Head(ADULT), features=(9, 12), stem=True)
    started = start_network(model, wanted, Head(ADULT))
    assert started.network.config == wanted
    picture = torch.randn((1, 2, 16, 8, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        answer = F.avg_pool3d(started.network(picture), 2)
        coarse = drop_stem(model.network) if stem else model.network
        expected = coarse(F.avg_pool3d(picture, 2))
    torch.testing.assert_close(answer, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["sided", "joint"])
def test_the_same_stem_and_evidence_give_the_same_network(kind):
    head = Head(ADULT, kind)
    model = model_of(head, stem=True, evidence=head.n_classes)
    started = start_network(model, model.network.config, head)
    picture = torch.randn((1, 2, 16, 8, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(started.network(picture), model.network(picture))


def test_evidence_of_a_structure_moves_by_name():
    old, new = Head(ADULT), Head(INFANT)
    model = model_of(old, evidence=old.n_classes)
    started = start_network(model, config_of(new, evidence=new.n_classes), new)
    was, now = (net.evidence[0].weight[:, :, 0, 0, 0] for net in (model.network, started.network))
    # ADULT is background, white, stem; INFANT background, fluid, white.
    assert torch.equal(now[:, 0], was[:, 0]) and torch.equal(now[:, 2], was[:, 1])
    assert not now[:, 1].any()


def test_the_model_itself_stays_as_it_is():
    model, head = model_of(Head(ADULT)), Head(INFANT)
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    started = start_network(model, config_of(head), head)
    with torch.no_grad():
        for value in started.network.parameters():
            value += 1
    assert all(torch.equal(v, before[n]) for n, v in model.network.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"norm": "group"}, "its norm is 'instance'.*'group'"),
        ({"intensity": "range"}, "its intensity is 'rank'"),
        ({"features": (6, 7)}, r"its features are \[6, 8\], those of the configuration \[6, 7\]"),
        ({"residual": True}, "its residual is False"),
        ({"features": (5, 8), "convs": (1, 2)}, "its features"),
        ({"features": (4, 6, 8), "convs": (1, 1, 1)}, r"its convs are \[1, 2\]"),
        ({"channels_out": 9}, "channels_out is 9, not 4"),
    ],
)
def test_another_architecture_is_refused_in_one_line(changes, complaint):
    model, head = model_of(Head(ADULT)), Head(INFANT)
    with pytest.raises(ValueError, match=complaint) as raised:
        start_network(model, config_of(head, **changes), head)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("parts", "moving"),
    [
        ((), {"encoders.0", "encoders.1", "laterals.0", "decoders.0", "heads.0", "heads.1"}),
        (("encoder",), {"laterals.0", "decoders.0", "heads.0", "heads.1"}),
        (("coarse",), {"encoders.0", "laterals.0", "decoders.0", "heads.0"}),
        (("all_but_head",), {"heads.0", "heads.1"}),
        (("coarse", "all_but_head"), {"heads.0"}),
    ],
)
def test_a_step_moves_only_what_is_not_frozen(parts, moving):
    network = model_of(Head(ADULT)).network
    freeze(network, parts)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(image()).square().mean().backward()
    torch.optim.Adam(network.parameters(), lr=0.1).step()
    changed = {n for n, value in network.state_dict().items() if not torch.equal(value, before[n])}
    assert {".".join(name.split(".")[:2]) for name in changed} == moving


def test_an_unknown_part_is_named_and_nothing_frozen():
    network = model_of(Head(ADULT)).network
    with pytest.raises(ValueError, match="'decoder'; known are encoder, coarse, all_but_head"):
        freeze(network, ("encoder", "decoder"))
    assert all(value.requires_grad for value in network.parameters())
