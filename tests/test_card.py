"""The card: it names what went in, quotes a configuration that reads back, and hides no limit."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from training_samples import tiny_config

from bids_synthseg.learning.card import DataSet, RunRecord, data_sets, model_card, toml_of
from bids_synthseg.learning.config import TrainConfig, presets, read_config
from bids_synthseg.learning.maps import TrainingMap

NEWBORNS = DataSet("newborns", 7, 5, "CC0", "38 to 44 weeks after conception")


def one_map(dataset, subject="sub-01", age_weeks=float("nan")):
    return TrainingMap(subject, subject, dataset, SimpleNamespace(), np.ones((1, 1)), age_weeks)


def record(**changes):
    base = RunRecord(
        name="trial",
        training=(NEWBORNS,),
        validation=(replace(NEWBORNS, maps=2, subjects=2),),
        held_out=("newborns: 2 of 7 subjects held out",),
        preset="/home/me/secret/own.toml",
        config=tiny_config(steps=9, floor=0.25),
        steps=9,
        device="cpu",
        minutes=2.34,
        judged=(
            "| structure | T1w |",
            "|---|--:|",
            "| thalamus | 0.700 |",
            "| **mean** | **0.7** |",
        ),
        checksum="c0ffee",
        versions={"torch": "2.4", "Python": "3.12"},
    )
    return replace(base, **changes)


def read_back(text, tmp_path):
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    return read_config(tmp_path / "config.toml")


@pytest.mark.parametrize("name", ["", *presets()])
def test_the_configuration_reads_back(tmp_path, name):
    config = read_config(name) if name else TrainConfig()
    assert read_back(toml_of(config), tmp_path) == config


def test_odd_values_read_back(tmp_path):
    config = tiny_config(init_from='a "b" \\ ü.safetensors', freeze=("encoder",), compile=True)
    weights = {"a b": 0.5, "c.d": 2, 'e"': 1e-7}
    config = replace(config, sampling=replace(config.sampling, weights=weights))
    assert read_back(toml_of(config), tmp_path) == config


def test_data_sets():
    def licensed(*args, licence="", **kwargs):
        return replace(one_map(*args, **kwargs), licence=licence)

    found = data_sets(
        [
            licensed("b"),
            licensed("a", "sub-01", 40.0, licence="CC0"),
            licensed("a", "sub-01", 30.4, licence="CC0"),
            licensed("a", "sub-02", licence="CC0"),
            licensed("c", age_weeks=35.0, licence="PDDL"),
        ]
    )
    assert found == (
        DataSet("a", 3, 2, "CC0", "30 to 40 weeks after conception, 1 not given"),
        DataSet("b", 1, 1, "not stated", "age not given"),
        DataSet("c", 1, 1, "PDDL", "35 weeks after conception"),
    )
    assert data_sets([]) == ()


def test_what_a_card_tells():
    card = model_card(record())
    for words in (
        "# Model card: trial",
        "`c0ffee`",
        "| newborns | 7 | 5 | 38 to 44 weeks after conception | CC0 |",
        "| newborns | 2 | 2 |",
        "* newborns: 2 of 7 subjects held out",
        "| thalamus | 0.700 |",
        "Configuration own.toml; 9 of 9 steps in 2.3 minutes on cpu. torch 2.4, Python 3.12.",
        "The validation scores chose the checkpoint",
        "steps = 9\n",
    ):
        assert words in card
    assert "secret" not in card and "step 9, before" not in card and "below 0.25" not in card


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"validation": (), "held_out": (), "judged": ()}, "Nothing was held out."),
        ({"validation": (), "held_out": (), "judged": ()}, "No score on held-out data"),
        ({"steps": 4}, "The checkpoint is of step 4, before the last of its schedule (9)"),
        ({"judged": ("| thalamus | 0.100* |",)}, "marked * have a Dice below 0.25"),
        ({"preset": ""}, "Configuration without a file: the defaults; 9"),
        ({"preset": "synthseg"}, "Configuration synthseg; 9"),
        ({"name": "a\n# b"}, "# Model card: a # b\n"),
        ({"training": (replace(NEWBORNS, licence="a | b\nc"),)}, "| a \\| b c |"),
    ],
)
def test_limits_and_odd_words(changes, words):
    assert words in model_card(record(**changes))


def test_own_versions_are_told():
    names = record(versions=RunRecord.__dataclass_fields__["versions"].default_factory()).versions
    assert set(names) == {"bids_synthseg", "torch", "numpy", "Python"}


def test_the_table_stands_apart_from_text():
    """Markdown wants an empty line before a table."""
    lines = model_card(record()).splitlines()
    for number, line in enumerate(lines):
        if line.startswith("|") and not lines[number - 1].startswith("|"):
            assert lines[number - 1] == ""
