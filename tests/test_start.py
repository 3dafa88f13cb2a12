"""Where a run begins: stages by hand, growth that changes no answer, models of every kind."""

import math
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from training_samples import ball_map, tiny_config

from bids_synthseg.anatomy.labels import Label, LabelTable
from bids_synthseg.errors import BadData, InputMissing
from bids_synthseg.learning.distributed import Team
from bids_synthseg.learning.start import (
    SHIPPED,
    empty_state,
    first_state,
    grown_state,
    settled,
    stage_of,
)
from bids_synthseg.learning.states import restore_state, save_state
from bids_synthseg.learning.step import Material, train_step
from bids_synthseg.models.checkpoint import Model, load_model, save_model
from bids_synthseg.models.heads import Head
from bids_synthseg.models.unet import NetworkConfig, Pyramid, UNet, upsample

CPU = torch.device("cpu")
HEAD = Head(LabelTable.default())
FINE = NetworkConfig(features=(4, 6, 8), convs=(1, 1, 1))
COARSE = NetworkConfig(features=(6, 8), convs=(1, 1))


def weights(network):
    return network.state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


def first(config, head=HEAD):
    """The first state, and what was said."""
    said = []
    return first_state(config, head, CPU, said.append), said


@pytest.fixture
def model(tmp_path):
    """A model file: model(network, head=...) -> its path."""

    def write(network: NetworkConfig, head: Head = HEAD) -> Path:
        torch.manual_seed(5)
        path = tmp_path / "earlier.safetensors"
        save_model(path, Model(UNet(network), head, (16, 24, 16), 0.9))
        return path

    return write


class TestStages:
    CONFIG = tiny_config(
        shape=(32, 48, 32), voxel_mm=0.5, pool=2, loss_step=2, finest_rate=5.0, steps=9,
        coarse_steps=3, network=FINE,
    )  # fmt: skip

    def test_the_coarse_one_by_hand(self):
        coarse = stage_of(self.CONFIG, 2)
        assert (coarse.shape, coarse.voxel_mm, coarse.pool) == ((16, 24, 16), 1.0, 4)
        assert (coarse.loss_step, coarse.finest_rate, coarse.steps) == (1, 1.0, 9)
        assert coarse.network == COARSE
        assert stage_of(replace(self.CONFIG, voxel_mm=0.0, loss_step=1), 0).voxel_mm == 0

    def test_which_holds_when(self):
        assert [stage_of(self.CONFIG, step).network for step in range(5)] == [COARSE] * 3 + [
            FINE
        ] * 2
        assert stage_of(self.CONFIG, 3) == self.CONFIG
        plain = tiny_config()
        assert stage_of(plain, 0) is plain

    def test_a_network_of_two_levels_has_one_at_first(self):
        config = tiny_config(coarse_steps=1)
        assert stage_of(config, 0).network.features == (8,)

    def test_stem_and_evidence_come_later(self):
        network = replace(COARSE, stem=True, evidence=20)
        assert stage_of(tiny_config(coarse_steps=1, network=network), 0).network == COARSE


class TestGrowth:
    def grown(self, config):
        state, _ = first(stage_of(config, 0))
        for value in state.average.parameters():
            torch.nn.init.normal_(value)
        state.step, state.best, state.judged = 3, 0.5, ["| a |"]
        return state, grown_state(state, config, CPU)

    @pytest.mark.parametrize(
        "network",
        [FINE, COARSE, replace(FINE, evidence=20)],
        ids=["three levels", "two levels", "evidence"],
    )
    def test_it_goes_on_with_what_the_average_says(self, network):
        config = tiny_config(coarse_steps=3, network=network)
        coarse, fine = self.grown(config)
        assert fine.network.config == network and same(weights(fine.network), weights(fine.average))
        image = torch.randn((1, 4, 16, 24, 16), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = upsample(coarse.average(F.avg_pool3d(image, 2)))
            torch.testing.assert_close(fine.network(image), expected)

    def test_a_stem_and_evidence_are_put_on(self):
        network = replace(COARSE, stem=True, evidence=20)
        config = tiny_config(coarse_steps=3, network=network)
        coarse, fine = self.grown(config)
        assert coarse.network.config == COARSE and fine.network.config == network
        image = torch.randn((1, 4, 16, 24, 16), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = coarse.average(F.avg_pool3d(image, 2))
            answer = F.avg_pool3d(fine.network(image), 2)
            torch.testing.assert_close(answer, expected, atol=1e-4, rtol=1e-4)

    def test_what_begins_anew_and_what_does_not(self):
        _, fine = self.grown(tiny_config(coarse_steps=3, network=FINE, finest_rate=4.0))
        assert (fine.step, fine.best, fine.judged) == (3, -math.inf, [])
        assert fine.optimiser.state_dict()["state"] == {}
        assert [group["scale"] for group in fine.optimiser.param_groups] == [4.0, 1.0]

    def test_it_is_the_same_every_time(self):
        config = tiny_config(coarse_steps=3, network=FINE)
        coarse, once = self.grown(config)
        torch.rand(5)
        again = grown_state(coarse, config, CPU)
        assert same(weights(once.network), weights(again.network))


class TestFreshWeights:
    def test_they_depend_on_the_seed(self):
        one, again, other = (first(tiny_config(seed=seed))[0] for seed in (1, 1, 2))
        assert same(weights(one.network), weights(again.network))
        assert not same(weights(one.network), weights(other.network))
        assert same(weights(one.network), weights(one.average))
        assert one.network is not one.average and (one.step, one.best) == (0, -math.inf)

    def test_channels_must_answer_for_the_labels(self):
        config = tiny_config(network=NetworkConfig(features=(4,), convs=(1,), channels_out=5))
        with pytest.raises(BadData, match="channels_out is 5; set it to 21 for head 'sided'"):
            first(config)

    def test_an_empty_state_takes_a_checkpoint(self, tmp_path):
        frozen_parts = tiny_config(network=FINE, freeze=("encoder",))
        for stage in (stage_of(tiny_config(coarse_steps=2, network=FINE), 1), frozen_parts):
            state, _ = first(stage)
            material = Material([ball_map()], [1.0], [], HEAD)
            train_step(state, Pyramid(state.network), material, stage, Team(0, 1, CPU))
            save_state(tmp_path, state)
            empty = empty_state(stage, CPU)
            restore_state(tmp_path, empty)
            assert same(weights(empty.network), weights(state.network))
            frozen = [not value.requires_grad for value in empty.network.encoders.parameters()]
            assert all(frozen) == (stage is frozen_parts) and frozen


class TestModelsToStartFrom:
    def test_one_of_the_same_kind(self, model):
        path = model(FINE)
        state, said = first(tiny_config(network=FINE, init_from=str(path), seed=9))
        assert same(weights(state.network), weights(load_model(path).network))
        assert same(weights(state.average), weights(state.network))
        assert said == [f"started from {path}: 21 of 21 channels moved"]

    def test_one_without_the_finest_level(self, model):
        path = model(COARSE)
        state, _ = first(tiny_config(network=FINE, init_from=str(path)))
        expected = weights(load_model(path).network)
        assert torch.equal(weights(state.network)["heads.2.weight"], expected["heads.1.weight"])
        assert not state.network.heads[0].weight.any()

    def test_one_with_a_level_that_comes_later(self, model):
        path = model(FINE)
        config = tiny_config(network=FINE, coarse_steps=2, init_from=str(path))
        state, _ = first(stage_of(config, 0))
        expected = weights(load_model(path).network)
        assert torch.equal(weights(state.network)["heads.0.weight"], expected["heads.1.weight"])

    def test_one_of_other_labels(self, model):
        rows = LabelTable.default().rows
        thalamus = [row for row in rows if row.structure == "thalamus"]
        lesion = Label(99, "Lesion", "LES", "#000000", 0, "lesion", "midline", 99, 99)
        other = Head(LabelTable((*(row for row in rows if row not in thalamus), lesion)))
        path = model(replace(COARSE, channels_out=other.n_channels), other)
        state, (line,) = first(tiny_config(network=COARSE, init_from=str(path)))
        assert line.endswith("20 of 21 channels moved; fresh: thalamus; dropped: lesion")
        old, new = weights(load_model(path).network), weights(state.network)
        assert torch.equal(old["encoders.0.0.weight"], new["encoders.0.0.weight"])
        for name in ("cerebral cortex", "background"):
            theirs, ours = (table.table.structures.index(name) for table in (other, HEAD))
            assert torch.equal(old["heads.0.weight"][theirs], new["heads.0.weight"][ours])

    def test_the_one_that_is_shipped(self):
        with as_file(files("bids_synthseg.weights") / "segmentation.safetensors") as path:
            shipped = load_model(path)
        head = replace(HEAD, kind=shipped.head.kind)
        network = replace(shipped.network.config, channels_out=head.n_channels)
        config = tiny_config(shape=(16, 16, 16), network=network, init_from=SHIPPED)
        state, (line,) = first(config, head)
        assert line.startswith("started from shipped: ") and "fresh" not in line
        moved = weights(state.network)["encoders.0.0.weight"]
        assert torch.equal(moved, weights(shipped.network)["encoders.0.0.weight"])

    @pytest.mark.parametrize(
        "network",
        [replace(COARSE, features=(6, 12)), replace(COARSE, norm="group")],
        ids=["widths", "norm"],
    )
    def test_one_of_another_architecture(self, model, network):
        path = model(network)
        with pytest.raises(BadData, match=r"earlier\.safetensors: a model of another architecture"):
            first(tiny_config(network=FINE, init_from=str(path)))

    def test_none(self, tmp_path):
        with pytest.raises(InputMissing, match="no such weights file"):
            first(tiny_config(init_from=str(tmp_path / "none.safetensors")))

    def test_a_level_that_is_grown_cannot_be_frozen(self, model):
        coarse = stage_of(tiny_config(coarse_steps=2, network=FINE), 0).network
        config = tiny_config(network=FINE, init_from=str(model(coarse)), freeze=("encoder",))
        with pytest.raises(BadData, match="new ones cannot be frozen"):
            first(config)

    def test_parts_of_it_stay_as_they_are(self, model):
        state, _ = first(tiny_config(network=FINE, init_from=str(model(FINE)), freeze=("coarse",)))
        learning = {name for name, v in state.network.named_parameters() if v.requires_grad}
        assert learning and {name.split(".")[1] for name in learning} == {"0"}


class TestArchitectureThatIsKept:
    def test_it_is_that_of_the_model(self, model):
        path = model(replace(COARSE, stem=True, evidence=20))
        config = tiny_config(
            network=FINE, init_from=str(path), keep_network=True, finest_rate=8.0, coarse_steps=2
        )
        kept = settled(config, HEAD)
        assert kept.network.features == COARSE.features and kept.network.stem
        assert kept.network.evidence == HEAD.n_classes
        assert (kept.finest_rate, kept.coarse_steps, kept.keep_network) == (1.0, 0, False)
        assert kept.shape == load_model(path).shape

    def test_else_nothing_changes(self):
        config = tiny_config(network=FINE)
        assert settled(config, HEAD) is config

    def test_it_needs_a_model(self):
        with pytest.raises(ValueError, match="keep_network needs init_from"):
            tiny_config(network=FINE, keep_network=True)
