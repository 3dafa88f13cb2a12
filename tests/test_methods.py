"""Methods text and references that belong together, and the options of a run as TOML."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from bids_synthseg.bids.methods import (
    Methods,
    citation_bibtex,
    citation_markdown,
    citations,
    methods_text,
    run_config,
    write_run_files,
)
from bids_synthseg.toml import parse_toml

FULL = Methods("1.2.3", "ab" * 32, ("T1w", "T2w"), True, True, True, True, True)
BARE = Methods("1.2.3", "cd" * 32, ("T2w",), False, False, False, False, False)
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("methods", [FULL, BARE])
def test_every_citation_has_its_reference_and_the_reverse(methods):
    keys = re.findall(r"^@\w+\{(\w+),", citation_bibtex(methods), re.M)
    assert tuple(keys) == citations(methods)
    assert len(set(keys)) == len(keys) >= 3
    assert citation_bibtex(methods).count("{") == citation_bibtex(methods).count("}")


def test_text_tells_what_was_done_and_nothing_else():
    assert "T1w and T2w brain scans" in methods_text(FULL)
    assert "bids_synthseg 1.2.3" in methods_text(FULL)
    assert FULL.weights_sha256 in methods_text(FULL)
    for words, field in (
        ("aligned rigidly", "aligned"),
        ("Every scan", "all_scans"),
        ("averaged with that of the mirrored", "mirror"),
        ("written as preprocessed image", "preproc"),
        ("weights of the user's own", "own_model"),
    ):
        assert words in methods_text(FULL)
        assert words not in methods_text(replace(FULL, **{field: False}))
        assert words not in methods_text(BARE)
    assert methods_text(BARE).startswith("T2w brain scans")
    assert "not a medical device" in citation_markdown(BARE)


def test_references_agree_with_the_citation_file_of_the_repository():
    cited = set(re.findall(r"doi: (\S+)", (ROOT / "CITATION.cff").read_text(encoding="utf-8")))
    assert cited
    assert cited <= set(re.findall(r"doi += \{(.+?)\}", citation_bibtex(BARE)))


def test_files(tmp_path):
    tables = {
        "command_line": {"model": Path("w.safetensors"), "participants": ("01", "02"), "n": None},
        "segmentation": {"mirror": True, "n_cpus": 2},
    }
    write_run_files(tmp_path, BARE, tables, ["app", "in", "out"])
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [
        "CITATION.bib", "CITATION.md", "config.toml"
    ]  # fmt: skip
    text = (tmp_path / "logs" / "config.toml").read_text(encoding="utf-8")
    assert parse_toml(text) == {
        "run": run_config(BARE, {}, ["app", "in", "out"])["run"],
        "command_line": {"model": "w.safetensors", "participants": ["01", "02"]},
        "segmentation": {"mirror": True, "n_cpus": 2},
    }
    assert parse_toml(text)["run"]["weights_sha256"] == "cd" * 32
