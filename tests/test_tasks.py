"""What a model must have for its task; each fault alone is named with the file and a cure."""

from dataclasses import replace
from pathlib import Path

import pytest
from handmade import locator

from bids_synthseg.anatomy.labels import Label, LabelTable
from bids_synthseg.errors import BadData
from bids_synthseg.models.checkpoint import Model
from bids_synthseg.models.heads import Head
from bids_synthseg.models.tasks import LOCATOR, SEGMENTATION, check_model, task_of
from bids_synthseg.models.unet import NetworkConfig, UNet

PATH = Path("some/model.safetensors")
DEFAULT = LabelTable.default()


def model(table: LabelTable = DEFAULT, kind: str = "sided", **network) -> Model:
    """A model of two levels for a table."""
    head = Head(table, kind)
    config = NetworkConfig((2, 2), channels_out=head.n_channels, convs=(1, 1), **network)
    return Model(UNet(config), head, (16, 24, 16), 0.9)


def table_with(**changes) -> LabelTable:
    """The default table with another brain stem."""
    rows = (replace(row, **changes) if row.index == 16 else row for row in DEFAULT.rows)
    return LabelTable(tuple(rows))


def without(*indices: int) -> LabelTable:
    return LabelTable(tuple(row for row in DEFAULT.rows if row.index not in indices))


def test_tasks_are_told_apart_by_labels():
    assert task_of(model()) == SEGMENTATION
    assert task_of(locator()) == LOCATOR
    # Two labels of which neither is "brain" are a segmentation of one structure.
    lesion = Label(25, "Lesion", "LES", "#ff0000", 99, "lesion", "midline", 25, 25)
    assert task_of(model(LabelTable((DEFAULT.rows[0], lesion)))) == SEGMENTATION


@pytest.mark.parametrize("kind", ["sided", "joint"])
def test_sound_models_pass(kind):
    check_model(PATH, model(kind=kind), SEGMENTATION)
    check_model(PATH, replace(model(), voxel_mm=0.8), SEGMENTATION)
    check_model(PATH, model(without(24, 1004, 2004)), SEGMENTATION)


@pytest.mark.parametrize(
    ("of", "task", "says"),
    [
        ("locator", SEGMENTATION, "locator: it only tells brain from background"),
        ("segmentation", LOCATOR, "segmentation: it labels structures"),
    ],
)
def test_a_model_of_another_task(of, task, says):
    one = model() if of == "segmentation" else locator()
    with pytest.raises(BadData) as caught:
        check_model(PATH, one, task)
    assert str(caught.value) == (
        f"{PATH}: is a model for another task ({says}); give one for {task}"
    )


@pytest.mark.parametrize(
    ("faulty", "reason"),
    [
        (lambda: model(channels_in=1), "wants 1 input channels, there are 4"),
        (lambda: replace(model(), shape=(16, 25, 16)), "must be multiples of 2"),
        (lambda: replace(model(), shape=(16, 24)), "must be multiples of 2"),
        (lambda: replace(model(), shape=(16, 24, 0)), "must be multiples of 2"),
        (lambda: replace(model(), fill=0.0), "fill is 0"),
        (lambda: replace(model(), fill=92.0), "fill is 92"),
        (lambda: replace(model(), voxel_mm=-1.0), "voxel size is -1 mm"),
        (lambda: replace(model(), voxel_mm=float("nan")), "voxel size is nan mm"),
        (lambda: model(without(2, 41)), "label 1004 becomes aseg 2, which is no label"),
        (lambda: model(table_with(aseg=170)), "label 16 becomes aseg 170"),
        (lambda: model(table_with(aseg=1004)), "aseg id 1004 is not between 0 and 255"),
        (lambda: model(table_with(aseg=-1)), "aseg id -1"),
        (lambda: model(table_with(index=40000, mirror=40000)), "label id 40000"),
        (lambda: model(table_with(structure="vermis")), "vermis needs one label in the middle"),
        (
            lambda: model(table_with(structure="thalamus")),
            "thalamus needs one label in the middle, or one on each side",
        ),
    ],
)
def test_what_is_missing_is_named_with_its_file(faulty, reason):
    with pytest.raises(BadData, match=reason) as caught:
        check_model(PATH, faulty(), SEGMENTATION)
    message = str(caught.value)
    assert message.startswith(f"{PATH}: cannot be used for segmentation (")
    assert message.endswith("mended") and "\n" not in message


def test_a_fold_that_loses_a_mirror():
    """Left turns into the middle, right stays: the folded table would have a right without left."""
    rows = (replace(row, aseg=16) if row.index == 10 else row for row in DEFAULT.rows)
    with pytest.raises(BadData, match="folded to aseg: label 49: its mirror 10"):
        check_model(PATH, model(LabelTable(tuple(rows))), SEGMENTATION)


def test_sides_are_no_matter_to_a_joint_head():
    check_model(PATH, model(table_with(structure="vermis"), "joint"), SEGMENTATION)
