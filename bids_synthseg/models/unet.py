"""A U-Net that sees the image at every scale and answers at every scale.

Each encoder level receives the average-pooled input beside the pooled features of the level above;
each decoder level adds its own logits to the upsampled logits of the level below, as a Laplacian
pyramid does. A trained network can therefore `grow` a finer level that at first changes nothing,
so that training starts on a coarse grid, where steps are cheap, and moves on without a plateau
(models.growth). Skip connections add instead of concatenating: half the multiplications of the
costly fine levels.

With a stem the finest level works on a grid half as fine as the image: it sees the eight voxels of
a cube as channels of one, and answers for each of them (sub-pixel convolution, Shi et al. 2016). So
it can afford several times the features in the same time.

With evidence the finest level is also told how well each voxel fits the intensities that classes
have in this image, judged by where the coarser levels see them (models.evidence).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from bids_synthseg.models.evidence import class_gaussians, fit
from bids_synthseg.models.inputs import INTENSITIES

NORMS = ("instance", "group", "none")
ACTIVATIONS = ("leaky_relu", "elu", "relu")

STEM = 8
"""Voxels of the image in one of a network's stem."""


@dataclass(frozen=True)
class NetworkConfig:
    """Architecture: `features` and `convs` (encoder convolutions) per level from fine to coarse,
    `channels_in` -> `channels_out`; `stem`: the finest level is half as fine as the image;
    `residual`: every block's input is added to its output; `evidence`: the first so many channels
    out are classes whose intensities the finest level is told of."""

    features: tuple[int, ...] = (16, 24, 48, 96, 128)
    channels_in: int = 4
    channels_out: int = 21
    convs: tuple[int, ...] = (1, 2, 2, 2, 2)
    kernel: int = 3
    norm: str = "instance"
    activation: str = "leaky_relu"
    intensity: str = "rank"
    stem: bool = False
    residual: bool = False
    evidence: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(int(f) for f in self.features))
        object.__setattr__(self, "convs", tuple(int(c) for c in self.convs))
        if not self.features or len(self.features) != len(self.convs):
            raise ValueError("features and convs: one number per level, at least one level")
        if self.norm not in NORMS or self.activation not in ACTIVATIONS:
            raise ValueError(f"norm must be one of {NORMS}, activation one of {ACTIVATIONS}")
        if self.intensity not in INTENSITIES:
            raise ValueError(f"intensity must be one of {INTENSITIES}, not {self.intensity!r}")
        if self.evidence and (
            not 0 < self.evidence <= self.channels_out or len(self.features) == 1
        ):
            raise ValueError("evidence: at most channels_out, and 0 for a network of one level")
        if self.kernel % 2 == 0 or min(*self.features, *self.convs) < 1:
            raise ValueError("kernel must be odd, features and convs at least 1")

    @property
    def divisor(self) -> int:
        """Every side of the input must be a multiple of this."""
        return 2 ** (len(self.features) - 1 + self.stem)


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


class _Residual(nn.Sequential):
    """Layers whose input, through a 1x1x1 convolution, is added to their output."""

    def __init__(self, layers: list[nn.Module], channels_in: int, features: int) -> None:
        super().__init__(*layers)
        self.short = nn.Conv3d(channels_in, features, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        result = image
        for name, layer in self.named_children():
            result = result + self.short(image) if name == "short" else layer(result)
        return result


def _block(config: NetworkConfig, channels_in: int, features: int, convs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    first = channels_in
    for _ in range(convs):
        layers += [
            nn.Conv3d(channels_in, features, config.kernel, padding=config.kernel // 2),
            _norm(config.norm, features),
            _activation(config.activation),
        ]
        channels_in = features
    return _Residual(layers, first, features) if config.residual else nn.Sequential(*layers)


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
        self.evidence = nn.ModuleList()
        if config.evidence:
            fits = config.evidence * (STEM if config.stem else 1)
            self.evidence.append(nn.Conv3d(fits, features[0], 1, bias=False))
        for level, width in enumerate(features):
            above = features[level - 1] if level else 0
            voxels = STEM if config.stem and level == 0 else 1
            self.encoders.append(
                _block(config, config.channels_in * voxels + above, width, config.convs[level])
            )
            self.heads.append(nn.Conv3d(width, config.channels_out * voxels, 1))
            if level + 1 < len(features):
                self.laterals.append(nn.Conv3d(features[level + 1], width, 1))
                self.decoders.append(_block(config, width, width, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.pyramid(image)[0]

    def pyramid(self, image: torch.Tensor) -> list[torch.Tensor]:
        """The answer of every level, finest first: (B, channels_out, ...) logits on its grid, that
        of the image for the first.

        The first is that of `forward`; each of the others is what the level above adds to.
        """
        skips: list[torch.Tensor] = []
        pooled = None
        scaled = F.avg_pool3d(image, 2) if self.config.stem else image
        for encoder in self.encoders:
            if pooled is None:
                inputs = cubes_to_channels(image) if self.config.stem else image
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
            if level == 0 and self.config.evidence:
                raised = raised + self.evidence[0](self._fits(image[:, :1], answers[0]))
            features = self.decoders[level](skips[level] + raised)
            answer = self.heads[level](features)
            if level == 0 and self.config.stem:
                answers.insert(0, channels_to_cubes(answer) + upsample(answers[0], 4))
            else:
                answers.insert(0, answer + upsample(answers[0]))
        if self.config.stem and len(answers) == 1:
            answers = [channels_to_cubes(answers[0])]
        return answers

    def _fits(self, image: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """How well each voxel of the image (B, 1, X, Y, Z) fits each class, voxels of a cube as
        channels with a stem, given the answer of the next coarser level."""
        logits = coarse[:, : self.config.evidence].detach().float()
        prior = (upsample(logits) if self.config.stem else logits).softmax(1)
        mean, sd = class_gaussians(image[:, 0].float(), prior)
        voxels = cubes_to_channels(image) if self.config.stem else image
        shape = (*mean.shape, 1, 1, 1)
        return fit(voxels[:, None], mean.view(shape), sd.view(shape)).flatten(1, 2)

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


def upsample(logits: torch.Tensor, factor: int = 2) -> torch.Tensor:
    """Trilinear by a factor; voxel centres keep their place."""
    return F.interpolate(logits, scale_factor=factor, mode="trilinear", align_corners=False)


def cubes_to_channels(image: torch.Tensor) -> torch.Tensor:
    """(B, C, X, Y, Z) -> (B, 8 C, X / 2, Y / 2, Z / 2): channel 8 c + 4 i + 2 j + k holds the
    voxels (2 x + i, 2 y + j, 2 z + k) of channel c."""
    halves = image.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return halves.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def channels_to_cubes(image: torch.Tensor) -> torch.Tensor:
    """(B, 8 C, X, Y, Z) -> (B, C, 2 X, 2 Y, 2 Z): the inverse of `cubes_to_channels`."""
    parts = image.unflatten(1, (-1, 2, 2, 2)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return parts.flatten(6, 7).flatten(4, 5).flatten(2, 3)
