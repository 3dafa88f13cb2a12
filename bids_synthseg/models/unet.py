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
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from bids_synthseg.fields import check_ranges
from bids_synthseg.models.evidence import class_gaussians, fit_table, looked_up
from bids_synthseg.models.inputs import INTENSITIES

NORMS = ("instance", "group", "none")
ACTIVATIONS = ("leaky_relu", "elu", "relu")

STEM = 8
"""Voxels of the image in one of a network's stem."""

SLAB_VOXELS = 30_000
"""Voxels of the finest level whose answers are made at once where no gradient is asked for: they
stay in the cache until they stand in the result."""

MOST_LEVELS = 8
"""The coarsest of 8 sees 128 voxels of the image as one."""

_RANGES = {
    "features": (1, 2048),
    "channels_in": (1, 64),
    "channels_out": (1, 1024),
    "convs": (1, 16),
    "kernel": (1, 9),
    "evidence": (0, 1024),
}


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
        object.__setattr__(self, "features", tuple(self.features))
        object.__setattr__(self, "convs", tuple(self.convs))
        check_ranges(self, _RANGES)
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
        if self.kernel % 2 == 0:
            raise ValueError("kernel must be odd")
        if len(self.features) > MOST_LEVELS:
            raise ValueError(f"features: at most {MOST_LEVELS} levels")

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
        # Groups of one channel are instances; on a CPU this kernel is several times faster.
        return nn.GroupNorm(features, features)
    if name == "group":
        return nn.GroupNorm(max(1, features // 8), features)
    return nn.Identity()


class Pointwise(nn.Conv3d):
    """A 1x1x1 convolution as a product of matrices, channels last in memory.

    On a CPU the kernel for convolutions is slower, and on one thread several times so.
    """

    def __init__(self, channels_in: int, channels_out: int, bias: bool = True) -> None:
        super().__init__(channels_in, channels_out, 1, bias=bias)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        product = F.linear(image.movedim(1, -1), self.weight.flatten(1), self.bias)
        return product.movedim(-1, 1)


class _Residual(nn.Sequential):
    """Layers whose input, through a 1x1x1 convolution, is added to their output."""

    def __init__(self, layers: list[nn.Module], channels_in: int, features: int) -> None:
        super().__init__(*layers)
        self.short = Pointwise(channels_in, features)

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
            self.evidence.append(Pointwise(fits, features[0], bias=False))
        for level, width in enumerate(features):
            above = features[level - 1] if level else 0
            voxels = STEM if config.stem and level == 0 else 1
            self.encoders.append(
                _block(config, config.channels_in * voxels + above, width, config.convs[level])
            )
            self.heads.append(Pointwise(width, config.channels_out * voxels))
            if level + 1 < len(features):
                self.laterals.append(Pointwise(features[level + 1], width))
                self.decoders.append(_block(config, width, width, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.pyramid(image)[0]

    def pyramid(self, image: torch.Tensor, lattice: "Lattice | None" = None) -> list[torch.Tensor]:
        """The answer of every level, finest first: (B, channels_out, ...) logits on its grid, that
        of the image for the first.

        The first is that of `forward`; each of the others is what the level above adds to.
        `lattice`: the places at which the first is wanted, all by default.
        """
        config = self.config
        image = image.contiguous(memory_format=torch.channels_last_3d)
        # Encoder: from fine to coarse.
        skips: list[torch.Tensor] = []
        pooled = None
        scaled = F.avg_pool3d(image, 2) if config.stem else image
        for encoder in self.encoders:
            if pooled is None:
                inputs = cubes_to_channels(image) if config.stem else image
            else:
                scaled = F.avg_pool3d(scaled, 2)
                inputs = torch.cat([scaled, pooled], dim=1)
            skips.append(encoder(inputs))
            if len(skips) < len(self.encoders):
                pooled = F.max_pool3d(skips[-1], 2)
        # Decoder: from coarse to fine, each level but the finest with its answer.
        features = skips[-1]
        answers: list[torch.Tensor] = []
        for level in range(len(self.encoders) - 1, 0, -1):
            answer = self.heads[level](features)
            answers.insert(0, answer + upsample(answers[0]) if answers else answer)
            raised = F.interpolate(
                self.laterals[level - 1](features), scale_factor=2, mode="nearest"
            )
            if level == 1 and config.evidence:
                raised = raised + self._heard(image[:, :1], answers[0]).to(raised.dtype)
            features = self.decoders[level - 1](skips[level - 1] + raised)
        coarse = answers[0] if answers else None
        return [self._finest(features, coarse, lattice or Lattice()), *answers]

    def _heard(self, image: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """The finest level's features from evidence: how well each voxel of the image
        (B, 1, X, Y, Z) fits each class, given the answer of the next coarser level."""
        logits = coarse[:, : self.config.evidence].detach().float()
        prior = (upsample(logits) if self.config.stem else logits).softmax(1)
        mean, sd = class_gaussians(image[:, 0].float(), prior)
        voxels = cubes_to_channels(image) if self.config.stem else image
        values, tables = fit_table(voxels.float(), mean, sd)
        # (F, K, C) weights: what each voxel of a cube says of each class.
        weight = (
            cast(Pointwise, self.evidence[0]).weight.flatten(1).unflatten(1, (-1, voxels.shape[1]))
        )
        with torch.autocast(image.device.type, enabled=False):
            told = torch.einsum("bqk,fkc->bcqf", tables, weight.float())
            return looked_up(voxels.float(), values, told)

    def _finest(
        self, features: torch.Tensor, coarse: torch.Tensor | None, lattice: "Lattice"
    ) -> torch.Tensor:
        """The answer at the places of a lattice, from the features of the finest level and the
        answer of the next coarser one, to which it adds."""
        factor = 2 if self.config.stem else 1
        sides = [factor * n for n in features.shape[2:]]
        rows = range(lattice.first, sides[0], lattice.step)
        columns = range(lattice.second, sides[1], lattice.step)
        if torch.is_grad_enabled():
            answer = self._own(features, rows, columns)
            return answer if coarse is None else _added(answer, coarse, rows, columns)
        # In slabs of whole cubes: large intermediate results cost more than the arithmetic.
        length = factor * max(1, SLAB_VOXELS // (features.shape[3] * features.shape[4]))
        result = None
        for start in range(0, len(rows), length):
            part = rows[start : start + length]
            answer = self._own(features, part, columns)
            if result is None:
                result = answer.new_empty((*answer.shape[:2], len(rows), *answer.shape[3:]))
            place = result[:, :, start : start + length]
            if coarse is None:
                place.copy_(answer)
            else:
                _added(answer, coarse, part, columns, out=place)
        assert result is not None
        return result

    def _own(self, features: torch.Tensor, rows: range, columns: range) -> torch.Tensor:
        """What the finest level itself says: (B, channels_out, rows, columns, Z)."""
        head = cast(Pointwise, self.heads[0])
        if not self.config.stem:
            return head(features[:, :, _slice(rows), _slice(columns)])
        # The cubes that hold the wanted voxels, and which of their voxels are wanted.
        cubes = [_cubes(wanted) for wanted in (rows, columns)]
        kept = [_corners(wanted) for wanted in (rows, columns)]
        weight = head.weight.flatten(1).unflatten(0, (-1, 2, 2, 2))[:, kept[0], kept[1]]
        bias = cast(torch.Tensor, head.bias).unflatten(0, (-1, 2, 2, 2))[:, kept[0], kept[1]]
        part = features[:, :, cubes[0], cubes[1]].movedim(1, -1)
        logits = F.linear(part, weight.flatten(0, 3), bias.flatten()).movedim(-1, 1)
        sides = (weight.shape[1], weight.shape[2], 2)
        return channels_to_cubes(logits, sides)[:, :, _within(rows), _within(columns)]

    def by_level(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters of the finest level, and those of all others."""
        named = [(name.split(".")[1] == "0", value) for name, value in self.named_parameters()]
        return [v for finest, v in named if finest], [v for finest, v in named if not finest]


@dataclass(frozen=True)
class Lattice:
    """The voxels of a grid at which an answer is wanted: every `step`-th of the first two axes,
    from `first` and `second` on, and all of the third."""

    step: int = 1
    first: int = 0
    second: int = 0

    @property
    def slices(self) -> tuple[slice, slice]:
        """The wanted voxels of the first two axes."""
        return slice(self.first, None, self.step), slice(self.second, None, self.step)


class Pyramid(nn.Module):
    """A network that answers on every level when it is called.

    For training: DistributedDataParallel and torch.compile see no other method than `forward`.
    """

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor, lattice: Lattice | None = None) -> list[torch.Tensor]:
        return self.network.pyramid(image, lattice)


def upsample(logits: torch.Tensor, factor: int = 2) -> torch.Tensor:
    """Trilinear by a factor; voxel centres keep their place."""
    sides = [factor * n for n in logits.shape[2:]]
    nothing = logits.new_zeros((*logits.shape[:2], *sides))
    return _added(nothing, logits, range(sides[0]), range(sides[1]))


def _added(
    answer: torch.Tensor,
    coarse: torch.Tensor,
    rows: range,
    columns: range,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`answer` (B, C, rows, columns, Z) plus `coarse` upsampled to Z, at these rows and columns;
    written to `out` if given."""
    factor = answer.shape[4] // coarse.shape[4]
    along_x, along_y, along_z = (
        _lines(n, factor, coarse)[_slice(wanted)]
        for n, wanted in zip(coarse.shape[2:], (rows, columns, None), strict=True)
    )
    # A product of matrices along each axis: several times faster on a CPU than the kernel for
    # trilinear interpolation, and the last one adds.
    raised = (along_y @ (coarse.contiguous() @ along_z.T)).flatten(3).flatten(0, 1)
    flat = answer.flatten(3).flatten(0, 1).to(raised.dtype)
    place = None if out is None else out.flatten(3).flatten(0, 1)
    total = torch.baddbmm(flat, along_x.expand(len(flat), -1, -1), raised, out=place)
    return total.view(answer.shape) if out is None else out


def _lines(n: int, factor: int, like: torch.Tensor) -> torch.Tensor:
    """(factor n, n): linear interpolation along an axis, constant beyond the outermost centres."""
    unit = torch.eye(n, device=like.device)[None]
    lines = F.interpolate(unit, scale_factor=factor, mode="linear", align_corners=False)
    return lines[0].T.to(like.dtype)


def cubes_to_channels(image: torch.Tensor) -> torch.Tensor:
    """(B, C, X, Y, Z) -> (B, 8 C, X / 2, Y / 2, Z / 2): channel 8 c + 4 i + 2 j + k holds the
    voxels (2 x + i, 2 y + j, 2 z + k) of channel c."""
    halves = image.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return halves.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def channels_to_cubes(image: torch.Tensor, sides: tuple[int, int, int] = (2, 2, 2)) -> torch.Tensor:
    """(B, C I J K, X, Y, Z) -> (B, C, I X, J Y, K Z) for cubes of sides (I, J, K): the inverse of
    `cubes_to_channels`, also for a part of every cube."""
    parts = image.unflatten(1, (-1, *sides)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return parts.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _slice(wanted: range | None) -> slice:
    return slice(None) if wanted is None else slice(wanted.start, wanted.stop, wanted.step)


def _cubes(wanted: range) -> slice:
    """The cubes of two that hold these voxels of an axis: each, or every so many."""
    step = wanted.step // 2 if wanted.step % 2 == 0 else 1
    return slice(wanted.start // 2, (wanted[-1] // 2) + 1, step)


def _corners(wanted: range) -> slice:
    """Which of the two voxels of a cube along an axis may be wanted."""
    return slice(wanted.start % 2, wanted.start % 2 + 1) if wanted.step % 2 == 0 else slice(None)


def _within(wanted: range) -> slice:
    """The wanted voxels among those of `_cubes` and `_corners`."""
    if wanted.step % 2 == 0:
        return slice(None)
    first = wanted.start - 2 * (wanted.start // 2)
    return slice(first, first + wanted[-1] - wanted.start + 1, wanted.step)
