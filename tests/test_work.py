"""The work on one session: small enough to be sent, and its networks loaded once per process."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest

from bids_synthseg import work
from bids_synthseg.bids.scans import Scan, ScanGroup
from bids_synthseg.pipeline import Options, Segmenter
from bids_synthseg.work import Work

GROUP = ScanGroup("01", "a", (Scan.from_path(Path("/raw/sub-01_T1w.nii.gz")),))
OTHER = ScanGroup("02", None, ())
OPTIONS = Options(device="cpu", n_cpus=2, derivatives={"nesvor": Path("/n")}, viewer="none")


@pytest.fixture
def loads(monkeypatch):
    """Options that networks were loaded with."""
    noted = []

    def load(options):
        noted.append((options.device, options.model, options.n_cpus))
        return SimpleNamespace(number=len(noted))

    work._load.cache_clear()
    monkeypatch.setattr(Segmenter, "load", staticmethod(load))
    yield noted
    work._load.cache_clear()


def test_it_is_sent_as_it_is(loads):
    mine = Work(Path("/raw"), Path("/out"), OPTIONS, {GROUP.key: (Path("/e/map.nii.gz"),)})
    assert mine.segmenter.number == 1
    sent = pickle.dumps(mine)
    assert pickle.loads(sent) == mine
    assert len(sent) < 5000  # no networks
    assert pickle.loads(pickle.dumps(GROUP)) == GROUP


def test_networks_are_loaded_once(loads):
    mine = Work(Path("/raw"), Path("/out"), OPTIONS)
    again = pickle.loads(pickle.dumps(mine))
    assert mine.segmenter is again.segmenter
    assert loads == [("cpu", None, 2)]
    moved = mine.with_device("cuda:1")
    assert (moved.options.device, moved.options.n_cpus) == ("cuda:1", 2)
    assert moved.with_device("cpu", 5).options.n_cpus == 5
    assert moved.options.viewer == "none" and moved.bids_dir == mine.bids_dir
    assert moved.segmenter.number == 2
    assert loads[1] == ("cuda:1", None, 2)


def test_edited_sessions_go_their_own_way(loads, monkeypatch):
    calls = []
    monkeypatch.setattr(work, "run_session", lambda *given: calls.append(("segmented", *given)))
    monkeypatch.setattr(work, "run_edited", lambda *given: calls.append(("edited", *given)))
    maps = (Path("/e/map.nii.gz"),)
    mine = Work(Path("/raw"), Path("/out"), OPTIONS, {GROUP.key: maps})
    mine(OTHER)
    mine(GROUP)
    networks = mine.segmenter
    assert calls == [
        ("segmented", OTHER, Path("/raw"), Path("/out"), networks, OPTIONS),
        ("edited", GROUP, maps, Path("/raw"), Path("/out"), networks, OPTIONS),
    ]
