"""White noise that is a function of seed and voxel: the same field on every device.

A generator that hands out one number after another gives another stream on a GPU than on a CPU.
Here each voxel hashes its own number, so a field is known by its seed alone and any device, with
any number of threads, makes it without being told more.
"""

import math
from collections.abc import Sequence

import torch

_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B
_MASK = 0xFFFFFFFF
_CACHED = 2**16
"""Voxels at a time on a CPU, so that what lies between two steps stays in its cache."""


def white_noise(
    seed: int, shape: Sequence[int], device: torch.device | str = "cpu"
) -> torch.Tensor:
    """(2, *shape) float32: two independent standard normal fields of fewer than 2^31 voxels each.

    Voxel numbers, mixed with the seed, go through the hash "lowbias32" (Wellons 2018, "Prospecting
    for hash functions"); the halves of its 32 bits are the uniforms of a Box-Muller transform, so
    no value exceeds 4.9. On devices the fields differ by float rounding alone.
    """
    size = math.prod(shape)
    fields = torch.empty((2, size), dtype=torch.float32, device=device)
    step = _CACHED if fields.device.type == "cpu" else max(1, size)
    for start in range(0, size, step):
        _fill(fields[:, start : start + step], start, seed)
    return fields.reshape(2, *shape)


def _fill(fields: torch.Tensor, start: int, seed: int) -> None:
    """Write voxels `start` and following of the fields into (2, n)."""
    bits = torch.arange(start, start + fields.shape[1], dtype=torch.int32, device=fields.device)
    shifted = torch.empty_like(bits)
    # One key before and one within the hash: with the first alone, two fields of 128^3 voxels in
    # two thousand would hold the same values in another order.
    keys = [_signed(_hash(seed + n)) for n in (0, 0x9E3779B9)]
    bits.bitwise_xor_(keys[0])
    _fold(bits, shifted, 16).mul_(_signed(_FIRST))
    _fold(bits, shifted, 15).bitwise_xor_(keys[1]).mul_(_signed(_SECOND))
    _fold(bits, shifted, 16)
    radius, angle = fields
    _logical_shift(bits, shifted, 16)
    angle.copy_(shifted).mul_(2 * math.pi / 2**16)
    radius.copy_(bits.bitwise_and_(0xFFFF)).add_(0.5).mul_(2**-16).log_().mul_(-2).sqrt_()
    sine = torch.sin(angle).mul_(radius)
    radius.mul_(angle.cos_())
    angle.copy_(sine)


def _logical_shift(bits: torch.Tensor, out: torch.Tensor, by: int) -> torch.Tensor:
    """`bits` >> `by` with zeros from the left, which int32 alone does not give."""
    return torch.bitwise_right_shift(bits, by, out=out).bitwise_and_(_MASK >> by)


def _fold(bits: torch.Tensor, scratch: torch.Tensor, by: int) -> torch.Tensor:
    return bits.bitwise_xor_(_logical_shift(bits, scratch, by))


def _hash(number: int) -> int:
    """lowbias32 of one number."""
    bits = number & _MASK
    bits = (bits ^ bits >> 16) * _FIRST & _MASK
    bits = (bits ^ bits >> 15) * _SECOND & _MASK
    return bits ^ bits >> 16


def _signed(bits: int) -> int:
    """The int32 of 32 bits."""
    return bits - 2**32 if bits >= 2**31 else bits
