"""Splits: as told, else held out by a hash; no subject on both sides."""

from dataclasses import replace

import pytest
from training_samples import ball_map

from bids_synthseg.errors import BadData, InputMissing
from bids_synthseg.learning.split import split_maps


def people(n: int, dataset: str = "one", sessions: tuple[str, ...] = ("",), split: str = ""):
    """Maps of subjects sub-00, sub-01, ..., one for each session."""
    first = ball_map()
    return [
        replace(
            first,
            name=f"sub-{number:02}{session}",
            subject=f"sub-{number:02}",
            dataset=dataset,
            split=split,
        )
        for number in range(n)
        for session in sessions
    ]


def names(maps) -> list[str]:
    return [f"{one.dataset}/{one.name}" for one in maps]


def test_a_share_is_held_out_by_subject():
    maps = people(20, sessions=("_ses-a", "_ses-b"))
    split = split_maps(maps, share=0.15)
    assert len(split.validation) == 6 and len(split.training) == 34
    assert not {m.subject for m in split.validation} & {m.subject for m in split.training}
    (line,) = split.lines
    assert line.startswith("one: 3 of 20 subjects held out: sub-")
    assert all(one.subject in line for one in split.validation)


def test_the_order_of_maps_does_not_matter_and_the_seed_does():
    maps = people(30)
    chosen = set(names(split_maps(maps).validation))
    assert set(names(split_maps(maps[::-1]).validation)) == chosen
    assert set(names(split_maps(maps, seed=2).validation)) != chosen
    assert {m.subject for m in split_maps(people(30, "two")).validation} != {
        name.split("/")[1] for name in chosen
    }


def test_order_of_the_maps_is_kept():
    maps = people(9)
    split = split_maps(maps)
    assert names(split.training) == sorted(names(split.training))


@pytest.mark.parametrize(("n", "held_out"), [(1, 0), (4, 0), (5, 1), (14, 1), (16, 2), (107, 11)])
def test_at_least_one_of_a_data_set_that_can_spare_one(n, held_out):
    split = split_maps(people(n))
    assert len(split.validation) == held_out
    if not held_out:
        assert split.lines == (f"one: all to train on, only {n} subjects",)


def test_every_data_set_gives_its_share():
    split = split_maps(people(10, "one") + people(4, "two") + people(6, "three"))
    assert [m.dataset for m in split.validation] == ["one", "three"]
    assert len(split.lines) == 3


def test_nothing_is_held_out_where_nothing_is_asked_for():
    split = split_maps(people(20), share=0)
    assert not split.validation and "nothing is to be held out" in split.lines[0]


def test_the_column_of_a_data_set_goes_before_the_share():
    stated = [
        replace(one, split=split)
        for one, split in zip(
            people(6), ("training", "Validation", "test", "", "train", "none"), strict=True
        )
    ]
    split = split_maps(stated + people(5, "two"))
    assert names(split.validation)[:1] == ["one/sub-01"]
    assert [n for n in names(split.training) if n.startswith("one")] == [
        "one/sub-00",
        "one/sub-03",
        "one/sub-04",
    ]
    assert split.validation[1].dataset == "two"
    assert split.lines[0] == "one: split as its participants.tsv says"


def test_a_table_goes_before_the_column(tmp_path):
    path = tmp_path / "split.tsv"
    path.write_text("participant_id\tsplit\nsub-01\tvalidation\n02\ttest\n")
    split = split_maps(people(4, split="validation"), path)
    assert names(split.validation) == ["one/sub-01"]
    assert names(split.training) == ["one/sub-00", "one/sub-03"]


def test_a_table_may_tell_data_sets_apart(tmp_path):
    path = tmp_path / "split.tsv"
    maps = people(2) + people(2, "two")
    path.write_text("dataset\tparticipant_id\tsplit\ntwo\tsub-01\tvalidation\n")
    assert names(split_maps(maps, path).validation) == ["two/sub-01"]
    path.write_text("participant_id\tsplit\nsub-01\tvalidation\n")
    assert names(split_maps(maps, path).validation) == ["one/sub-01", "two/sub-01"]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ("sub-09\tvalidation", "no label map of sub-09; correct or remove"),
        ("sub-01\tvalid", "sub-01: split is 'valid'; write training"),
        ("sub-01\t", "sub-01: split is ''; write training"),
        ("sub-01", "line 2 has 1 cell"),
        ("sub-01\tvalidation\nsub-01\ttraining", "sub-01 is on two sides"),
        ("sub-00\tvalidation\nsub-01\tvalidation", "leaves no label map to train on"),
        ("sub-00\ttraining", "names no subject to validate on"),
    ],
)
def test_bad_tables_are_named_in_one_line(tmp_path, rows, complaint):
    path = tmp_path / "split.tsv"
    path.write_text(f"participant_id\tsplit\n{rows}\n")
    with pytest.raises(BadData, match=complaint) as caught:
        split_maps(people(2), path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_tables_that_are_none(tmp_path):
    with pytest.raises(InputMissing, match="no such table"):
        split_maps(people(2), tmp_path / "none.tsv")
    (tmp_path / "other.tsv").write_text("subject,side\nsub-01,validation\n")
    with pytest.raises(BadData, match="no column 'participant_id'"):
        split_maps(people(2), tmp_path / "other.tsv")


def test_bad_columns_are_named():
    with pytest.raises(BadData, match=r"one/participants\.tsv: sub-00: split is 'maybe'"):
        split_maps(people(1, split="maybe"))
    with pytest.raises(BadData, match=r"the column split of .*: leaves no"):
        split_maps(people(3, split="validation"))
