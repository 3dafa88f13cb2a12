"""Networks that begin as others, with the same answers: a finer level, wider levels, a stem or
evidence.

Every function returns a new network and leaves the given one as it is.
"""

from dataclasses import replace

import torch

from bids_synthseg.models.unet import STEM, NetworkConfig, UNet


def grow(coarse: UNet, features: int, convs: int) -> UNet:
    """The same network with one finer level of `features` and `convs`.

    Its output is at first the upsampled output that `coarse` has for the average-pooled input: the
    new level's head and the coarse network's weights for the new features start at zero. Raises
    ValueError for a network with a stem or evidence, which belong to the finest level.
    """
    config = coarse.config
    if config.stem or config.evidence:
        raise ValueError("take off stem and evidence first: drop_stem, drop_evidence")
    fine = UNet(
        replace(config, features=(features, *config.features), convs=(convs, *config.convs))
    )
    state = fine.state_dict()
    for name, value in coarse.state_dict().items():
        room, level, rest = name.split(".", 2)
        moved = f"{room}.{int(level) + 1}.{rest}"
        if state[moved].shape == value.shape:
            state[moved] = value
        else:
            state[moved] = torch.zeros_like(state[moved])
            state[moved][:, : value.shape[1]] = value
    for name in ("heads.0.weight", "heads.0.bias"):
        state[name] = torch.zeros_like(state[name])
    fine.load_state_dict(state)
    return fine


def shrink(fine: UNet) -> UNet:
    """The same network without its finest level: what `grow` grew from.

    Of the next level's weights, those for the features of the lost level are left out. Raises
    ValueError where there is but one level.
    """
    config = fine.config
    if len(config.features) == 1:
        raise ValueError("a network of one level has none to lose")
    coarse = UNet(replace(config, features=config.features[1:], convs=config.convs[1:]))
    given = fine.state_dict()
    state = {}
    for name, value in coarse.state_dict().items():
        room, level, rest = name.split(".", 2)
        weights = given[f"{room}.{int(level) + 1}.{rest}"]
        state[name] = weights if weights.shape == value.shape else weights[:, : value.shape[1]]
    coarse.load_state_dict(state)
    return coarse


def add_stem(coarse: UNet) -> UNet:
    """The same network for images twice as fine: its finest level sees eight voxels as one.

    At first it gives all eight the logits that `coarse` has for their mean.
    """
    fine = UNet(replace(coarse.config, stem=True))
    state = coarse.state_dict()
    for name in _FIRST & state.keys():
        state[name] = state[name].repeat_interleave(STEM, dim=1) / STEM
    for name in _HEAD:
        state[name] = state[name].repeat_interleave(STEM, dim=0)
    fine.load_state_dict(state)
    return fine


def drop_stem(fine: UNet) -> UNet:
    """The same network for images half as fine: what `add_stem` was given."""
    coarse = UNet(replace(fine.config, stem=False))
    state = fine.state_dict()
    for name in _FIRST & state.keys():
        state[name] = state[name].unflatten(1, (-1, STEM)).sum(2)
    for name in _HEAD:
        state[name] = state[name].unflatten(0, (-1, STEM)).mean(1)
    coarse.load_state_dict(state)
    return coarse


_FIRST = {"encoders.0.0.weight", "encoders.0.short.weight"}
_HEAD = ("heads.0.weight", "heads.0.bias")


def add_evidence(plain: UNet, classes: int) -> UNet:
    """The same network that is told of the intensities of its first `classes` channels, and does
    not heed them yet."""
    told = UNet(replace(plain.config, evidence=classes))
    state = plain.state_dict()
    state["evidence.0.weight"] = torch.zeros_like(told.evidence[0].weight)
    told.load_state_dict(state)
    return told


def drop_evidence(told: UNet) -> UNet:
    """The same network without what `add_evidence` added."""
    plain = UNet(replace(told.config, evidence=0))
    plain.load_state_dict({k: v for k, v in told.state_dict().items() if "evidence" not in k})
    return plain


def widen(narrow: UNet, features: tuple[int, ...], generator: torch.Generator) -> UNet:
    """The same network with more features per level, which begin as copies of those there are.

    What a feature gave on, its copies give on in random shares, so that they soon differ
    (Net2WiderNet, Chen et al. 2016). Raises ValueError where a level would become narrower, and for
    a network with a stem or evidence.
    """
    config = narrow.config
    if config.stem or config.evidence:
        raise ValueError("take off stem and evidence first: drop_stem, drop_evidence")
    if len(features) != len(config.features):
        raise ValueError(f"features: {len(config.features)} levels, not {len(features)}")
    if any(new < old for new, old in zip(features, config.features, strict=True)):
        raise ValueError(f"features {list(features)}: none may be below {list(config.features)}")
    wide = UNet(replace(config, features=features))
    origins = [torch.arange(new) % old for new, old in zip(features, config.features, strict=True)]
    state = {}
    for name, value in narrow.state_dict().items():
        room, number, rest = name.split(".", 2)
        level = int(number)
        if room != "heads":
            value = value[origins[level]]
        if value.ndim == 5:
            for start, source in _inputs(config, room, level, rest):
                value = _shared(value, start, origins[source], config.features[source], generator)
        state[name] = value
    wide.load_state_dict(state)
    return wide


def _inputs(config: NetworkConfig, room: str, level: int, rest: str) -> list[tuple[int, int]]:
    """Where among a convolution's inputs features of a level begin, and of which level."""
    if room == "laterals":
        return [(0, level + 1)]
    if room == "encoders" and rest in ("0.weight", "short.weight"):
        return [(config.channels_in, level - 1)] if level else []
    return [(0, level)]


def _shared(
    weight: torch.Tensor, start: int, origin: torch.Tensor, n_old: int, generator: torch.Generator
) -> torch.Tensor:
    """The inputs from `start` on, one for each of `origin`, with the weights of a feature shared
    at random among its copies: (O, I, ...) -> (O, start + len(origin), ...)."""
    chances = torch.rand(len(weight), len(origin), generator=generator) + 0.5
    totals = torch.zeros(len(weight), n_old).index_add_(1, origin, chances)
    shares = (chances / totals[:, origin])[:, :, None, None, None]
    return torch.cat([weight[:, :start], weight[:, start:][:, origin] * shares], dim=1)
