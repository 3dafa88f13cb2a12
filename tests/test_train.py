"""The training loop: it learns, resumes exactly, and says what is wrong before the first step."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_samples import phantom_folder, tiny_config

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.errors import AppError, BadData, InputMissing, StorageProblem, UsageProblem
from bids_synthseg.learning import train
from bids_synthseg.learning.datasets import load_maps
from bids_synthseg.learning.train import (
    learning_rate,
    new_state,
    probabilities_of,
    restore_state,
    run_training,
    save_state,
    train_step,
)
from bids_synthseg.learning.validation import UNTOUCHED, mean_dice, validation_dice
from bids_synthseg.models.checkpoint import load_model
from bids_synthseg.models.heads import Head
from bids_synthseg.models.inputs import to_rank
from bids_synthseg.models.unet import NetworkConfig, UNet

CPU = torch.device("cpu")
HEAD = Head(LabelTable.default())


@pytest.fixture(scope="module")
def folder(tmp_path_factory, phantom_labels, phantom_image) -> Path:
    root = tmp_path_factory.mktemp("data") / "labels"
    return phantom_folder(root, phantom_labels, {"T1w": phantom_image})


@pytest.fixture(scope="module")
def held_out(tmp_path_factory, phantom_labels, phantom_image) -> Path:
    root = tmp_path_factory.mktemp("data") / "held-out"
    scans = {"T1w": phantom_image, "T2w": 200 - phantom_image}
    return phantom_folder(root, phantom_labels, scans)


def one_step_at_a_time(folder: Path, out: Path, **options: object) -> list[str]:
    """Run, stopped by the clock after one step; returns the lines of progress."""
    lines: list[str] = []
    run_training([folder], out, tiny_config(), max_minutes=0, progress=lines.append, **options)
    return lines


def metrics(out: Path) -> list[list[str]]:
    return [line.split("\t") for line in (out / "metrics.tsv").read_text().splitlines()]


def test_resume_is_exact(folder, tmp_path):
    whole = run_training([folder], tmp_path / "whole", tiny_config())
    for step in range(4):
        lines = one_step_at_a_time(folder, tmp_path / "parts")
        assert (f"resumed at step {step}" in lines) == (step > 0)
    parts = tmp_path / "parts" / whole.name
    assert load_model(parts).record["steps"] == load_model(whole).record["steps"] == 4
    states = [torch.load(p.parent / "state.pt", weights_only=True) for p in (whole, parts)]
    for kind in ("network", "average"):
        for name, value in states[0][kind].items():
            assert torch.equal(value, states[1][kind][name]), name
    for one, other in zip(*(s["optimiser"]["state"].values() for s in states), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in ("exp_avg", "exp_avg_sq", "step"))
    models = [load_model(path).network.state_dict() for path in (whole, parts)]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())
    # A run that is done stays as it is.
    before = parts.read_bytes()
    one_step_at_a_time(folder, tmp_path / "parts")
    assert parts.read_bytes() == before


def test_a_run_leaves_its_files(folder, held_out, tmp_path):
    out = tmp_path / "new" / "run"
    path = run_training([folder], out, tiny_config(), validation=[held_out])
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json", "metrics.tsv", "model.safetensors", "state.pt",
    ]  # fmt: skip
    model = load_model(path)
    assert (model.shape, model.fill) == ((16, 24, 16), tiny_config().fill)
    assert model.record["maps"] == ["labels/sub-01"] and model.head == HEAD
    rows = metrics(out)
    assert rows[0] == ["step", "name", "value"]
    assert [row[:2] for row in rows[1:]] == [
        ["4", "loss"], ["4", "held-out/sub-01/0"], ["4", "held-out/sub-01/1"],
    ]  # fmt: skip
    assert json.loads((out / "config.json").read_text())["shape"] == [16, 24, 16]


def test_training_lowers_the_loss(folder):
    """Labels in fixed intensities, mildly deformed: to be learned within seconds."""
    config = tiny_config(
        shape=(16, 16, 16),
        steps=60,
        batch=2,
        rate=1e-2,
        network=NetworkConfig(features=(8, 12), convs=(1, 1)),
        synthesis=replace(UNTOUCHED, flip=0.5),
    )
    maps, table = load_maps([folder], "labels")
    head = Head(table)
    state = new_state(config, head, CPU)
    dice_before = validation_dice(state.network, maps, config, head)
    losses = [train_step(state, maps, np.ones(1), config, head, CPU) for _ in range(config.steps)]
    dice_after = validation_dice(state.average, maps, config, head)
    assert state.step == 60
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    assert dice_after["labels/sub-01/0"] > dice_before["labels/sub-01/0"] + 0.2


def test_a_locator_learns_brain_against_the_rest(folder, tmp_path):
    network = NetworkConfig(features=(4, 8), convs=(1, 1), channels_out=2)
    config = tiny_config(target="brain", head="joint", network=network, steps=1)
    model = load_model(run_training([folder], tmp_path, config))
    assert model.head.table.structures == ("background", "brain")


def test_samples_depend_on_seed_step_and_number(folder, monkeypatch):
    maps, _ = load_maps([folder], "labels")
    drawn = []
    real = train.draw

    def spy(source, config, shape, fill, rng, pool):
        drawn.append(int(rng.integers(2**62)))
        return real(source, config, shape, fill, rng, pool)

    monkeypatch.setattr(train, "draw", spy)
    for seed in (1, 1, 2):
        config = tiny_config(seed=seed, batch=2)
        state = new_state(config, HEAD, CPU)
        for _ in range(2):
            train_step(state, maps, np.ones(1), config, HEAD, CPU)
    first, again, other = (drawn[k : k + 4] for k in (0, 4, 8))
    assert first == again and len({*first, *other}) == 8


def test_a_grown_run_starts_from_the_coarse_one(folder, tmp_path):
    coarse = run_training([folder], tmp_path / "coarse", tiny_config(steps=1))
    network = NetworkConfig(features=(4, 4, 8), convs=(1, 1, 1))
    config = tiny_config(shape=(32, 48, 32), start_from=str(coarse), network=network, steps=2)
    state = new_state(config, HEAD, CPU)
    expected = load_model(coarse).network.state_dict()["heads.1.weight"]
    assert torch.equal(state.network.state_dict()["heads.2.weight"], expected)
    run_training([folder], tmp_path / "fine", config, max_minutes=0)
    coarse.unlink()
    resumed = run_training([folder], tmp_path / "fine", config)
    assert load_model(resumed).record["steps"] == 2
    with pytest.raises(InputMissing, match="no such weights file"):
        run_training([folder], tmp_path / "another", config)


def test_a_run_starts_from_a_model_of_its_own_architecture(folder, tmp_path):
    first = run_training([folder], tmp_path / "first", tiny_config(steps=1))
    state = new_state(tiny_config(start_from=str(first), seed=9), HEAD, CPU)
    expected = load_model(first).network.state_dict()
    assert all(torch.equal(expected[k], v) for k, v in state.network.state_dict().items())


def test_loss_on_a_lattice_is_close_to_the_loss_everywhere(folder):
    maps, _ = load_maps([folder], "labels")
    losses = []
    for loss_step in (1, 2):
        config = tiny_config(loss_step=loss_step)
        state = new_state(config, HEAD, CPU)
        losses.append(train_step(state, maps, np.ones(1), config, HEAD, CPU))
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_the_finest_level_may_learn_faster():
    config = tiny_config(finest_rate=5.0, rate=1e-3, warm_up=0)
    state = new_state(config, HEAD, CPU)
    finest, rest = state.network.by_level()
    assert len(finest) + len(rest) == len(list(state.network.parameters()))
    assert any(finest[0] is p for p in state.network.encoders[0].parameters())
    before = finest[0].clone(), rest[0].clone()
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(config, 0) * group["scale"]
    for parameter in state.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimiser.step()  # Adam's first step is the rate in every weight
    torch.testing.assert_close(before[0] - finest[0], torch.full_like(finest[0], 5e-3))
    torch.testing.assert_close(before[1] - rest[0], torch.full_like(rest[0], 1e-3))


def test_growing_from_another_architecture(folder, tmp_path):
    coarse = run_training([folder], tmp_path, tiny_config(steps=1))
    network = NetworkConfig(features=(4, 4, 16), convs=(1, 1, 1))
    config = tiny_config(shape=(32, 48, 32), start_from=str(coarse), network=network)
    with pytest.raises(BadData, match=r"model\.safetensors: a model of another architecture"):
        new_state(config, HEAD, CPU)


def test_channels_must_answer_for_the_labels():
    config = tiny_config(network=NetworkConfig(features=(4,), convs=(1,), channels_out=5))
    with pytest.raises(BadData, match="channels_out is 5; set it to 21 for head 'sided'"):
        new_state(config, HEAD, CPU)


def test_learning_rate_by_hand():
    config = tiny_config(rate=2.0, rate_end=0.1, warm_up=10, steps=110)
    assert learning_rate(config, 0) == pytest.approx(0.2)
    assert learning_rate(config, 9) == pytest.approx(2.0)
    assert learning_rate(config, 60) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert learning_rate(config, 110) == learning_rate(config, 999) == pytest.approx(0.2)


def test_shares_are_divided_among_the_maps_of_a_data_set(folder):
    (one,), _ = load_maps([folder], "labels")
    maps = [replace(one, dataset=name) for name in ("a", "a", "a", "b")]
    np.testing.assert_allclose(probabilities_of(maps, {}), [1 / 6, 1 / 6, 1 / 6, 1 / 2])
    np.testing.assert_allclose(probabilities_of(maps, {"a": 3.0}), [0.25] * 4)
    np.testing.assert_allclose(probabilities_of(maps, {"b": 0.0}), [1 / 3] * 3 + [0])
    for weights, complaint in (
        ({"c": 1.0}, "no data set is named 'c'; known are a, b"),
        ({"a": 0.0, "b": 0.0}, "at least one above 0"),
        ({"a": -1.0}, "must not be negative"),
    ):
        with pytest.raises(BadData, match=complaint):
            probabilities_of(maps, weights)


def test_average_follows_the_weights(folder):
    maps, _ = load_maps([folder], "labels")
    config = tiny_config(average=0.9)
    state = new_state(config, HEAD, CPU)
    start = state.network.heads[0].bias.detach().clone()
    train_step(state, maps, np.ones(1), config, HEAD, CPU)
    new = state.network.heads[0].bias.detach()
    assert not torch.equal(new, start)
    # The decay of the first step is (1 + 1) / (10 + 1), below the configured one.
    torch.testing.assert_close(state.average.heads[0].bias.detach(), start + 9 / 11 * (new - start))


def test_a_gradient_that_is_not_finite_changes_nothing(folder, monkeypatch, tmp_path):
    maps, _ = load_maps([folder], "labels")
    real = train.label_set_loss
    monkeypatch.setattr(train, "label_set_loss", lambda *given: math.nan * real(*given))
    state = new_state(tiny_config(), HEAD, CPU)
    before = {name: value.clone() for name, value in state.network.state_dict().items()}
    assert math.isnan(train_step(state, maps, np.ones(1), tiny_config(), HEAD, CPU))
    assert all(torch.equal(before[n], v) for n, v in state.network.state_dict().items())
    with pytest.raises(AppError, match="no longer a finite number"):
        one_step_at_a_time(folder, tmp_path)
    assert not (tmp_path / "state.pt").exists()


class TestCheckpoints:
    @pytest.fixture
    def state(self):
        return new_state(tiny_config(), HEAD, CPU)

    def test_truncated(self, state, tmp_path):
        path = tmp_path / "state.pt"
        save_state(path, state)
        content = path.read_bytes()
        for kept in (0, 100, len(content) // 2, len(content) - 10):
            path.write_bytes(content[:kept])
            with pytest.raises(BadData, match=r"state\.pt: truncated, or no checkpoint"):
                restore_state(path, state)

    @pytest.mark.parametrize("content", [b"hello", b"\x80\x02.", b"PK\x03\x04" + bytes(60)])
    def test_no_checkpoint_at_all(self, state, tmp_path, content):
        path = tmp_path / "state.pt"
        path.write_bytes(content)
        with pytest.raises(BadData, match="truncated, or no checkpoint"):
            restore_state(path, state)

    def test_of_another_architecture(self, state, tmp_path):
        wider = NetworkConfig(features=(4, 16), convs=(1, 1))
        save_state(tmp_path / "state.pt", new_state(tiny_config(network=wider), HEAD, CPU))
        with pytest.raises(BadData, match=r"state\.pt: a checkpoint of another architecture"):
            restore_state(tmp_path / "state.pt", state)

    @pytest.mark.parametrize("foreign", [{"epoch": 3}, [1, 2]], ids=["keys", "list"])
    def test_of_another_program(self, state, tmp_path, foreign):
        torch.save(foreign, tmp_path / "state.pt")
        with pytest.raises(BadData, match="another architecture"):
            restore_state(tmp_path / "state.pt", state)

    def test_a_full_disk_leaves_the_last_one(self, state, tmp_path, monkeypatch):
        path = tmp_path / "state.pt"
        save_state(path, state)
        before = path.read_bytes()

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(StorageProblem, match=r"state\.pt: the disk or your quota is full"):
            save_state(path, state)
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]

    def test_another_configuration(self, folder, tmp_path):
        one_step_at_a_time(folder, tmp_path)
        with pytest.raises(BadData, match="holds a run of another configuration"):
            run_training([folder], tmp_path, tiny_config(rate=0.5))
        (tmp_path / "config.json").unlink()
        with pytest.raises(BadData, match="holds a run of another configuration"):
            run_training([folder], tmp_path, tiny_config())


class TestValidation:
    def test_training_never_draws_a_held_out_map(self, folder, held_out, tmp_path, monkeypatch):
        seen = []
        real = train.train_step

        def spy(state, maps, *given):
            seen.extend(one.dataset for one in maps)
            return real(state, maps, *given)

        monkeypatch.setattr(train, "train_step", spy)
        run_training([folder], tmp_path, tiny_config(steps=2), validation=[held_out])
        assert set(seen) == {"labels"}
        assert {row[1].split("/")[0] for row in metrics(tmp_path)[1:]} == {"loss", "held-out"}
        assert load_model(tmp_path / "model.safetensors").record["maps"] == ["labels/sub-01"]

    def test_a_folder_cannot_be_both(self, folder, held_out, tmp_path):
        again = folder.parent / ".." / folder.parent.name / folder.name
        with pytest.raises(UsageProblem, match="given for training and validation"):
            run_training([folder], tmp_path, tiny_config(), validation=[held_out, again])

    def test_validation_leaves_weights_and_samples_alone(self, folder, held_out, tmp_path):
        paths = [
            run_training([folder], tmp_path / name, tiny_config(validate_minutes=0), validation=v)
            for name, v in (("with", [held_out]), ("without", []))
        ]
        states = [load_model(path).network.state_dict() for path in paths]
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())

    def test_the_scan_is_shown_as_it_is(self, folder):
        maps, table = load_maps([folder], "labels")
        shown = []

        class Spy(UNet):
            def forward(self, image):
                shown.append(image[0, 0])
                return super().forward(image)

        network = Spy(tiny_config().network)
        config = tiny_config(shape=(20, 24, 18), fill=0.9)
        one = replace(maps[0].source, voxel_mm=(1, 1, 1), extent_mm=(18, 21.6, 16.2))
        validation_dice(network, [replace(maps[0], source=one)], config, Head(table))
        torch.testing.assert_close(shown[0], to_rank(one.images[0].float()), atol=0.03, rtol=0)

    def test_mean_dice_by_hand(self):
        sets = np.zeros((4, 3), dtype=bool)
        sets[0, 0] = sets[1, 1] = True
        sets[2, [1, 2]] = True
        sets[3, [0, 2]] = True  # may be background: not judged
        classes = torch.tensor([0, 1, 1, 2, 3]).view(5, 1, 1)
        labels = torch.tensor([0, 1, 2, 2, 1]).view(5, 1, 1)
        # {1}: 1 of 2 hit, 2 found; {1, 2}: 1 of 1 hit, 4 found
        assert mean_dice(labels, classes, sets) == pytest.approx((2 * 1 / 4 + 2 * 1 / 5) / 2)
        assert math.isnan(mean_dice(labels, classes.clamp(max=0), sets))


class TestBadInput:
    def test_no_data_set(self, tmp_path):
        with pytest.raises(InputMissing, match="no label data sets given"):
            run_training([], tmp_path, tiny_config())

    def test_an_empty_data_set(self, tmp_path):
        with pytest.raises(InputMissing, match="to train on"):
            run_training([tmp_path], tmp_path / "out", tiny_config())
        assert not (tmp_path / "out").exists()

    def test_an_output_that_cannot_be(self, folder, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(AppError, match="in the way"):
            run_training([folder], tmp_path / "file" / "out", tiny_config())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_run_agrees_with_the_cpu(folder, held_out, tmp_path):
    losses = []
    for device in ("cpu", "cuda"):
        run_training(
            [folder], tmp_path / device, tiny_config(), validation=[held_out], device=device
        )
        losses.append(float(metrics(tmp_path / device)[1][2]))
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
