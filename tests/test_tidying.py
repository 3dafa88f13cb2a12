"""What killed runs left in an output, and what is not touched."""

import pytest

from bids_synthseg.bids.derivatives import SessionPaths, SessionWriter, is_finished
from bids_synthseg.bids.tidying import at_work
from bids_synthseg.claims import claim, presence, session_claim
from bids_synthseg.errors import StorageProblem

TEMPORARY = ".0123abcd.tmp"
OWN = (
    ".README.md", "..probe", ".sub-01.html", ".group_qc.tsv", "logs/.status.tsv", "logs/.plan.tsv",
    "logs/.sub-01.json",
)  # fmt: skip
OTHERS = (".notes.html", "sub-01/.README.md", "figures/.a.png", "training/.model.safetensors")


def files(out):
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


@pytest.fixture
def out(tmp_path):
    """An output where runs were killed."""
    for name in (*OWN, *OTHERS):
        path = tmp_path / f"{name}{TEMPORARY}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name in (".sub-01.lock", ".sub-02_ses-a.lock", ".status.tsv.lock", ".run.lock"):
        (tmp_path / "logs" / name).touch()
    (tmp_path / "mine.txt").touch()
    return tmp_path


def test_the_next_run_removes_what_is_ours(out):
    with at_work(out):
        assert files(out) == {
            "logs/.run.lock", "mine.txt", *(f"{name}{TEMPORARY}" for name in OTHERS)
        }  # fmt: skip
    assert files(out) == {"mine.txt", *(f"{name}{TEMPORARY}" for name in OTHERS)}


def test_nothing_is_removed_while_another_run_is_at_work(out):
    before = files(out)
    with presence(out / "logs" / ".run.lock"), at_work(out):
        assert files(out) == before


def committed(out, subject, monkeypatch):
    """A session whose run died right after the journal was written."""
    paths = SessionPaths(out, subject)
    writer = SessionWriter(paths, out / "raw", config_sha256="c", weights_sha256="w")
    writer.start()
    writer.write_transform("T1w", "T2w", "x")
    with monkeypatch.context() as patch:
        patch.setattr(type(writer._staging), "_put_in_place", lambda *_: (_ for _ in ()).throw(
            StorageProblem("died")))  # fmt: skip
        with pytest.raises(StorageProblem):
            writer.finish("s")
    return paths


def test_sessions_that_nobody_is_at_are_completed_or_removed(tmp_path, monkeypatch):
    done, claimed = (committed(tmp_path, subject, monkeypatch) for subject in ("01", "02"))
    half = SessionWriter(
        SessionPaths(tmp_path, "03"), tmp_path, config_sha256="", weights_sha256=""
    )
    half.write_transform("T1w", "T2w", "x")
    with claim(session_claim(tmp_path / "logs", "sub-02")), at_work(tmp_path):
        assert is_finished(done, "s") and not is_finished(claimed, "s")
    assert not [name for name in files(tmp_path) if "sub-03" in name]
    with at_work(tmp_path):
        assert is_finished(claimed, "s")
    assert not [name for name in files(tmp_path) if "/." in name]
