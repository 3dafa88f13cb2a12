"""Configuration: from TOML, with every wrong key or value named."""

from pathlib import Path

import pytest

from bids_synthseg.errors import BadData, InputMissing
from bids_synthseg.learning.config import TrainConfig, read_config
from bids_synthseg.models.unet import NetworkConfig


def read(tmp_path: Path, text: str) -> TrainConfig:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return read_config(path)


def test_an_empty_file_gives_the_defaults(tmp_path):
    assert read(tmp_path, "") == TrainConfig()


def test_nested_values_arrive(tmp_path):
    config = read(
        tmp_path,
        """
        shape = [16, 32, 24]
        rate = 1
        target = "brain"
        [weights]
        newborns = 4.0
        adults = 1
        [network]
        features = [4, 8]
        convs = [1, 1]
        [synthesis]
        real = 0.5
        [synthesis.head]
        blobs = 0.7
        """,
    )
    assert (config.shape, config.rate, config.target) == ((16, 32, 24), 1, "brain")
    assert config.weights == {"newborns": 4.0, "adults": 1}
    assert config.network == NetworkConfig(features=(4, 8), convs=(1, 1))
    assert (config.synthesis.real, config.synthesis.head.blobs) == (0.5, 0.7)
    # What is not said keeps its default, beside what is.
    assert config.synthesis.head.shells == TrainConfig().synthesis.head.shells


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("stepz = 3", "unknown key 'stepz'; known are average, batch"),
        ("[network]\nlayers = 3", "unknown key 'network.layers'; known are activation"),
        ("[synthesis.deformation]\nrotation = 9", "unknown key 'synthesis.deformation.rotation'"),
        ('steps = "many"', "key 'steps': 'many' is no whole number"),
        ("steps = 1.5", "key 'steps': 1.5 is no whole number"),
        ("steps = true", "key 'steps': True is no whole number"),
        ('rate = "1e-3"', "key 'rate': '1e-3' is no number"),
        ("target = 1", "key 'target': 1 is no text"),
        ("shape = 48", "key 'shape': 48 is no list"),
        ("shape = [48.5, 48, 48]", "key 'shape': .* is no list of whole numbers"),
        ("network = 3", "key 'network': 3 is no table"),
        ("weights = 3", "key 'weights': 3 is no table of numbers"),
        ("[network]\nfeatures = [4]", "one number per level"),
        ("shape = [50, 48, 48]", "multiple of 16 for 5 levels"),
        ("shape = [48, 48]", "each of 3 sides"),
        ('target = "skull"', "target must be"),
        ('head = "both"', "head must be one of"),
        ("batch = 0", "pool and loss_step must be at least 1"),
        ("fill = 1.5", r"fill in 0\.\.1"),
        ("rate = 0", "rate and clip must be above 0"),
        ("[synthesis.head]\nshells = 0.9", "shells and csf_only"),
        ("[synthesis.acquisition]\nspacing_max = 0", "spacing_max"),
        ("steps = = 3", "line 1"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path, text, complaint):
    with pytest.raises(BadData, match=complaint) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "run.toml") in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputMissing, match=r"run\.toml: no such configuration file"):
        read_config(tmp_path / "run.toml")
