"""What others wrote: read whatever marks it carries, or refused with one line before it hurts."""

import json
import os
import socket

import pytest

from bids_synthseg.errors import AppError, BadData, InputMissing
from bids_synthseg.reading import (
    DEEPEST_JSON,
    is_there,
    parse_json,
    read_json,
    read_object,
    read_text,
    read_toml,
)
from bids_synthseg.storage import write_json, write_text
from bids_synthseg.toml import parse_toml, toml_text
from bids_synthseg.tsv import read_rows

READERS = (read_text, read_json, read_object, read_toml, read_rows)


@pytest.mark.parametrize("read", READERS)
def test_only_regular_files_are_opened(tmp_path, read):
    """A FIFO would be waited for, and a device never ends."""
    os.mkfifo(tmp_path / "FIFO")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    there = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(tmp_path)  # the whole path may be longer than a socket's name can be
    try:
        there.bind("socket")
    finally:
        os.chdir(here)
        there.close()
    for name in ("FIFO", "device", "folder", "socket"):
        with pytest.raises(BadData, match=f"{name}: no regular file but a {name}; "):
            read(tmp_path / name)
    with pytest.raises(BadData, match="loop: a link that leads back to itself; "):
        read(tmp_path / "loop")


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("content", "kind", "cure"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", InputMissing, "git lfs"),
        (b"/annex/objects/MD5E-s1--0.json\n", InputMissing, "datalad get"),
        (b"\xef\xbb\xbf\n<!doctype HTML><html>", BadData, "download it again"),
        (b"<html lang=en>", BadData, "download it again"),
        (b"\xff\xfe\x00", BadData, "UTF-8"),
    ],
)
def test_stand_ins_have_a_cure_each(tmp_path, read, content, kind, cure):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(kind, match=cure) as caught:
        read(tmp_path / "file")
    assert str(caught.value).startswith(f"{tmp_path / 'file'}: ")


def test_a_dead_link_is_not_the_same_as_no_file(tmp_path):
    """Nobody who has an age table that is not fetched wants to hear that there is none."""
    (tmp_path / "link").symlink_to("none")
    assert read_rows(tmp_path / "none") == [] and read_object(tmp_path / "none") == {}
    assert not is_there(tmp_path / "none") and is_there(tmp_path / "link")
    for read in READERS:
        with pytest.raises(InputMissing, match="the link leads nowhere; fetch the data"):
            read(tmp_path / "link")


def test_what_the_file_system_refuses_is_said(tmp_path, monkeypatch):
    with pytest.raises(BadData, match="too long for the file system"):
        read_object(tmp_path / ("x" * 300))
    (tmp_path / "file").write_text("{}")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(BadData, match="no permission to read it; "):
        read_object(tmp_path / "file")


@pytest.mark.parametrize("read", [read_json, read_object])
def test_a_byte_order_mark_is_no_fault(tmp_path, read):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"Name": "\xc3\xa9"}')
    assert read(tmp_path / "a.json") == {"Name": "é"}


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"a":' * 5000, "9" * 5000, "[" * 60 + "]" * 60]
)
def test_what_is_no_json(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BadData, match=r"a\.json: not valid JSON \(.*\); correct the file"):
        read_json(tmp_path / "a.json")


def test_documents_of_a_sane_depth_are_read():
    text = "[" * (DEEPEST_JSON - 1) + "]" * (DEEPEST_JSON - 1)
    assert parse_json(text) == json.loads(text)


def test_half_a_surrogate_pair_is_written_escaped(tmp_path):
    """From a description that has one, or a name whose bytes are no UTF-8."""
    odd = "a\udce4\ud83d"
    write_json(tmp_path / "a.json", {"Name": odd})
    assert read_json(tmp_path / "a.json") == {"Name": odd}
    write_text(tmp_path / "a.toml", toml_text({"name": odd, odd: 1}))
    assert read_toml(tmp_path / "a.toml") == parse_toml(
        r"""name = 'a\udce4\ud83d'
        'a\udce4\ud83d' = 1"""
    )


@pytest.mark.parametrize("text", ["a = ", "a = " + "[" * 20_000, "[" * 20_000])
def test_what_is_no_toml(tmp_path, text):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(AppError, match=r"a\.toml: not valid TOML"):
        read_toml(tmp_path / "a.toml")
