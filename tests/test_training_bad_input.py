"""What the command answers to training input it cannot use: an exit code and one clear line."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import RAS_OBLIQUE, nifti
from training_samples import phantom_folder

from bids_synthseg import cli, console
from bids_synthseg.learning import train

pytestmark = pytest.mark.usefixtures("package_log")

CONFIG = """
shape = [16, 24, 16]
steps = 3
batch = 1
[network]
features = [4, {width}]
convs = [1, 1]
"""
USAGE, BAD_DATA, MISSING, DISK = 64, 65, 66, 74
MAP, SCAN = "sub-01_dseg.nii.gz", "sub-01_T1w.nii.gz"


@pytest.fixture(autouse=True)
def no_preview(monkeypatch):
    """Twenty samples and a figure are not what is tested here."""
    monkeypatch.setattr(train, "preview_sheet", lambda *_, **__: None)


@pytest.fixture
def folder(tmp_path, phantom_labels) -> Path:
    return phantom_folder(tmp_path / "labels", phantom_labels)


@pytest.fixture
def train_on(tmp_path):
    """train_on(folder, ...) -> exit code; the run lies in OUT/training."""

    def call(folder: Path, *options: object, width: int = 8, out: Path = tmp_path / "out") -> int:
        config = tmp_path / f"{width}.toml"
        config.write_text(CONFIG.format(width=width))
        words = [folder, out, "participant", "--train", "--config", config, "-q", "--n-cpus", 1]
        words += ["--device", "cpu", *options]
        return console.run(cli.command, console.spread([str(word) for word in words], cli.MANY))

    return call


@pytest.fixture
def begun(folder, train_on, tmp_path) -> Path:
    """The training folder of a run that was stopped after its first step."""
    assert train_on(folder, "--max-minutes", 1e-6) == 0
    return tmp_path / "out" / "training"


@pytest.fixture
def complaint(capsys):
    """The one line that was said since the last look."""

    def read() -> str:
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("Error: ")
        return line

    capsys.readouterr()
    return read


def states(run: Path) -> dict[str, bytes]:
    """What a resume needs, by file name."""
    found = {path.name: path.read_bytes() for path in run.glob("state*")}
    assert found
    return found


def put(folder: Path, data: np.ndarray, name: str = MAP) -> None:
    nifti(data, RAS_OBLIQUE).to_filename(folder / "sub-01" / "anat" / name)


def with_float_labels(folder, labels):
    put(folder, labels + np.float32(0.25))


def with_an_unknown_id(folder, labels):
    put(folder, np.where(labels == 10, 77, labels).astype(np.int16))


def without_foreground(folder, labels):
    put(folder, np.zeros_like(labels))


def with_a_scan_on_another_grid(folder, labels):
    scan = labels + np.random.default_rng(0).uniform(0, 1, labels.shape)
    put(folder, scan[1:].astype(np.float32), SCAN)


def with_half_a_map(folder, labels):
    path = folder / "sub-01" / "anat" / MAP
    path.write_bytes(path.read_bytes()[:200])


def without_a_table(folder, labels):
    (folder / "dseg.tsv").unlink()


def with_an_unknown_meaning(folder, labels):
    table = folder / "dseg.tsv"
    table.write_text(table.read_text().replace("\t10\n", "\tno-such-structure\n"))


def without_maps(folder, labels):
    shutil.rmtree(folder / "sub-01")


@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        (with_float_labels, BAD_DATA, (MAP, "not whole numbers")),
        (with_an_unknown_id, BAD_DATA, (MAP, "77", "dseg.tsv")),
        (without_foreground, BAD_DATA, (MAP, "no voxel carries a label of the brain")),
        (with_a_scan_on_another_grid, BAD_DATA, (SCAN, "another grid")),
        (with_half_a_map, BAD_DATA, (MAP,)),
        (without_a_table, MISSING, ("dseg.tsv",)),
        (with_an_unknown_meaning, BAD_DATA, ("dseg.tsv", "label 10", "no-such-structure")),
        (without_maps, MISSING, ("labels", "dseg.nii.gz")),
    ],
)
def test_data_sets(folder, phantom_labels, train_on, tmp_path, complaint, spoil, code, said):
    spoil(folder, phantom_labels)
    assert train_on(folder) == code
    line = complaint()
    assert [word for word in said if word not in line] == []
    assert not (tmp_path / "out" / "training").exists()


def test_a_data_set_that_is_not_there(train_on, tmp_path, complaint):
    assert train_on(tmp_path / "nowhere") == MISSING
    assert "nowhere" in complaint()


def test_an_empty_folder(train_on, tmp_path, complaint):
    (tmp_path / "empty").mkdir()
    assert train_on(tmp_path / "empty") == MISSING
    assert "empty" in complaint()


def test_a_bad_map_among_those_for_validation(
    folder, train_on, tmp_path, phantom_labels, complaint
):
    other = phantom_folder(tmp_path / "held-out", phantom_labels)
    with_an_unknown_id(other, phantom_labels)
    assert train_on(folder, "--validation", other) == BAD_DATA
    assert "held-out" in complaint()
    assert not (tmp_path / "out" / "training").exists()


def test_a_folder_for_training_and_validation(folder, train_on, complaint):
    assert train_on(folder, "--validation", folder) == USAGE
    assert str(folder) in complaint()


class TestCheckpoints:
    @pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
    @pytest.mark.parametrize("files", ["state-*", "state.json"])
    def test_truncated(self, begun, folder, train_on, complaint, files, share):
        (path,) = begun.glob(files)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        broken = states(begun)
        assert train_on(folder) == BAD_DATA
        line = complaint()
        assert "state.json" in line and "begin anew" in line
        assert states(begun) == broken  # nothing was begun anew over it

    def test_a_run_of_another_architecture(self, begun, folder, train_on, complaint):
        kept = states(begun)
        assert train_on(folder, width=12) == BAD_DATA
        assert str(begun) in complaint()
        assert states(begun) == kept

    def test_weights_of_another_architecture(self, begun, folder, train_on, tmp_path, complaint):
        other = tmp_path / "other"
        assert train_on(folder, "--max-minutes", 1e-6, width=12, out=other) == 0
        for path in begun.glob("state*"):
            path.unlink()
        for path in (other / "training").glob("state*"):
            shutil.copy(path, begun)
        assert train_on(folder) == BAD_DATA
        assert "another architecture" in complaint()

    def test_a_full_disk_leaves_the_last_one(self, begun, folder, train_on, monkeypatch, complaint):
        """No space for the next checkpoint; with space again the run goes on."""
        kept, real = states(begun), os.fsync

        def full(number: int) -> None:
            if "state" in Path(f"/proc/self/fd/{number}").readlink().name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(number)

        with monkeypatch.context() as patched:
            patched.setattr("os.fsync", full)
            assert train_on(folder) == DISK
        assert "full" in complaint()
        assert states(begun) == kept and not list(begun.glob(".*.tmp"))
        assert train_on(folder) == 0 and states(begun) != kept

    def test_nothing_to_resume(self, folder, train_on, complaint):
        assert train_on(folder, "--resume") == MISSING
        assert "no training run" in complaint()


class TestModelsToStartFrom:
    def test_missing(self, folder, train_on, tmp_path, complaint):
        assert train_on(folder, "--init-from", tmp_path / "none.safetensors") == MISSING
        assert "none.safetensors" in complaint()

    @pytest.mark.parametrize("kept", [0, 100, None])
    def test_truncated_or_foreign(self, begun, folder, train_on, tmp_path, complaint, kept):
        content = (begun / "model.safetensors").read_bytes()
        model = tmp_path / "part.safetensors"
        model.write_bytes(b"weights of another kind" if kept is None else content[:kept])
        out = tmp_path / "new"
        assert train_on(folder, "--init-from", model, out=out) == BAD_DATA
        assert "part.safetensors" in complaint()
