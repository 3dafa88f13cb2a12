"""The label table: mirror, fold, channels, and tables that must be refused."""

from dataclasses import replace

import numpy as np
import pytest

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.errors import BadData

TABLE = LabelTable.default()


def changed(index, **values):
    """The default table's rows with one row altered."""
    return tuple(replace(row, **values) if row.index == index else row for row in TABLE.rows)


def test_shipped_table_holds_34_labels_with_background_first():
    assert len(TABLE) == 34
    assert TABLE.ids[0] == 0
    assert LabelTable.default() is TABLE


def test_channel_of_inverts_ids():
    assert [TABLE.channel_of(index) for index in TABLE.ids.tolist()] == list(range(34))
    with pytest.raises(KeyError):
        TABLE.channel_of(9999)


def test_mirror_is_an_involution_that_swaps_sides():
    mirror = TABLE.mirror_channels
    assert np.array_equal(mirror[mirror], np.arange(len(TABLE)))
    other = {"left": "right", "right": "left", "midline": "midline"}
    for row, twin in zip(TABLE.rows, mirror, strict=True):
        assert TABLE.rows[twin].side == other[row.side]
        assert TABLE.rows[twin].structure == row.structure
        assert TABLE.rows[twin].mapping == row.mapping


@pytest.mark.parametrize(("left", "right"), [(2, 41), (17, 53), (26, 58), (1004, 2004), (16, 16)])
def test_mirror_pairs_by_id(left, right):
    assert TABLE.ids[TABLE.mirror_channels[TABLE.channel_of(left)]] == right


def test_fold_sends_the_sided_corpus_callosum_to_white_matter():
    folded, channels = TABLE.fold("aseg")
    assert len(folded) == 32
    assert set(folded.ids.tolist()) == set(TABLE.ids.tolist()) - {1004, 2004}
    become = dict(zip(TABLE.ids.tolist(), folded.ids[channels].tolist(), strict=True))
    assert become[1004] == 2
    assert become[2004] == 41
    assert all(become[index] == index for index in folded.ids.tolist())


def test_fold_of_a_folded_table_changes_nothing():
    folded, _ = TABLE.fold("aseg")
    again, channels = folded.fold("aseg")
    assert again == folded
    assert np.array_equal(channels, np.arange(len(folded)))


def test_records_rebuild_the_table():
    assert LabelTable.from_records(TABLE.records()) == TABLE


@pytest.mark.parametrize(
    "rows",
    [
        (),
        TABLE.rows[1:],
        (*TABLE.rows, TABLE.rows[3]),
        tuple(row for row in TABLE.rows if row.index != 41),
        changed(2, mirror=42),
        changed(14, mirror=15),
        changed(2, side="midline"),
        changed(14, side="left"),
        changed(2, side="upper"),
        changed(2, structure="cerebral cortex"),
    ],
    ids=[
        "empty",
        "no background",
        "repeated id",
        "mirror missing",
        "mirror does not answer",
        "one-way mirror",
        "sided but midline",
        "midline but sided",
        "unknown side",
        "mirror of another structure",
    ],
)
def test_inconsistent_tables_are_refused(rows):
    with pytest.raises(ValueError):
        LabelTable(rows)


HEADER = "index\tname\tabbreviation\tcolor\tmapping\tstructure\tside\tmirror\taseg\n"
BACKGROUND = "0\tBackground\tBG\t#000000\t0\tbackground\tmidline\t0\t0\n"


def test_table_is_read_from_a_file(tmp_path):
    path = tmp_path / "labels.tsv"
    path.write_text(HEADER + BACKGROUND)
    assert LabelTable.from_tsv(path).ids.tolist() == [0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEADER.replace("\tmirror", "") + BACKGROUND,
        HEADER + BACKGROUND.replace("0\tB", "zero\tB"),
        HEADER + "0\tBackground\n",
        HEADER + BACKGROUND + BACKGROUND,
    ],
    ids=["empty", "column missing", "no number", "short row", "repeated id"],
)
def test_a_bad_file_is_named(tmp_path, text):
    path = tmp_path / "labels.tsv"
    path.write_text(text)
    with pytest.raises(BadData, match=r"labels\.tsv"):
        LabelTable.from_tsv(path)
