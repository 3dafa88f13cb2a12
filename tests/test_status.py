"""The status table: one row per session, the newest, whoever writes."""

import subprocess
import sys
from pathlib import Path

import pytest

from bids_synthseg.bids.status import (
    COLUMNS,
    read_status,
    row_of,
    tidy_status,
    write_status,
)


@pytest.fixture
def table(tmp_path):
    return tmp_path / "logs" / "status.tsv"


def cells(table):
    return [tuple(row[name] for name in COLUMNS) for row in read_status(table)]


def test_rows_are_replaced_and_sorted(table):
    assert read_status(table) == []
    write_status(table, row_of(("02", None), "running"))
    write_status(table, row_of(("01", "b"), "failed", "x.nii:\n\tempty; copy it", 1.26, 812.4))
    write_status(table, row_of(("02", None), "done", seconds=20))
    rows = [
        ("sub-01", "ses-b", "failed", "1.3", "812", "x.nii: empty; copy it"),
        ("sub-02", "n/a", "done", "20.0", "n/a", "n/a"),
    ]
    assert cells(table) == rows
    assert len(table.read_text().splitlines()) == 4
    tidy_status(table, lambda key: False)
    assert cells(table) == rows
    assert len(table.read_text().splitlines()) == 3
    assert [path.name for path in table.parent.iterdir()] == ["status.tsv"]


def test_a_line_is_added_and_the_rest_is_not_even_read(table):
    write_status(table, row_of(("1", None), "done"))
    with table.open("ab") as stream:
        stream.write(b"\xff" * 100_000 + b"\n")
    before = table.read_bytes()
    write_status(table, row_of(("2", None), "done"))
    assert table.read_bytes() == before + b"sub-2\tn/a\tdone\t0.0\tn/a\tn/a\n"


def test_what_is_not_running_is_not_said_to_be(table):
    for subject in ("1", "2"):
        write_status(table, row_of((subject, "a"), "running"))
    tidy_status(table, lambda key: key == ("2", "a"))
    assert [row[2] for row in cells(table)] == ["interrupted", "running"]


def test_a_table_of_something_else_is_begun_anew(table, caplog):
    table.parent.mkdir()
    table.write_text("something\telse\n1\t2\n")
    tidy_status(table, lambda key: False)
    write_status(table, row_of(("02", None), "done"))
    assert [row["subject"] for row in read_status(table)] == ["sub-02"]
    assert len([said for said in caplog.messages if f"{table}: not a status table" in said]) == 1


def test_a_damaged_line_costs_no_other(table, caplog):
    write_status(table, row_of(("01", None), "done"))
    with table.open("a") as stream:
        stream.write("sub-02\tn/a")  # the disk was full
    write_status(table, row_of(("03", None), "done"))
    assert [row[0] for row in cells(table)] == ["sub-01", "sub-03"]
    assert "line 3 is damaged" in caplog.text


def test_names_that_are_no_unicode(table):
    write_status(table, row_of(("01", None), "failed", "\udcff.nii: empty"))
    assert read_status(table)[0]["message"] == "\\udcff.nii: empty"


WRITER = """
import sys
from pathlib import Path
from bids_synthseg.bids.status import row_of, tidy_status, write_status
table, writer = Path(sys.argv[1]), sys.argv[2]
tidy_status(table, lambda key: True)
for number in range(20):
    write_status(table, row_of((writer, str(number)), "running"))
    write_status(table, row_of((writer, str(number)), "done"))
    tidy_status(table, lambda key: True)
"""


def test_no_row_is_lost_where_several_write(table):
    call = [sys.executable, "-c", WRITER, str(table)]
    writers = [subprocess.Popen([*call, str(n)], cwd=Path(__file__).parents[1]) for n in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    rows = cells(table)
    assert len(rows) == 80 and {row[2] for row in rows} == {"done"}
