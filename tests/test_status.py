"""The status table: one row per session, the newest."""

import pytest

from bids_synthseg.status import COLUMNS, read_status, row_of, write_status


def test_rows_are_replaced_and_sorted(tmp_path):
    table = tmp_path / "logs" / "status.tsv"
    assert read_status(table) == []
    write_status(table, row_of(("02", None), "running"))
    write_status(table, row_of(("01", "b"), "failed", "x.nii:\n\tempty; copy it", 1.26, 812.4))
    write_status(table, row_of(("02", None), "done", seconds=20))
    assert [tuple(row[name] for name in COLUMNS) for row in read_status(table)] == [
        ("sub-01", "ses-b", "failed", "1.3", "812", "x.nii: empty; copy it"),
        ("sub-02", "n/a", "done", "20.0", "n/a", "n/a"),
    ]


@pytest.mark.parametrize("text", ["something\telse\n1\t2\n", "\t".join(COLUMNS) + "\nsub-01\n"])
def test_a_damaged_table_is_begun_anew(tmp_path, text, caplog):
    table = tmp_path / "status.tsv"
    table.write_text(text)
    write_status(table, row_of(("02", None), "done"))
    assert [row["subject"] for row in read_status(table)] == ["sub-02"]
    assert len([said for said in caplog.messages if f"begun anew, {table}" in said]) == 1
