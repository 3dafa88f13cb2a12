"""Configuration: from TOML, with every wrong key or value named."""

from pathlib import Path

import pytest

from bids_synthseg.errors import BadData, InputMissing
from bids_synthseg.learning.config import TrainConfig, presets, read_config
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
        freeze = ["encoder"]
        compile = true
        [sampling]
        by = "age"
        age_edges_weeks = [37, 46.5]
        [sampling.weights]
        newborns = 4.0
        adults = 1
        [loss]
        warm_up_l2 = 10
        [network]
        features = [4, 8]
        convs = [1, 1]
        [synthesis]
        real = 0.5
        [synthesis.head]
        blobs = 0.7
        [synthesis.contrast]
        prior_contrasts = ["T2w"]
        """,
    )
    assert (config.shape, config.rate, config.target) == ((16, 32, 24), 1, "brain")
    assert (config.freeze, config.compile) == (("encoder",), True)
    assert config.sampling.weights == {"newborns": 4.0, "adults": 1}
    assert (config.sampling.by, config.sampling.age_edges_weeks) == ("age", (37, 46.5))
    assert config.loss.warm_up_l2 == 10
    assert config.synthesis.contrast.prior_contrasts == ("T2w",)
    assert config.network == NetworkConfig(features=(4, 8), convs=(1, 1))
    assert (config.synthesis.real, config.synthesis.head.blobs) == (0.5, 0.7)
    # What is not said keeps its default, beside what is.
    assert config.synthesis.head.shells == TrainConfig().synthesis.head.shells
    assert config.loss.dice == TrainConfig().loss.dice


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("stepz = 3", "unknown key 'stepz'; known are accumulate, average, batch"),
        ("[network]\nlayers = 3", "unknown key 'network.layers'; known are activation"),
        ("[synthesis.deformation]\nrotation = 9", "unknown key 'synthesis.deformation.rotation'"),
        ('steps = "many"', "key 'steps': 'many' is no whole number"),
        ("steps = 1.5", "key 'steps': 1.5 is no whole number"),
        ("steps = true", "key 'steps': True is no whole number"),
        ('rate = "1e-3"', "key 'rate': '1e-3' is no number"),
        ("target = 1", "key 'target': 1 is no text"),
        ("shape = 48", "key 'shape': 48 is no list"),
        ("shape = [48.5, 48, 48]", "key 'shape': .* is no list of whole numbers"),
        ('freeze = "encoder"', "key 'freeze': 'encoder' is no list of texts in quotes"),
        ("freeze = [1]", "key 'freeze': .* is no list of texts in quotes"),
        ("[sampling]\nage_edges_weeks = 4", "is no list of numbers"),
        ("compile = 1", "key 'compile': 1 is no true or false"),
        ("network = 3", "key 'network': 3 is no table"),
        ("[sampling]\nweights = 3", "key 'sampling.weights': 3 is no table of numbers"),
        ('[sampling.weights]\na = "b"', "key 'sampling.weights': .* is no table of numbers"),
        ("[network]\nfeatures = [4]", "one number per level"),
        ("shape = [50, 48, 48]", "multiple of 16 for 5 levels"),
        ("shape = [48, 48]", "each of 3 sides"),
        ('target = "skull"', "target must be"),
        ('head = "both"', "head must be one of"),
        ("batch = 0", "pool and loss_step must be at least 1"),
        ("fill = 1.5", r"fill in 0\.\.1"),
        ("rate = 0", "rate, finest_rate and clip must be above 0"),
        ("average = 1", "average at least 0 and below 1"),
        ("accumulate = 0", "accumulate, pool and loss_step must be at least 1"),
        ("held_out = 1", "held_out must be at least 0 and below 1"),
        ("voxel_mm = -1", "voxel_mm not negative"),
        ('schedule = "step"', "schedule must be one of"),
        ('precision = "fp16"', "precision must be one of"),
        ('freeze = ["decoder"]', "freeze: 'decoder' is none of encoder, coarse, all_but_head"),
        ('freeze = ["coarse"]\ncoarse_steps = 5', "a grown level must learn"),
        ("coarse_steps = -1", "coarse_steps: not negative"),
        ('[sampling]\nby = "luck"', "by must be one of dataset, uniform, age, shape"),
        ("[loss]\ndice = -1", "dice must be from 0 to"),
        ("[synthesis.head]\nshells = 0.9", "shells, csf_only, borrowed, blobs"),
        ("[synthesis.parts]\nclusters_max = 10", r"clusters_max must lie in 1\.\.9"),
        ("[synthesis.contrast]\nprior = 2", "prior is a probability"),
        ("[synthesis.deformation]\nwarp_nodes_min = 1", "2 <= warp_nodes_min"),
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


def test_a_missing_file_names_the_presets(tmp_path):
    with pytest.raises(InputMissing, match="presets adult-to-infant, clinical-fetal") as caught:
        read_config("synthsegg")
    assert all(name in str(caught.value) for name in presets())


def test_a_preset_is_known_by_its_name(tmp_path, monkeypatch):
    """Whatever lies in the current folder."""
    (tmp_path / "synthseg").write_text("steps = 3")
    (tmp_path / "own").write_text("steps = 3")
    monkeypatch.chdir(tmp_path)
    assert read_config("synthseg").steps == 505_000
    assert read_config("own").steps == read_config(Path("own")).steps == 3
