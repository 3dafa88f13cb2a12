"""TOML that is written reads back to the same values."""

import sys

import pytest

from bids_synthseg.toml import toml_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CASES = {
    "nothing": {},
    "numbers": {"whole": -3, "rate": 6e-4, "small": 1e-07, "large": 1e22, "yes": True, "no": False},
    "text": {"plain": "a b", "quoted": 'a "b" \\ c', "lines": "a\nb\tc\x7f\x1b", "wide": "ü 🧠"},
    "lists": {"shape": [80, 112, 96], "names": ["a", "b"], "none": [], "deep": [[1], [2, 3]]},
    "tables": {"a": {"x": 1, "b": {"y": 2}}, "empty": {}, "only": {"further": {"z": 3}}},
    "value after a table": {"a": {"x": 1}, "late": 2},
    "odd keys": {"a b": 1, 'c"': {"d.e": 2, "": 3}, "infant-templates_2": 4},
    "tables in lists": {"rows": [{"id": 0, "of": {"a b": 1}}, {}]},
}


@pytest.mark.parametrize("content", CASES.values(), ids=CASES)
def test_what_is_written_reads_back(content):
    assert tomllib.loads(toml_text(content)) == content


def test_tuples_are_lists_and_what_is_none_is_left_out():
    text = toml_text({"shape": (1, 2), "best": None, "a": {"b": None}, "rows": [{"c": None}, None]})
    assert tomllib.loads(text) == {"shape": [1, 2], "a": {}, "rows": [{}]}


def test_it_is_written_for_people():
    text = toml_text({"steps": 3, "net": {"convs": [1, 2], "more": {"kind": "x"}}})
    assert text == 'steps = 3\n\n[net]\nconvs = [1, 2]\n\n[net.more]\nkind = "x"\n'
