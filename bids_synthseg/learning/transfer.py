"""Training that starts from a model: of other labels, of more or fewer levels, in part frozen.

So a network trained on adults, of whom there are many label maps, goes on with infants.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from bids_synthseg.models.checkpoint import Model
from bids_synthseg.models.growth import (
    add_evidence,
    add_stem,
    drop_evidence,
    drop_stem,
    grow,
    shrink,
    widen,
)
from bids_synthseg.models.heads import Head
from bids_synthseg.models.unet import NetworkConfig, UNet

SIDE = "left or right"
"""Name of the side channel of a sided head."""

FREEZABLE: dict[str, Callable[[str, int], bool]] = {
    "encoder": lambda room, level: room == "encoders",
    "coarse": lambda room, level: level > 0,
    "all_but_head": lambda room, level: room != "heads",
}
"""Parts of a network that can stay as they are: what looks at the image, all but the finest level,
all but what turns features into logits. Each says whether a room's level belongs to it."""


@dataclass(frozen=True)
class Transfer:
    """A network that has begun as another one, and the names of the head's channels: `moved`
    there, `fresh` in the new head, `dropped` from the old one."""

    network: UNet
    moved: tuple[str, ...]
    fresh: tuple[str, ...]
    dropped: tuple[str, ...]

    @property
    def line(self) -> str:
        """What happened, in one line."""
        lists = (("fresh", self.fresh), ("dropped", self.dropped))
        told = "".join(f"; {word}: {', '.join(names)}" for word, names in lists if names)
        return f"{len(self.moved)} of {len(self.moved) + len(self.fresh)} channels moved{told}"


def start_network(model: Model, wanted: NetworkConfig, head: Head) -> Transfer:
    """A network of architecture `wanted` for `head` that begins with the weights of `model`.

    Finer levels are grown or dropped, a stem is put on or taken off, levels become wider where
    that is wanted; the rest has to agree. A joint head's channels move by
    the name of their label, all others by that of their structure: between heads of different kinds
    both sides begin alike, as the mean of what the structure had, and tell left from right anew.
    Channels that nothing moves to begin as in a new network. Raises ValueError, one line, where the
    architectures do not fit.
    """
    _check_fit(model.network.config, wanted)
    network = model.network
    if not _same_finest(network.config, wanted):
        network = drop_evidence(network) if network.config.evidence else network
        network = drop_stem(network) if network.config.stem else network
    network, sources = _with_head(network, model.head, head)
    while len(network.config.features) > len(wanted.features):
        network = shrink(network)
    shared = len(network.config.features)
    if network.config.features != wanted.features[-shared:]:
        generator = torch.Generator().manual_seed(shared)
        network = widen(network, wanted.features[-shared:], generator)
    while len(network.config.features) < len(wanted.features):
        level = len(wanted.features) - len(network.config.features) - 1
        network = grow(network, wanted.features[level], wanted.convs[level])
    if wanted.stem and not network.config.stem:
        network = add_stem(network)
    if wanted.evidence and not network.config.evidence:
        network = add_evidence(network, wanted.evidence)
    if network.config != wanted:
        raise ValueError(f"network.channels_out is {wanted.channels_out}, not {head.n_channels}")
    names, old_names = _channel_names(head), _channel_names(model.head)
    used = {channel for channels in sources for channel in channels}
    return Transfer(
        network,
        moved=tuple(name for name, found in zip(names, sources, strict=True) if found),
        fresh=tuple(name for name, found in zip(names, sources, strict=True) if not found),
        dropped=tuple(name for channel, name in enumerate(old_names) if channel not in used),
    )


def freeze(network: UNet, parts: tuple[str, ...]) -> None:
    """Let training leave the weights of these parts, keys of FREEZABLE, as they are.

    Raises ValueError for an unknown part.
    """
    for part in parts:
        if part not in FREEZABLE:
            raise ValueError(f"freeze: no part is named {part!r}; known are {', '.join(FREEZABLE)}")
    for name, value in network.named_parameters():
        room, level, _ = name.split(".", 2)
        if any(FREEZABLE[part](room, int(level)) for part in parts):
            value.requires_grad_(False)


def _check_fit(given: NetworkConfig, wanted: NetworkConfig) -> None:
    for name in ("channels_in", "kernel", "norm", "activation", "intensity", "residual"):
        if getattr(given, name) != getattr(wanted, name):
            raise ValueError(
                f"a model of another architecture: its {name} is {getattr(given, name)!r}, that of "
                f"the configuration {getattr(wanted, name)!r}"
            )
    shared = min(len(given.features), len(wanted.features))
    have, want = given.convs, wanted.convs
    if have[-shared:] != want[-shared:]:
        raise ValueError(
            f"a model of another architecture: its convs are {list(have)}, those of the "
            f"configuration {list(want)}; only the first, of finer levels, may lack or be more"
        )
    pairs = zip(given.features[-shared:], wanted.features[-shared:], strict=True)
    if any(wide < narrow for narrow, wide in pairs):
        raise ValueError(
            f"a model of another architecture: its features are {list(given.features)}, those of "
            f"the configuration {list(wanted.features)}; a level may become wider, not narrower"
        )


def _same_finest(given: NetworkConfig, wanted: NetworkConfig) -> bool:
    """Whether what only the finest level has can stay as it is."""
    return (given.features, given.stem) == (wanted.features, wanted.stem)


def _with_head(given: UNet, old: Head, head: Head) -> tuple[UNet, list[list[int]]]:
    """The network with the channels of `head`, and the channels of `old` each came from."""
    by_label = head.kind == old.kind == "joint"
    old_keys = _channel_names(old, by_label)
    keys = _channel_names(head, by_label)
    sources = [[c for c, was in enumerate(old_keys) if was == key] for key in keys]
    told = head.n_classes if given.config.evidence else 0
    network = UNet(replace(given.config, channels_out=head.n_channels, evidence=told))
    state = given.state_dict()
    fresh = network.state_dict()
    for name in state:
        if name.startswith("heads."):
            # With a stem a channel has a row for each voxel of a cube.
            voxels = len(state[name]) // old.n_channels
            was, new = (one[name].unflatten(0, (-1, voxels)) for one in (state, fresh))
            rows = [
                was[channels].mean(0) if channels else new[row]
                for row, channels in enumerate(sources)
            ]
            state[name] = torch.cat(rows)
        if name.startswith("evidence."):
            was = state[name].unflatten(1, (given.config.evidence, -1))
            known = [[c for c in channels if c < was.shape[1]] for channels in sources[:told]]
            columns = [
                was[:, channels].mean(1) if channels else torch.zeros_like(was[:, 0])
                for channels in known
            ]
            state[name] = torch.cat(columns, dim=1)
    network.load_state_dict(state)
    return network, sources


def _channel_names(head: Head, by_label: bool = True) -> tuple[str, ...]:
    """(n,) names of the channels: of structures, or of a joint head's labels where asked."""
    if head.kind == "sided":
        return (*head.table.structures, SIDE)
    return tuple(row.name if by_label else row.structure for row in head.table.rows)
