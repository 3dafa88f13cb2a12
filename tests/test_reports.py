"""Reports of many sessions: who is chosen, and one that fails leaves the others."""

import pytest

from bids_synthseg.bids import reports
from bids_synthseg.errors import BadData, InputMissing, NothingSelected


@pytest.fixture
def made(monkeypatch, tmp_path):
    """An output of four sessions; notes which reports are written, that of sub-03 fails."""
    (tmp_path / "logs").mkdir()
    for label in ("sub-01", "sub-02_ses-a", "sub-02_ses-b", "sub-03"):
        (tmp_path / "logs" / f"{label}.json").write_text("{}")
    written = []

    def write_report(bids_dir, output_dir, key, **options):
        if key[0] == "03":
            raise BadData("sub-03: a scan is broken; replace it")
        written.append(key)
        return output_dir / "page.html"

    monkeypatch.setattr(reports, "write_report", write_report)
    return written


@pytest.mark.parametrize(
    ("chosen", "expected", "failed"),
    [
        ({}, [("01", None), ("02", "a"), ("02", "b")], 1),
        ({"participants": ["sub-02"]}, [("02", "a"), ("02", "b")], 0),
        ({"sessions": ["ses-b"]}, [("02", "b")], 0),
        ({"participants": ["01", "03"]}, [("01", None)], 1),
    ],
)
def test_the_chosen_are_written_and_failures_counted(made, tmp_path, chosen, expected, failed):
    assert reports.write_reports(tmp_path, tmp_path, **chosen) == failed
    assert made == expected


def test_nothing_to_report_is_said(made, tmp_path):
    with pytest.raises(NothingSelected, match="none of the subjects"):
        reports.write_reports(tmp_path, tmp_path, participants=["04"])
    with pytest.raises(InputMissing, match="holds no session"):
        reports.write_reports(tmp_path, tmp_path / "elsewhere")
