"""Results that take the place of earlier ones: whole or not at all, wherever the run dies."""

import os
import shutil
from pathlib import Path

import pytest

from bids_synthseg.bids.derivatives import SessionPaths, SessionWriter, is_finished, settle
from bids_synthseg.errors import CannotCreate

KEY = ("01", "a")
OLD = {("T1w", "T2w"): "old", ("T2w", "T1w"): "only in the old", ("T1w", "x"): "kept"}
NEW = {("T1w", "T2w"): "new", ("T1w", "y"): "only in the new"}
KEPT = "sub-01_ses-a_from-T1w_to-x_mode-image_xfm.txt"


class Killed(BaseException):
    """What no handler in the code catches."""


@pytest.fixture
def dying(monkeypatch):
    """dying(n, run): run() in a process that is killed before its n-th change of the disk; from
    then on nothing is changed any more. Returns whether it came to that."""

    def run_until(n, run):
        with monkeypatch.context() as patch:
            left = [n]

            def guarded(function):
                def guard(*args, **kwargs):
                    left[0] -= 1
                    if left[0] < 0:
                        raise Killed
                    return function(*args, **kwargs)

                return guard

            for name in ("replace", "unlink", "rmdir", "fsync", "mkdir"):
                patch.setattr(os, name, guarded(getattr(os, name)))
            for name in ("unlink", "mkdir"):
                patch.setattr(Path, name, guarded(getattr(Path, name)))
            patch.setattr(shutil, "rmtree", guarded(shutil.rmtree))
            try:
                run()
            except Killed:
                return True
            return False

    return run_until


def make(out, content, signature, keep=()):
    """A run over the session, without any network."""
    paths = SessionPaths(out, *KEY)
    writer = SessionWriter(paths, out / "raw", config_sha256="c", weights_sha256="w")
    writer.start([paths.anat / name for name in keep])
    try:
        for (source, target), text in content.items():
            writer.write_transform(source, target, text)
        writer.finish(signature)
    finally:
        writer.discard()
    paths.report.write_text(f"page of {signature}")


def tree(out):
    """Everything in the output, hidden files too."""
    files = (path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): path.read_text() for path in files}


@pytest.fixture
def results(tmp_path):
    """An output with the old session, what it holds then, and what it will hold with the new."""
    make(tmp_path / "whole", OLD, "old")
    old = tree(tmp_path / "whole")
    make(tmp_path / "whole", NEW, "new", [KEPT])
    return tmp_path / "whole", old, tree(tmp_path / "whole")


def test_a_redo_replaces_adds_and_removes(results):
    out, old, new = results
    names = {name.rpartition("from-")[2].removesuffix("_mode-image_xfm.txt") for name in new}
    assert {"T1w_to-T2w", "T1w_to-y", "T1w_to-x"} < names and "T2w_to-T1w" not in names
    assert len(old) == len(new) == 5  # with record and page
    assert is_finished(SessionPaths(out, *KEY), "new")


def test_a_kill_before_any_change_of_the_disk_leaves_the_old_or_the_new(tmp_path, results, dying):
    _, old, new = results
    pages = {name for name in new if name.endswith(".html")}
    ends, n = [], 0
    killed = True
    while killed:
        out = tmp_path / f"out-{n}"
        make(out, OLD, "old")
        assert tree(out) == old
        killed = dying(n, lambda out=out: make(out, NEW, "new", [KEPT]))
        # A second kill, while the next run brings order.
        dying(n % 5, lambda out=out: settle(SessionPaths(out, *KEY)))
        settle(SessionPaths(out, *KEY))
        found = tree(out)
        if found == old:
            ends.append("old")
        else:
            assert {**found, **{name: new[name] for name in pages}} == new, n
            ends.append("new")
        n += 1
    assert ends == sorted(ends, reverse=True)  # never the old one again
    assert ends.count("old") > 10 and ends.count("new") > 5


def test_a_kill_of_a_first_run_leaves_nothing_or_all(tmp_path, results, dying):
    _, old, _ = results
    pages = {name for name in old if name.endswith(".html")}
    n, killed = 0, True
    while killed:
        out = tmp_path / f"out-{n}"
        killed = dying(n, lambda out=out: make(out, OLD, "old"))
        settle(SessionPaths(out, *KEY))
        found = tree(out) if out.exists() else {}
        assert found == {} or {**found, **{name: old[name] for name in pages}} == old, n
        n += 1
    assert n > 10


def test_what_cannot_be_put_in_place_is_known_before_it_begins(results):
    out, _, new = results
    in_the_way = out / "sub-01/ses-a/anat/sub-01_ses-a_from-T2w_to-T1w_mode-image_xfm.txt"
    in_the_way.mkdir()
    with pytest.raises(CannotCreate, match="T2w_to-T1w"):
        make(out, OLD, "old")
    assert tree(out) == new
    in_the_way.rmdir()
    make(out, OLD, "old")


def test_only_own_leftovers_are_removed(results):
    out, _, new = results
    anat = out / "sub-01/ses-a/anat"
    left = [
        anat / ".sub-01_ses-a_T1w.nii.gz.0123abcd.tmp",
        out / ".sub-01_ses-a.html.0123abcd.tmp",
        out / "logs" / ".sub-01_ses-a.json.0123abcd.tmp",
    ]
    others = [
        anat / "notes.txt",
        anat / ".mine.0123abcd.tmp",
        anat / ".sub-01_ses-a_T1w.nii.gz.swp",
        out / ".sub-01_ses-b.html.0123abcd.tmp",
    ]
    for path in (*left, *others):
        path.write_text("")
    settle(SessionPaths(out, *KEY))
    assert set(tree(out)) == {*new, *(path.relative_to(out).as_posix() for path in others)}


def test_a_record_cannot_remove_files_outside_the_output(tmp_path, caplog):
    out = tmp_path / "out"
    make(out, OLD, "old")
    (tmp_path / "precious.txt").touch()
    record = SessionPaths(out, *KEY).record
    record.write_text('{"Signature": "s", "Outputs": {"../precious.txt": "0"}}')
    make(out, NEW, "new")
    assert (tmp_path / "precious.txt").exists() and "left alone" in caplog.text
