"""What the network sees: scaled by percentiles, blind to units, coordinates from -1 to 1."""

import pytest
import torch

from bids_synthseg.models.inputs import CHANNELS, network_input, normalise


@pytest.fixture
def image() -> torch.Tensor:
    """(10, 10, 11) with 100 voxels of background and 1 to 1000 in disorder."""
    values = torch.arange(1.0, 1001.0)[
        torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    ]
    return torch.cat([torch.zeros(100), values]).view(11, 10, 10)


def test_percentiles_of_the_foreground_become_0_and_1(image):
    found = normalise(image)
    # Ranks 10 and 989 of 1000 values: 11 and 990.
    expected = (image - 11) / (990 - 11)
    torch.testing.assert_close(found, expected.clamp(-0.25, 1.5))


@pytest.mark.parametrize("factor", [1e-3, 1e4])
def test_units_do_not_matter(image, factor):
    torch.testing.assert_close(normalise(factor * image), normalise(image))


def test_outliers_are_clipped(image):
    image[0, 0, 0], image[0, 0, 1] = 1e6, -1e6
    found = normalise(image)
    assert found.max() == 1.5 and found.min() == -0.25


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_an_image_without_contrast_has_no_effect(value):
    found = normalise(torch.full((4, 4, 4), value))
    assert found.isfinite().all() and not found.any()


def test_input_has_image_and_coordinates(image):
    stacked = network_input(image)
    assert stacked.shape == (1, CHANNELS, 11, 10, 10)
    torch.testing.assert_close(stacked[0, 0], normalise(image))
    for axis, n in enumerate(image.shape):
        line = stacked[0, 1 + axis].movedim(axis, 0)
        torch.testing.assert_close(line[:, 0, 0], torch.linspace(-1, 1, n))
        assert (line == line[:, :1, :1]).all()
