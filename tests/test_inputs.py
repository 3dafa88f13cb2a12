"""What the network sees: a scale blind to units and gain, and coordinates."""

import pytest
import torch

from bids_synthseg.models.inputs import CHANNELS, network_input, to_range, to_rank


@pytest.fixture
def image() -> torch.Tensor:
    """(10, 10, 11) with 100 voxels of background and 1 to 1000 in disorder."""
    values = torch.arange(1.0, 1001.0)[
        torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    ]
    return torch.cat([torch.zeros(100), values]).view(11, 10, 10)


def test_percentiles_of_the_foreground_become_0_and_1(image):
    found = to_range(image)
    # Ranks 10 and 989 of 1000 values: 11 and 990.
    expected = (image - 11) / (990 - 11)
    torch.testing.assert_close(found, expected.clamp(-0.25, 1.5))


def test_outliers_are_clipped(image):
    image[0, 0, 0], image[0, 0, 1] = 1e6, -1e6
    found = to_range(image)
    assert found.max() == 1.5 and found.min() == -0.25


def test_tissue_is_spread_evenly_however_narrow_its_range():
    ramp = torch.linspace(0, 1, 9000).view(30, 20, 15)
    narrow = 0.7 + 0.01 * ramp**3
    narrow[0] = 0  # air
    found = to_rank(narrow)
    tissue = found[1:].flatten()
    # Equalised: as many voxels between any two values as their distance says.
    torch.testing.assert_close(tissue, torch.linspace(-1.5, 1.5, len(tissue)), atol=0.02, rtol=0)
    assert (found[0] == -2).all()


def test_what_is_darker_than_tissue_stays_below_it_in_order():
    image = torch.linspace(0, 1, 1000).view(10, 10, 10)
    found = to_rank(image).flatten()
    assert (found.diff() >= 0).all()
    assert found[0] == -2 and found[60] < -1.5 and found[-1] == 1.5
    threshold = 0.1 * image.flatten()[989]
    torch.testing.assert_close(found[60], 0.5 * (image.flatten()[60] / threshold - 1) - 1.5)


@pytest.mark.parametrize("gain", [1e-3, 1e4])
@pytest.mark.parametrize("scale", [to_range, to_rank])
def test_units_do_not_matter(image, scale, gain):
    torch.testing.assert_close(scale(gain * image), scale(image), atol=1e-4, rtol=0)


def test_signed_values_are_ranked_from_their_own_air(image):
    torch.testing.assert_close(to_rank(image - 1000), to_rank(image - 2000), atol=1e-3, rtol=0)


@pytest.mark.parametrize("value", [0.0, 5.0])
@pytest.mark.parametrize("scale", [to_range, to_rank])
def test_an_image_without_contrast_has_no_effect(value, scale):
    found = scale(torch.full((4, 4, 4), value))
    assert found.isfinite().all() and not found.any()


@pytest.mark.parametrize(
    ("name", "scale", "reach"), [("range", to_range, 1), ("rank", to_rank, 0.5)]
)
def test_input_has_image_and_coordinates(image, name, scale, reach):
    stacked = network_input(image, name)
    assert stacked.shape == (1, CHANNELS, 11, 10, 10)
    torch.testing.assert_close(stacked[0, 0], scale(image))
    for axis, n in enumerate(image.shape):
        line = stacked[0, 1 + axis].movedim(axis, 0)
        torch.testing.assert_close(line[:, 0, 0], torch.linspace(-reach, reach, n))
        assert (line == line[:, :1, :1]).all()
