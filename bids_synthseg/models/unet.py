"""A U-Net that sees the image at every scale and answers at every scale.

Each encoder level receives the average-pooled input beside the pooled features of the level above;
each decoder level adds its own logits to the upsampled logits of the level below, as a Laplacian
pyramid does. A trained network can therefore `grow` a finer level that at first changes nothing,
so that training starts on a coarse grid, where steps are cheap, and moves on without a plateau; and
it can `shrink` by one. Skip connections add instead of concatenating: half the multiplications of
the costly fine levels.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from bids_synthseg.models.inputs import INTENSITIES

NORMS = ("instance", "group", "none")
ACTIVATIONS = ("leaky_relu", "elu", "relu")


@dataclass(frozen=True)
class NetworkConfig:
    """Architecture: `features` and `convs` (encoder convolutions) per level from fine to coarse,
    `channels_in` -> `channels_out`."""

    features: tuple[int, ...] = (16, 24, 48, 96, 128)
    channels_in: int = 4
    channels_out: int = 21
    convs: tuple[int, ...] = (1, 2, 2, 2, 2)
    kernel: int = 3
    norm: str = "instance"
    activation: str = "leaky_relu"
    intensity: str = "rank"

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(int(f) for f in self.features))
        object.__setattr__(self, "convs", tuple(int(c) for c in self.convs))
        if not self.features or len(self.features) != len(self.convs):
            raise ValueError("features and convs: one number per level, at least one level")
        if self.norm not in NORMS or self.activation not in ACTIVATIONS:
            raise ValueError(f"norm must be one of {NORMS}, activation one of {ACTIVATIONS}")
        if self.intensity not in INTENSITIES:
            raise ValueError(f"intensity must be one of {INTENSITIES}, not {self.intensity!r}")
        if self.kernel % 2 == 0 or min(*self.features, *self.convs) < 1:
            raise ValueError("kernel must be odd, features and convs at least 1")

    @property
    def divisor(self) -> int:
        """Every side of the input must be a multiple of this."""
        return 2 ** (len(self.features) - 1)


def _activation(name: str) -> nn.Module:
    return {
        "leaky_relu": lambda: nn.LeakyReLU(0.01, inplace=True),
        "elu": lambda: nn.ELU(inplace=True),
        "relu": lambda: nn.ReLU(inplace=True),
    }[name]()


def _norm(name: str, features: int) -> nn.Module:
    if name == "instance":
        return nn.InstanceNorm3d(features, affine=True)
    if name == "group":
        return nn.GroupNorm(max(1, features // 8), features)
    return nn.Identity()


def _block(config: NetworkConfig, channels_in: int, features: int, convs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(convs):
        layers += [
            nn.Conv3d(channels_in, features, config.kernel, padding=config.kernel // 2),
            _norm(config.norm, features),
            _activation(config.activation),
        ]
        channels_in = features
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """(B, channels_in, X, Y, Z) -> (B, channels_out, X, Y, Z) logits."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        features = config.features
        self.encoders = nn.ModuleList()
        self.laterals = nn.ModuleList()
        self.decoders = nn.ModuleList()
        self.heads = nn.ModuleList()
        for level, width in enumerate(features):
            above = features[level - 1] if level else 0
            self.encoders.append(
                _block(config, config.channels_in + above, width, config.convs[level])
            )
            self.heads.append(nn.Conv3d(width, config.channels_out, 1))
            if level + 1 < len(features):
                self.laterals.append(nn.Conv3d(features[level + 1], width, 1))
                self.decoders.append(_block(config, width, width, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.pyramid(image)[0]

    def pyramid(self, image: torch.Tensor) -> list[torch.Tensor]:
        """The answer on every level's grid, finest first: (B, channels_out, X / 2^l, ...) logits.

        The first is that of `forward`; each of the others is what the level above adds to.
        """
        skips = []
        pooled = None
        for encoder in self.encoders:
            if pooled is None:
                scaled, inputs = image, image
            else:
                scaled = F.avg_pool3d(scaled, 2)
                inputs = torch.cat([scaled, pooled], dim=1)
            skips.append(encoder(inputs))
            if len(skips) < len(self.encoders):
                pooled = F.max_pool3d(skips[-1], 2)
        features = skips[-1]
        answers = [self.heads[-1](features)]
        for level in range(len(self.decoders) - 1, -1, -1):
            raised = F.interpolate(self.laterals[level](features), scale_factor=2, mode="nearest")
            features = self.decoders[level](skips[level] + raised)
            answers.insert(0, self.heads[level](features) + upsample(answers[0]))
        return answers

    def by_level(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters of the finest level, and those of all others."""
        named = [(name.split(".")[1] == "0", value) for name, value in self.named_parameters()]
        return [v for finest, v in named if finest], [v for finest, v in named if not finest]


class Pyramid(nn.Module):
    """A network that answers on every level when it is called.

    For training: DistributedDataParallel and torch.compile see no other method than `forward`.
    """

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return self.network.pyramid(image)


def upsample(logits: torch.Tensor) -> torch.Tensor:
    """Trilinear by a factor of 2; voxel centres keep their place."""
    return F.interpolate(logits, scale_factor=2, mode="trilinear", align_corners=False)


def grow(coarse: UNet, features: int, convs: int) -> UNet:
    """The same network with one finer level of `features` and `convs`.

    Its output is at first the upsampled output that `coarse` has for the average-pooled input: the
    new level's head and the coarse network's weights for the new features start at zero.
    """
    config = coarse.config
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
