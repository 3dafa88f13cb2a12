"""What a run reports: lines by hand, a table that survives a kill, TensorBoard where it is."""

import math

import numpy as np
import pytest
import torch

from bids_synthseg.errors import AppError, BadData, StorageProblem
from bids_synthseg.learning import monitor
from bids_synthseg.learning.monitor import Monitor


def follow(folder, said, first_step=0, until=math.inf, steps=100):
    return Monitor(folder, steps, until, first_step, said.append)


def rows(folder):
    header, *lines = (folder / "metrics.tsv").read_text().splitlines()
    assert header == "step\tname\tvalue"
    return [tuple(line.split("\t")) for line in lines]


@pytest.mark.parametrize(
    ("until", "left"),
    # 4 steps in 8 s, so 0.5 steps/s and 96 steps in 192 s; or the end in 60 s; or an end gone by.
    [(math.inf, "3 min left"), (168.0, "60 s left"), (50.0, "0 s left")],
)
def test_a_line_by_hand(tmp_path, clock, until, left):
    said = []
    followed = follow(tmp_path, said, until=until)
    for step, loss in enumerate((1.0, 2.0, math.nan, 3.0), start=1):
        clock.now += 2.0
        followed.step(step, torch.tensor(loss), 0.5)
    assert said == [] and rows(tmp_path) == []
    followed.report(4)
    assert said == [
        f"step 4/100 loss 2.0000, 0.50 steps/s, 25% of the time spent on samples, {left}"
    ]
    followed.report(4)  # nothing new
    assert len(said) == 1 and rows(tmp_path) == [("4", "loss", "2.00000")]


def test_it_reports_by_itself(tmp_path, clock):
    said = []
    followed = follow(tmp_path, said)
    for step in range(1, 8):
        clock.now += 4.0
        followed.step(step, torch.tensor(float(step)), 0.0)
    assert rows(tmp_path) == [("3", "loss", "2.00000"), ("6", "loss", "5.00000")]
    assert [line.split("/")[0] for line in said] == ["step 3", "step 6"]


def test_the_rate_is_that_of_this_process(tmp_path, clock):
    said = []
    followed = follow(tmp_path, said, first_step=50)
    clock.now += 10.0
    followed.step(60, torch.tensor(1.0), 0.0)
    followed.report(60)
    assert "1.00 steps/s" in said[0] and said[0].endswith("40 s left")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (9000, "2.5 h")],
)
def test_duration(seconds, words):
    assert monitor._duration(seconds) == words


def test_a_loss_that_has_come_apart(tmp_path, clock):
    followed = follow(tmp_path, [])
    followed.step(1, torch.tensor(math.nan), 0.0)
    with pytest.raises(AppError, match=r"step 1: the loss is no longer a finite number"):
        followed.report(1)


def test_scores(tmp_path):
    followed = follow(tmp_path, [])
    followed.score(3, {"newborns/T1w": 0.5, "newborns/T2w": math.nan})
    assert rows(tmp_path) == [("3", "newborns/T1w", "0.50000")]


class TestResume:
    """Killed after step 6, restored at step 4: the table is as if it had never been killed."""

    def written(self, folder, first, last, first_step=0):
        followed = follow(folder, [], first_step)
        for step in range(first, last + 1):
            followed.step(step, torch.tensor(float(step)), 0.0)
            followed.report(step)
        followed.close()

    def test_no_step_is_lost_or_twice(self, tmp_path):
        self.written(tmp_path / "whole", 1, 8)
        self.written(tmp_path / "killed", 1, 6)
        with (tmp_path / "killed" / "metrics.tsv").open("a") as stream:
            stream.write("7\tlo")  # a line that was cut off
        self.written(tmp_path / "killed", 5, 8, first_step=4)
        assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
        assert [int(row[0]) for row in rows(tmp_path / "whole")] == list(range(1, 9))

    def test_a_new_run_has_a_new_table(self, tmp_path):
        self.written(tmp_path, 1, 3)
        follow(tmp_path, [])
        assert rows(tmp_path) == []

    def test_a_table_that_went_missing(self, tmp_path):
        follow(tmp_path, [], first_step=4)
        assert rows(tmp_path) == []

    @pytest.mark.parametrize("content", ["a\tb\n1\t2\n", "step\tname\tvalue\nx\ty\tz\n"])
    def test_a_foreign_table(self, tmp_path, content):
        (tmp_path / "metrics.tsv").write_text(content)
        with pytest.raises(BadData, match=r"metrics\.tsv: not the table of a training run"):
            follow(tmp_path, [], first_step=4)
        assert (tmp_path / "metrics.tsv").read_text() == content


def test_a_full_disk(tmp_path, monkeypatch):
    followed = follow(tmp_path, [])

    def full(*given, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.open", full)
    with pytest.raises(StorageProblem, match=r"metrics\.tsv: the disk or your quota is full"):
        followed.score(1, {"loss": 1.0})


def test_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setattr(monitor.importlib.util, "find_spec", lambda name: None)
    followed = follow(tmp_path, [])
    followed.score(1, {"loss": 1.0})
    followed.picture(tmp_path / "preview.png")
    followed.close()
    assert followed.board is None and [path.name for path in tmp_path.iterdir()] == ["metrics.tsv"]


def test_with_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    figure = pytest.importorskip("matplotlib.image")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    figure.imsave(tmp_path / "preview.png", np.ones((4, 6)))
    killed = follow(tmp_path, [])
    killed.picture(tmp_path / "missing.png")
    killed.picture(tmp_path / "preview.png")
    killed.score(2, {"loss": 2.0})
    killed.score(5, {"loss": 5.0})
    killed.close()
    resumed = follow(tmp_path, [], first_step=2)
    resumed.score(3, {"loss": 3.0})
    resumed.close()
    seen = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in seen.Scalars("loss")] == [(2, 2.0), (3, 3.0)]
    (picture,) = seen.Images("preview")
    assert (picture.step, picture.width, picture.height) == (0, 6, 4)
