"""White noise: standard normal, independent of neighbours, fields and seeds, and replayable."""

import math

import numpy as np
import pytest
import torch

from bids_synthseg.synthesis.noise import white_noise

SHAPE = (64, 80, 72)


@pytest.fixture(scope="module")
def fields() -> torch.Tensor:
    return white_noise(7, SHAPE)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1])


def hashed(voxel: int, first: int, second: int) -> int:
    """lowbias32 with both keys, in Python's unbounded integers."""
    bits = voxel ^ first
    bits = (bits ^ bits >> 16) * 0x7FEB352D % 2**32
    bits = (bits ^ bits >> 15 ^ second) * 0x846CA68B % 2**32
    return bits ^ bits >> 16


def test_values_are_the_hash_of_their_voxel_in_plain_arithmetic():
    shape = (3, 5, 7000)  # more voxels than are made at a time
    made = white_noise(2024, shape).reshape(2, -1)
    keys = [hashed(2024 + n, 0, 0) for n in (0, 0x9E3779B9)]
    for voxel in (0, 1, 65535, 65536, 104999):
        bits = hashed(voxel, *keys)
        radius = math.sqrt(-2 * math.log((bits % 65536 + 0.5) / 65536))
        angle = 2 * math.pi * (bits // 65536) / 65536
        assert made[0, voxel].item() == pytest.approx(radius * math.cos(angle), abs=1e-5)
        assert made[1, voxel].item() == pytest.approx(radius * math.sin(angle), abs=1e-5)


@pytest.mark.parametrize("number", [0, 1])
def test_field_is_standard_normal(fields, number):
    field = fields[number].double()
    # Within five standard errors of the moments of n values.
    n = field.numel()
    moments = [(field**power).mean().item() for power in (1, 2, 3, 4)]
    errors = [5 * math.sqrt(v / n) for v in (1, 2, 15, 96)]
    for moment, expected, error in zip(moments, (0, 1, 0, 3), errors, strict=True):
        assert moment == pytest.approx(expected, abs=error)
    below = [(field < z).double().mean().item() for z in (-2, -1, 0, 1, 2)]
    np.testing.assert_allclose(below, [0.02275, 0.15866, 0.5, 0.84134, 0.97725], atol=0.004)


def test_tails_are_there_and_end(fields):
    assert 4 < fields.abs().max() < 4.9


def test_nothing_is_correlated(fields):
    first, second = fields
    limit = 5 / math.sqrt(first.numel())
    pairs = [(first, second), (first, white_noise(8, SHAPE)[0]), (first.abs(), second.abs())]
    for axis in range(3):
        for lag in (1, 2):
            n = SHAPE[axis] - lag
            pairs.append((first.narrow(axis, 0, n), first.narrow(axis, lag, n)))
    for a, b in pairs:
        assert abs(correlation(a, b)) < 1.1 * limit


def test_another_seed_is_no_other_order_of_the_same_values():
    # These two agree in the key that the voxels' own numbers are mixed with, but for 17 bits.
    seen: dict[int, int] = {}
    seed = 0
    while (block := hashed(seed, 0, 0) >> 17) not in seen:
        seen[block] = seed
        seed += 1
    pair = (seed, seen[block])
    values = [white_noise(seed, (2, 256, 256))[0].flatten().sort().values for seed in pair]
    assert not torch.allclose(*values, atol=1e-6)


def test_same_seed_gives_the_same_field_with_any_number_of_threads(fields):
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        assert torch.equal(white_noise(7, SHAPE), fields)
    finally:
        torch.set_num_threads(threads)
    assert not torch.equal(white_noise(8, SHAPE), fields)


@pytest.mark.parametrize("seed", [0, -1, 2**31, 2**63])
def test_any_whole_number_is_a_seed(seed):
    field = white_noise(seed, (4, 4, 4))
    assert field.shape == (2, 4, 4, 4) and field.dtype == torch.float32
    assert field.isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_makes_the_same_field(fields):
    torch.testing.assert_close(white_noise(7, SHAPE, "cuda").cpu(), fields, atol=1e-5, rtol=0)
