"""Tables as people write them: what is read all the same, and what is refused, with its line."""

from pathlib import Path

import pytest

from bids_synthseg.errors import BadData
from bids_synthseg.tsv import read_rows

ROWS = [{"name": "one", "value": "1"}, {"name": "two", "value": ""}]


def read(folder: Path, content: str | bytes, *columns: str) -> list[dict[str, str]]:
    path = folder / "table.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_rows(path, *columns)


@pytest.mark.parametrize(
    "content",
    [
        "name\tvalue\none\t1\ntwo\t\n",
        "name\tvalue\none\t1\ntwo\t",  # no line end
        "name\tvalue\r\none\t1\r\ntwo\t\r\n",
        "name\tvalue\rone\t1\rtwo\t\r",
        "\ufeffname\tvalue\none\t1\ntwo\t\n",
        '"name"\t"value"\n"one"\t"1"\n"two"\t""\n',
        "\nname\tvalue\n\none\t1\n\t\ntwo\t\n\n",
        "name\tvalue\t\t\none\t1\t\t\ntwo\t\t\t\n",  # columns without a name
        "\tname\tvalue\n0\tone\t1\n1\ttwo\t\n",
    ],
)
def test_what_is_no_fault(tmp_path, content):
    assert read(tmp_path, content, "value", "name") == ROWS


@pytest.mark.parametrize(
    ("line", "cells"),
    [
        ('"a\tb"\tc', ["a\tb", "c"]),  # as BIDS wants a tab
        ('"say ""a"""\tc', ['say "a"', "c"]),
        ('"a" failed\tc', ['"a" failed', "c"]),
        ('"a\tc"', ["a\tc"]),
        ('"a\tc', ['"a', "c"]),
        ('12"\tc', ['12"', "c"]),
        ('\t"', ["", '"']),
        ('"\t', ['"', ""]),
        ('\t"a"', ["", "a"]),
        ('""\t""', ["", ""]),
        ("a\u2028b\x0c\tc", ["a\u2028b\x0c", "c"]),
    ],
)
def test_quotes_are_those_around_a_whole_cell(tmp_path, line, cells):
    header = "\t".join("xyz"[: len(cells)])
    last = "\t".join("xyz"[: len(cells)].upper())  # a row that no quote swallows
    names = header.split("\t")
    assert read(tmp_path, f"{header}\n{line}\n{last}\n") == [
        dict(zip(names, cells, strict=True)),
        {name: name.upper() for name in names},
    ]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("name\tvalue\none\n", r"line 2 has 1 cell\(s\), the header 2; write one for each"),
        ("name\tvalue\n\none\t1\ntwo\t2\t3\n", "line 4 has 3 cell"),
        ("name\tvalue\tname\n", "column 'name' stands twice"),
        ("name,value\none,1\n", "has no column 'name'; write name, value, separated by tabs"),
        ("name\tworth\n", "has no column 'value'"),
        ("", "has no column 'name'"),
        (b"name\tvalue\n\xff\xfe\t1\n", "cannot be read .*write it as text in UTF-8"),
        ("name\tvalue\n".encode("utf-16"), "write it as text in UTF-8"),
    ],
)
def test_what_is_a_fault(tmp_path, content, complaint):
    with pytest.raises(BadData, match=complaint) as caught:
        read(tmp_path, content, "name", "value")
    assert str(caught.value).startswith(f"{tmp_path / 'table.tsv'}: ")
    assert "\n" not in str(caught.value)


def test_nothing_to_read(tmp_path):
    assert read_rows(tmp_path / "none.tsv", "name") == []
    assert read(tmp_path, "") == []
    assert read(tmp_path, "name\tvalue\n", "name") == []
    with pytest.raises(BadData, match="no regular file but a folder"):
        read_rows(tmp_path)
