"""A training run: it resumes exactly, keeps its best, and says what is wrong before it begins."""

import errno
import json
import logging
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_samples import phantom_folder, tiny_config, trained

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.errors import (
    AppError,
    BadData,
    InputMissing,
    StorageProblem,
    TryAgainLater,
    UsageProblem,
)
from bids_synthseg.learning import monitor, step, train
from bids_synthseg.learning.card import toml_of
from bids_synthseg.learning.config import read_config
from bids_synthseg.learning.datasets import load_maps
from bids_synthseg.learning.gather import Sources, gather_maps, material_of
from bids_synthseg.learning.pack import write_pack
from bids_synthseg.learning.states import saved_step, state_files
from bids_synthseg.learning.train import main, run_training
from bids_synthseg.learning.validation import UNTOUCHED, Score
from bids_synthseg.models.checkpoint import load_model
from bids_synthseg.models.heads import Head
from bids_synthseg.models.unet import NetworkConfig
from bids_synthseg.synthesis.recipe import SynthesisConfig

pytestmark = pytest.mark.usefixtures("one_thread")

HEAD = Head(LabelTable.default())
COARSE_FIRST = tiny_config(coarse_steps=2)
LATER = 1e9
"""Minutes that no test takes."""


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """The sheet of samples and TensorBoard are tested elsewhere, and take time."""
    monkeypatch.setattr(train, "preview_sheet", lambda *given, **options: False)
    monkeypatch.setattr(monitor, "_tensorboard", lambda *given: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, phantom_labels, phantom_image) -> Path:
    root = tmp_path_factory.mktemp("data") / "labels"
    return phantom_folder(root, phantom_labels, {"T1w": phantom_image})


@pytest.fixture(scope="module")
def held_out(tmp_path_factory, phantom_labels, phantom_image) -> Path:
    root = tmp_path_factory.mktemp("data") / "held-out"
    scans = {"T1w": phantom_image, "T2w": 200 - phantom_image}
    return phantom_folder(root, phantom_labels, scans)


def run(folder: Path, out: Path, config=None, validation=(), **options) -> Path:
    return run_training(Sources([folder], validation), out, config or tiny_config(), **options)


def one_step_at_a_time(folder: Path, out: Path, config=None, **options) -> list[str]:
    """Run, stopped by the clock after one step; returns the lines of progress."""
    lines: list[str] = []
    run(folder, out, config, max_minutes=0, progress=lines.append, **options)
    return lines


def metrics(out: Path) -> list[list[str]]:
    header, *lines = (out / "metrics.tsv").read_text().splitlines()
    assert header == "step\tname\tvalue"
    return [line.split("\t") for line in lines]


def assert_same_run(one: Path, other: Path, config=None) -> None:
    """Weights, their average and Adam's memory agree bit for bit, and so do the models."""
    (first, ours), (second, theirs) = (
        trained(out, config or tiny_config()) for out in (one, other)
    )
    assert first.step == second.step and len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    models = [load_model(out / train.MODEL) for out in (one, other)]
    assert models[0].record == models[1].record
    weights = [model.network.state_dict() for model in models]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


class Killed(BaseException):
    """What no handler catches, as no process survives SIGKILL."""


@pytest.fixture
def killed(monkeypatch):
    """killed(moment, folder, ...): run until just before or after step number `moment`."""
    real = train.train_step

    def call(moment: int, *given, after: bool = False) -> None:
        def spy(state, *rest):
            if state.step == moment and not after:
                raise Killed
            result = real(state, *rest)
            if state.step == moment + 1 and after:
                raise Killed
            return result

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(train, "train_step", spy)
            run(*given)

    return call


class TestResume:
    @pytest.fixture
    def whole(self, folder, tmp_path_factory):
        """whole(config) -> the folder of an undisturbed run."""

        def get(config):
            return run(folder, tmp_path_factory.mktemp("whole"), config).parent

        return get

    @pytest.mark.parametrize("config", [tiny_config(), COARSE_FIRST], ids=["fine", "coarse first"])
    def test_one_step_at_a_time(self, folder, tmp_path, whole, config):
        for done in range(4):
            lines = one_step_at_a_time(folder, tmp_path, config)
            assert (f"resumed at step {done}" in lines) == (done > 0)
        assert_same_run(whole(config), tmp_path, config)
        # A run that is done stays as it is.
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        assert "resumed at step 4" in one_step_at_a_time(folder, tmp_path, config)
        assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}

    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize("moment", range(4))
    def test_a_kill_at_any_step(self, folder, tmp_path, whole, killed, moment, after):
        """With a checkpoint at every step; the growth is at step 2."""
        config = replace(COARSE_FIRST, checkpoint_minutes=0)
        killed(moment, folder, tmp_path, config, after=after)
        lines: list[str] = []
        run(folder, tmp_path, config, progress=lines.append)
        assert (f"resumed at step {moment}" in lines) == (moment > 0)
        assert ("step 2: the finest level is grown" in lines) == (moment < 2)
        assert_same_run(whole(config), tmp_path, config)

    def test_a_kill_long_after_a_checkpoint(self, folder, tmp_path, whole, killed):
        """The steps since then are made again, across the growth, and are in the table once."""
        one_step_at_a_time(folder, tmp_path, COARSE_FIRST)
        killed(3, folder, tmp_path, COARSE_FIRST)
        assert saved_step(tmp_path) == 1
        run(folder, tmp_path, COARSE_FIRST)
        assert_same_run(whole(COARSE_FIRST), tmp_path, COARSE_FIRST)

    def test_a_kill_before_the_first_checkpoint(self, folder, tmp_path, whole, killed):
        killed(2, folder, tmp_path, tiny_config())
        lines: list[str] = []
        run(folder, tmp_path, progress=lines.append)
        assert not any("resumed" in line for line in lines)
        assert_same_run(whole(tiny_config()), tmp_path)

    def test_the_table_has_every_step_once(self, folder, held_out, tmp_path, killed, monkeypatch):
        monkeypatch.setattr(monitor, "REPORT_SECONDS", -1.0)
        config = tiny_config(validate_minutes=0, checkpoint_minutes=0)
        run(folder, tmp_path / "whole", config, [held_out])
        real = train.save_state

        def not_the_third(out, state, *rest):
            if state.step == 3:
                raise Killed
            real(out, state, *rest)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(train, "save_state", not_the_third)
            run(folder, tmp_path / "parts", config, [held_out])
        assert metrics(tmp_path / "parts")[-1][0] == "3"
        run(folder, tmp_path / "parts", config, [held_out])
        rows, expected = metrics(tmp_path / "parts"), metrics(tmp_path / "whole")
        assert rows == expected
        assert len({(number, name) for number, name, _ in rows}) == len(rows) == 4 * 4

    def test_in_pieces(self, folder, tmp_path, whole, monkeypatch):
        monkeypatch.setattr("bids_synthseg.learning.states.MIB", 20_000)
        for _ in range(4):
            one_step_at_a_time(folder, tmp_path, piece_mib=1)
        assert len(state_files(tmp_path)) > 3
        assert_same_run(whole(tiny_config()), tmp_path)

    def test_another_configuration_is_refused(self, folder, tmp_path):
        one_step_at_a_time(folder, tmp_path)
        with pytest.raises(BadData, match="holds a run of another configuration"):
            run(folder, tmp_path, tiny_config(rate=0.5))
        (tmp_path / "run.json").unlink()
        with pytest.raises(BadData, match="holds a run of another configuration"):
            run(folder, tmp_path)

    def test_other_label_maps_are_refused(self, folder, held_out, tmp_path):
        one_step_at_a_time(folder, tmp_path)
        kept = state_files(tmp_path)[0].read_bytes()
        for other in (Sources([held_out]), Sources([folder], [held_out])):
            with pytest.raises(BadData, match="or other label maps; choose another folder"):
                run_training(other, tmp_path, tiny_config())
        assert state_files(tmp_path)[0].read_bytes() == kept

    def test_nothing_to_resume(self, folder, tmp_path):
        with pytest.raises(InputMissing, match="holds no training run to resume"):
            run(folder, tmp_path, must_resume=True)
        one_step_at_a_time(folder, tmp_path)
        run(folder, tmp_path, must_resume=True)
        assert saved_step(tmp_path) == 4

    def test_the_model_it_began_from_is_asked_for_once(self, folder, tmp_path):
        earlier = run(folder, tmp_path / "earlier", tiny_config(steps=1))
        config = tiny_config(seed=2, init_from=str(earlier))
        one_step_at_a_time(folder, tmp_path / "later", config)
        earlier.unlink()
        run(folder, tmp_path / "later", config)
        assert saved_step(tmp_path / "later") == 4
        with pytest.raises(InputMissing, match="no such weights file"):
            run(folder, tmp_path / "another", config)


class TestFiles:
    def test_a_run_leaves_them(self, folder, held_out, tmp_path):
        out = tmp_path / "new" / "run"
        path = run(folder, out, validation=[held_out], preset="/some/where/mine.toml")
        assert {p.name for p in out.iterdir()} - {p.name for p in state_files(out)} == {
            "README.md", "metrics.tsv", "model.safetensors", "run.json",
        }  # fmt: skip
        model = load_model(path)
        assert (model.shape, model.fill) == ((16, 24, 16), tiny_config().fill)
        assert model.record["maps"] == ["labels/sub-01"] and model.head == HEAD
        assert [row[:2] for row in metrics(out)] == [
            ["4", "loss"],
            ["4", "held-out T1w"],
            ["4", "held-out T2w"],
            ["4", "held-out synthetic"],
        ]
        assert json.loads((out / "run.json").read_text())["config"]["shape"] == [16, 24, 16]
        card = (out / "README.md").read_text()
        assert "4 of 4 steps" in card and "mine.toml" in card and "| held-out " in card

    def test_what_is_shared_has_no_paths(self, folder, held_out, tmp_path):
        earlier = run(folder, tmp_path / "earlier", tiny_config(steps=1))
        table = tmp_path / "own.tsv"
        shipped = Path(train.__file__).parents[1] / "data" / "priors" / "newborn.tsv"
        table.write_bytes(shipped.read_bytes())
        contrast = replace(SynthesisConfig().contrast, prior=1.0, prior_table=str(table))
        config = tiny_config(
            init_from=str(earlier), synthesis=replace(SynthesisConfig(), contrast=contrast)
        )
        path = run(folder, tmp_path / "run", config, [held_out], preset=str(tmp_path / "mine.toml"))
        record = load_model(path).record
        assert record["config"]["init_from"] == "model.safetensors"
        for text in (json.dumps(record), (path.parent / "README.md").read_text()):
            assert str(tmp_path) not in text and str(folder.parent) not in text
            assert str(Path.home()) not in text and "own.tsv" in text

    def test_an_output_that_cannot_be(self, folder, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(AppError, match="in the way"):
            run(folder, tmp_path / "file" / "out")

    def test_a_full_disk_leaves_the_last_checkpoint(self, folder, tmp_path, monkeypatch):
        run(folder, tmp_path / "whole")
        one_step_at_a_time(folder, tmp_path)
        before = {path: path.read_bytes() for path in state_files(tmp_path)}
        real = os.fsync

        def full(number: int) -> None:
            if ".state" in Path(f"/proc/self/fd/{number}").readlink().name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(number)

        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            with pytest.raises(StorageProblem, match=r"state.*: the disk or your quota is full"):
                run(folder, tmp_path)
        assert before == {path: path.read_bytes() for path in state_files(tmp_path)}
        run(folder, tmp_path)
        assert_same_run(tmp_path / "whole", tmp_path)


class TestBest:
    """With scores that the test sets: one structure, one image, a Dice per judgement."""

    @pytest.fixture
    def dice(self, monkeypatch):
        values: list[float] = []

        def scores(network, maps, *given):
            return [Score("set", "map", "T1w", 0, "thalamus", values.pop(0))]

        monkeypatch.setattr(train, "validate", scores)
        return values

    @pytest.mark.parametrize(
        ("found", "kept", "best"),
        [
            ([0.5, 0.7, 0.6, 0.65], 2, 0.7),
            ([0.5, 0.6, 0.7, 0.8], 4, 0.8),
            ([0.5, 0.5, 0.4, 0.3], 1, 0.5),
        ],
    )
    @pytest.mark.parametrize("resumed", [False, True], ids=["at once", "resumed"])
    def test_it_is_kept(self, folder, tmp_path, dice, found, kept, best, resumed):
        dice += found
        config = tiny_config(validate_minutes=0)
        if resumed:
            for _ in found:
                one_step_at_a_time(folder, tmp_path, config)
        else:
            run(folder, tmp_path, config)
        assert not dice and saved_step(tmp_path) == 4
        assert load_model(tmp_path / train.MODEL).record["steps"] == kept
        state, _ = trained(tmp_path, config)
        assert state.best == pytest.approx(best)
        assert f"**{best:.3f}**" in state.judged[-1]
        assert f"{kept} of 4 steps" in (tmp_path / "README.md").read_text()

    def test_a_kill_cannot_bring_in_a_worse_one(self, folder, tmp_path, dice, killed):
        """What was judged best is in the checkpoint as soon as it is on the disk."""
        dice += [0.5, 0.9, 0.6, 0.7]
        config = tiny_config(validate_minutes=0, checkpoint_minutes=LATER)
        killed(2, folder, tmp_path, config)
        run(folder, tmp_path, config)
        assert load_model(tmp_path / train.MODEL).record["steps"] == 2

    def test_dice_of_the_coarse_stage_is_no_measure_for_the_fine_one(self, folder, tmp_path, dice):
        dice += [0.9, 0.3, 0.4, 0.35]
        config = replace(COARSE_FIRST, validate_minutes=0)
        run(folder, tmp_path, config)
        model = load_model(tmp_path / train.MODEL)
        assert model.record["steps"] == 3 and len(model.network.config.features) == 2

    def test_without_anything_held_out_it_is_the_last(self, folder, tmp_path):
        lines: list[str] = []
        run(folder, tmp_path, tiny_config(validate_minutes=0), progress=lines.append)
        assert load_model(tmp_path / train.MODEL).record["steps"] == 4
        assert "step 4: nothing held out: the last checkpoint is taken" in lines
        assert "Nothing was held out." in (tmp_path / "README.md").read_text()
        assert {name for _, name, _ in metrics(tmp_path)} == {"loss"}


class TestWithoutSafetensors:
    """A bare machine writes checkpoints, and a whole one makes the model of them."""

    @pytest.fixture
    def bare(self, monkeypatch):
        """bare(): a context in which the library is not installed."""
        real = train.importlib.util.find_spec

        def context():
            patch = pytest.MonkeyPatch.context()
            inner = patch.__enter__()
            inner.setattr(
                train.importlib.util,
                "find_spec",
                lambda name, *rest: None if name == "safetensors" else real(name, *rest),
            )
            return patch

        return context

    def test_a_run_that_ended_there(self, folder, held_out, tmp_path, bare):
        patch = bare()
        run(folder, tmp_path, validation=[held_out])
        patch.__exit__(None, None, None)
        assert not (tmp_path / train.MODEL).exists() and saved_step(tmp_path) == 4
        assert trained(tmp_path, tiny_config())[0].best == -math.inf
        path = run(folder, tmp_path, validation=[held_out])
        state, _ = trained(tmp_path, tiny_config())
        written = load_model(path).network.state_dict()
        assert all(torch.equal(v, written[k]) for k, v in state.average.state_dict().items())
        assert (tmp_path / "README.md").is_file()
        rows = metrics(tmp_path)
        assert len({(number, name) for number, name, _ in rows}) == len(rows)


class TestNotice:
    """The process sends itself what a scheduler sends."""

    @pytest.fixture
    def told(self, monkeypatch):
        """told(number, moment): from now on signal `number` comes during step `moment`, twice."""
        real = train.train_step

        def call(number: int, moment: int) -> None:
            def spy(state, *rest):
                if state.step == moment:
                    os.kill(os.getpid(), number)
                    os.kill(os.getpid(), number)
                return real(state, *rest)

            monkeypatch.setattr(train, "train_step", spy)

        return call

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
    def test_a_checkpoint_and_no_more(self, folder, held_out, tmp_path, told, number, monkeypatch):
        whole = run(folder, tmp_path / "whole", COARSE_FIRST, [held_out]).parent
        before = signal.getsignal(number)
        told(number, 1)
        name = signal.Signals(number).name
        with monkeypatch.context() as patch:
            patch.setattr(train, "validate", None)  # judging takes time that is not there
            with pytest.raises(TryAgainLater, match=f"stopped by {name} at step 2 of 4, with"):
                run(folder, tmp_path / "told", COARSE_FIRST, [held_out])
        assert saved_step(tmp_path / "told") == 2 and signal.getsignal(number) == before
        run(folder, tmp_path / "told", COARSE_FIRST, [held_out])
        assert_same_run(whole, tmp_path / "told", COARSE_FIRST)

    def test_the_last_step_is_judged(self, folder, held_out, tmp_path, told):
        told(signal.SIGTERM, 3)
        assert run(folder, tmp_path, validation=[held_out]).is_file()

    def test_the_bare_entry_says_it(self, folder, tmp_path, told, capsys):
        maps, table = load_maps([folder])
        write_pack(tmp_path / "a.pack", maps, table)
        (tmp_path / "tiny.toml").write_text(toml_of(tiny_config()))
        told(signal.SIGUSR1, 0)
        words = [tmp_path / "a.pack", tmp_path / "out", "--config", tmp_path / "tiny.toml"]
        assert main([str(word) for word in words]) == 75
        assert "out: stopped by SIGUSR1 at step 1 of 4" in capsys.readouterr().err


class TestTime:
    def test_at_least_one_step_is_made(self, folder, tmp_path):
        for done, minutes in ((1, 0.0), (2, -1.0)):
            run(folder, tmp_path, max_minutes=minutes)
            assert saved_step(tmp_path) == done

    def test_it_adds_up_over_resumes(self, folder, tmp_path):
        minutes = []
        for _ in range(3):
            one_step_at_a_time(folder, tmp_path)
            minutes.append(trained(tmp_path, tiny_config())[0].minutes)
        assert 0 < minutes[0] < minutes[1] < minutes[2]

    def test_the_growth_does_not_lose_it(self, folder, tmp_path):
        for _ in range(2):
            one_step_at_a_time(folder, tmp_path, replace(COARSE_FIRST, steps=9))
        before = trained(tmp_path, COARSE_FIRST)[0].minutes
        one_step_at_a_time(folder, tmp_path, replace(COARSE_FIRST, steps=9))
        assert trained(tmp_path, COARSE_FIRST)[0].minutes > before > 0

    def test_how_often_it_judges_and_saves(self, folder, held_out, tmp_path, monkeypatch):
        calls = {"judged": 0, "saved": 0}

        def counted(name, real):
            def call(*given):
                calls[name] += 1
                return real(*given)

            return call

        monkeypatch.setattr(train, "validate", counted("judged", train.validate))
        monkeypatch.setattr(train, "save_state", counted("saved", train.save_state))
        for validate_minutes, checkpoint_minutes, expected in (
            (LATER, LATER, (1, 1)),
            (0, LATER, (4, 4)),
            (LATER, 0, (1, 4)),
        ):
            calls.update(judged=0, saved=0)
            config = tiny_config(
                validate_minutes=validate_minutes, checkpoint_minutes=checkpoint_minutes
            )
            out = tmp_path / f"{validate_minutes}-{checkpoint_minutes}"
            run(folder, out, config, [held_out])
            assert (calls["judged"], calls["saved"]) == expected


class TestTraining:
    def test_the_loss_falls(self, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(monitor, "REPORT_SECONDS", -1.0)
        config = tiny_config(
            shape=(16, 16, 16),
            steps=40,
            rate=1e-2,
            coarse_steps=20,
            network=NetworkConfig(features=(6, 10, 12), convs=(1, 1, 1)),
            synthesis=replace(UNTOUCHED, flip=0.5),
        )
        run(folder, tmp_path, config)
        losses = [float(value) for _, name, value in metrics(tmp_path) if name == "loss"]
        assert len(losses) == 40
        assert np.mean(losses[15:20]) < 0.8 * np.mean(losses[:5])
        # The grown network goes on from there.
        assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[15:20])

    def test_a_loss_that_is_not_finite_ends_the_run(self, folder, tmp_path, monkeypatch):
        run(folder, tmp_path, max_minutes=0)
        before = {path: path.read_bytes() for path in state_files(tmp_path)}
        model = (tmp_path / train.MODEL).read_bytes()
        real = step.training_loss
        monkeypatch.setattr(step, "training_loss", lambda *given: math.nan * real(*given))
        with pytest.raises(AppError, match="no longer a finite number"):
            run(folder, tmp_path)
        assert before == {path: path.read_bytes() for path in state_files(tmp_path)}
        assert (tmp_path / train.MODEL).read_bytes() == model

    def test_a_locator_learns_brain_against_the_rest(self, folder, held_out, tmp_path):
        network = NetworkConfig(features=(4, 8), convs=(1, 1), channels_out=2)
        config = tiny_config(target="brain", head="joint", network=network, steps=1)
        model = load_model(run(folder, tmp_path, config, [held_out]))
        assert model.head.table.structures == ("background", "brain")

    def test_channels_must_answer_for_the_labels(self, folder, tmp_path):
        config = tiny_config(network=NetworkConfig(features=(4, 8), convs=(1, 1), channels_out=5))
        with pytest.raises(BadData, match="channels_out is 5; set it to 21"):
            run(folder, tmp_path / "out", config)
        assert not (tmp_path / "out").exists()

    def test_heads_are_borrowed_where_asked(self, folder):
        maps, _ = load_maps([folder])
        said: list[str] = []
        with_heads = replace(SynthesisConfig().head, borrowed=0.2, shells=0.2)
        for head in (SynthesisConfig().head, with_heads):
            config = tiny_config(synthesis=replace(SynthesisConfig(), head=head))
            material = material_of(maps, config, HEAD, torch.device("cpu"), said.append)
            assert material.donors == [] and material.chances.tolist() == [1.0]
        assert any(line.startswith("labels: 1 maps, 100.0% of samples") for line in said)


class TestValidation:
    def test_training_never_draws_a_held_out_map(self, folder, held_out, tmp_path, monkeypatch):
        seen = []
        real = train.train_step

        def spy(state, forward, material, *rest):
            seen.extend(one.dataset for one in material.maps)
            return real(state, forward, material, *rest)

        monkeypatch.setattr(train, "train_step", spy)
        run(folder, tmp_path, tiny_config(steps=2), [held_out])
        assert set(seen) == {"labels"}
        assert {name.split()[0] for _, name, _ in metrics(tmp_path)} == {"loss", "held-out"}
        assert load_model(tmp_path / train.MODEL).record["maps"] == ["labels/sub-01"]

    def test_a_split_file_decides(self, folder, held_out, tmp_path):
        table = tmp_path / "split.tsv"
        table.write_text("dataset\tparticipant_id\tsplit\nheld-out\tsub-01\tvalidation\n")
        said: list[str] = []
        for target, n_labels in (("labels", len(HEAD.table)), ("brain", 2)):
            config = tiny_config(target=target)
            sources = Sources([folder, held_out], split_file=table)
            split, head = gather_maps(sources, config, said.append)
            assert [one.dataset for one in split.training] == ["labels"]
            assert [one.dataset for one in split.validation] == ["held-out"]
            assert split.validation[0].sets.shape[1] == len(head.table) == n_labels
            assert any("split.tsv" in line for line in split.lines)
        assert "1 label maps to train on, 1 to validate on, 2 labels" in said

    def test_a_folder_cannot_be_both(self, folder, held_out, tmp_path):
        again = folder.parent / ".." / folder.parent.name / folder.name
        with pytest.raises(UsageProblem, match="given for training and validation"):
            run(folder, tmp_path, validation=[held_out, again])

    def test_it_leaves_weights_and_samples_alone(self, folder, held_out, tmp_path):
        for name, validation in (("with", [held_out]), ("without", [])):
            run(folder, tmp_path / name, tiny_config(validate_minutes=0), validation)
        (_, ours), (_, theirs) = (
            trained(tmp_path / name, tiny_config()) for name in ("with", "without")
        )
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


class TestBadInput:
    def test_no_data_set(self, tmp_path):
        with pytest.raises(InputMissing, match="no label data sets given"):
            run_training(Sources([]), tmp_path, tiny_config())

    def test_an_empty_data_set(self, tmp_path):
        with pytest.raises(InputMissing, match="to train on"):
            run(tmp_path, tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestBareEntry:
    @pytest.fixture(autouse=True)
    def quiet_log(self, monkeypatch):
        monkeypatch.setattr(logging, "basicConfig", lambda **options: None)

    @pytest.fixture
    def pack(self, folder, tmp_path) -> Path:
        write_pack(tmp_path / "maps.npz", *load_maps([folder]))
        return tmp_path / "maps.npz"

    @pytest.fixture
    def toml(self, tmp_path) -> Path:
        path = tmp_path / "tiny.toml"
        path.write_text(toml_of(tiny_config()))
        assert read_config(path) == tiny_config()
        return path

    def test_it_trains_from_a_pack(self, pack, toml, tmp_path, capsys):
        words = [pack, tmp_path / "run", "--config", toml, "--device", "cpu"]
        for done, more in ((1, ["--max-minutes", 0]), (4, ["--checkpoint-piece-mib", 1])):
            assert main([str(word) for word in (*words, *more)]) == 0
            assert saved_step(tmp_path / "run") == done
        assert load_model(tmp_path / "run" / train.MODEL).record["maps"] == ["labels/sub-01"]

    def test_from_a_model(self, pack, folder, toml, tmp_path):
        earlier = run(folder, tmp_path / "earlier", tiny_config(steps=1))
        words = [pack, tmp_path / "run", "--config", toml, "--device", "cpu", "--max-minutes", 0]
        assert main([str(word) for word in (*words, "--init-from", earlier)]) == 0
        record = load_model(tmp_path / "run" / train.MODEL).record
        assert record["config"]["init_from"] == "model.safetensors"

    def test_what_a_user_can_mend_is_one_line(self, toml, tmp_path, capsys):
        words = [tmp_path / "none.npz", tmp_path / "run", "--config", toml, "--device", "cpu"]
        assert main([str(word) for word in words]) == InputMissing.exit_code
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("Error: ") and "none.npz" in line


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("config", [tiny_config(precision="fp32"), COARSE_FIRST, tiny_config()])
def test_a_cuda_run_agrees_with_the_cpu(folder, held_out, tmp_path, config):
    losses = []
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        run(folder, out, config, [held_out], device=device)
        losses.append({name: float(value) for _, name, value in metrics(out)}["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
