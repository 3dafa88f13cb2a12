"""Level group: what is read from derivatives, the two tables, and the page."""

import csv
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.bids.ages import Age
from bids_synthseg.bids.derivatives import SessionPaths, SessionWriter, Space
from bids_synthseg.bids.group import write_group
from bids_synthseg.bids.group_page import KINDS, Axis, Row, draw_scatters, page
from bids_synthseg.bids.quality import MEASURES, VERDICTS, Quality
from bids_synthseg.bids.results import Result, Volume, read_results
from bids_synthseg.bids.status import write_status
from bids_synthseg.errors import InputMissing, UsageProblem

TABLE = LabelTable.default().fold("aseg")[0]
N_LABELS = len(TABLE) - 1


def status(out, subject, session=None, status="done", message="n/a", seconds="20.0", part=None):
    table = out / "logs" / ("status.tsv" if part is None else f"status_part-{part}.tsv")
    row = {"subject": f"sub-{subject}", "session": f"ses-{session}" if session else "n/a"}
    row |= {"status": status, "seconds": seconds, "peak_mb": "900", "message": message}
    write_status(table, row)


def segmented(raw, out, subject, session=None, *, mm3=1000.0, spaces=("T1w",), warnings=(),
              finished=True, quality=None):  # fmt: skip
    """What level participant leaves of a session, but for images; every structure has `mm3`."""
    paths = SessionPaths(out, subject, session)
    writer = SessionWriter(paths, raw, config_sha256="c", weights_sha256="w")
    writer.start()
    volumes = np.full(len(TABLE), mm3)
    for space in spaces:
        writer.write_volumes(Space(space, None, ()), TABLE, volumes, volumes + 0.5)
    if finished:
        judged = {"Quality": quality.record()} if isinstance(quality, Quality) else quality or {}
        writer.finish("s" * 64, {"Warnings": list(warnings)} | judged)
    return paths


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.fixture
def raw(bids_tree):
    ages = "participant_id\tage_months\nsub-01\t3\nsub-02\tn/a\n"
    return bids_tree({"participants.tsv": ages})


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_volumes_of_every_session_and_space(raw, out):
    segmented(raw, out, "01", spaces=("T1w", "T2w"))
    segmented(raw, out, "02", "a", mm3=10, spaces=("T2w",))
    write_group(raw, out)
    rows = rows_of(out / "group_volumes.tsv")
    assert [(r["participant_id"], r["session_id"], r["space"], r["age_months"]) for r in rows] == [
        ("sub-01", "n/a", "T1w", "3"),
        ("sub-01", "n/a", "T2w", "3"),
        ("sub-02", "ses-a", "T2w", "n/a"),
    ]
    assert [row["brain_mm3"] for row in rows] == [str(1000 * N_LABELS)] * 2 + [str(10 * N_LABELS)]
    names = [row.name for row in TABLE.rows[1:]]
    assert list(rows[0])[6:] == names + [f"{name}_soft" for name in names]
    assert rows[2]["Right-Thalamus"] == "10" and rows[2]["Right-Thalamus_soft"] == "10.5"
    about = json.loads((out / "group_volumes.json").read_text())
    assert list(about) == list(rows[0])
    assert about["Right-Thalamus"] == {
        "Description": "Volume of all voxels with label 49",
        "Units": "mm^3",
    }


def test_a_structure_that_a_model_did_not_know_is_not_zero(raw, out):
    segmented(raw, out, "01")
    path = segmented(raw, out, "02").file("volumes", ".tsv", space="T1w", desc="aseg")
    path.write_text("index\tname\tvolume_mm3\tvolume_soft_mm3\n24\tCSF\t0\t0\n")
    write_group(raw, out)
    first, second = rows_of(out / "group_volumes.tsv")
    assert (first["CSF"], second["CSF"]) == ("1000", "0")
    assert (first["Vermis"], second["Vermis"], second["Vermis_soft"]) == ("1000", "n/a", "n/a")


def test_quality(raw, out):
    segmented(raw, out, "01", warnings=["the sform is\nodd", "cut off"]).report.write_text("page")
    status(out, "01")
    status(out, "02", "a", "failed", "sub-02_ses-a: cannot be read; fetch it", "1.5")
    write_group(raw, out)
    first, second = rows_of(out / "group_qc.tsv")
    assert first == {
        "participant_id": "sub-01", "session_id": "n/a", "age_months": "3", "age_weeks_pma": "n/a",
        "status": "done", "verdict": "n/a", "reasons": "n/a", "brain_mm3": str(1000 * N_LABELS),
        "warnings": "2", "seconds": "20", "message": "the sform is odd; cut off",
        "report": "sub-01.html", **{name: "n/a" for name in MEASURES},
    }  # fmt: skip
    assert second["status"] == "failed" and second["seconds"] == "1.5"
    assert second["message"] == "sub-02_ses-a: cannot be read; fetch it"
    assert second["brain_mm3"] == second["report"] == "n/a"
    assert list(json.loads((out / "group_qc.json").read_text())) == list(first)


WORRIES = Quality(
    "check", ("asked\nto look", "cut off"), {"predicted_dice": 0.71, "volume_z": None}
)


def test_verdicts_and_all_measures(raw, out):
    segmented(raw, out, "01", quality=WORRIES)
    segmented(raw, out, "02", quality=Quality("pass", (), {"predicted_dice": 0.912345}))
    write_group(raw, out)
    first, second = rows_of(out / "group_qc.tsv")
    assert (first["verdict"], first["reasons"]) == ("check", "asked to look; cut off")
    assert (second["verdict"], second["reasons"]) == ("pass", "n/a")
    assert (first["predicted_dice"], first["volume_z"]) == ("0.71", "n/a")
    assert (second["predicted_dice"], second["volume_z"]) == ("0.9123", "n/a")
    about = json.loads((out / "group_qc.json").read_text())
    assert list(about) == list(first)
    assert set(MEASURES) <= set(first)
    assert about["brain_ml"] == MEASURES["brain_ml"]
    assert list(about["verdict"]["Levels"]) == list(VERDICTS)


def test_the_age_is_that_of_the_tables_now(raw, out):
    segmented(raw, out, "01", quality=Quality("pass", (), {"age_weeks_pma": 99.0}))
    write_group(raw, out)
    [row] = rows_of(out / "group_qc.tsv")
    assert (row["age_months"], row["age_weeks_pma"]) == ("3", "n/a")


@pytest.mark.parametrize("record", [{}, {"Quality": "fine"}, {"Quality": {"Verdict": "good"}}])
def test_outputs_that_were_not_judged(raw, out, record):
    segmented(raw, out, "01", quality=record)
    assert only(out).quality is None and only(out).status == "done"
    assert Row.of(only(out)).kind == "not judged"


def test_a_session_that_is_not_finished_has_no_quality(raw, out):
    path = segmented(raw, out, "01", quality=WORRIES).record
    assert only(out).quality == WORRIES
    path.write_text(json.dumps(json.loads(path.read_text()) | {"Signature": None}))
    assert only(out).quality is None and only(out).status == "unfinished"


def test_soft_volumes_of_an_edited_segmentation_are_not_available(raw, out):
    path = segmented(raw, out, "01").file("volumes", ".tsv", space="T1w", desc="aseg")
    path.write_text("index\tname\tvolume_mm3\tvolume_soft_mm3\n24\tCSF\t7\tn/a\n")
    write_group(raw, out)
    [row] = rows_of(out / "group_volumes.tsv")
    assert (row["CSF"], row["CSF_soft"]) == ("7", "n/a")


def only(out):
    [result] = read_results(out)
    return result


@pytest.mark.parametrize(
    ("said", "finished", "expected", "counts"),
    [
        ("done", True, "done", True),
        ("skipped", True, "done", True),
        (None, True, "done", True),
        ("failed", True, "failed", True),
        ("failed", False, "failed", False),
        ("interrupted", False, "interrupted", False),
        ("running", False, "unfinished", False),
        ("running", True, "unfinished", True),
    ],
)
def test_what_became_of_a_session(raw, out, said, finished, expected, counts):
    segmented(raw, out, "01", finished=finished)
    if said:
        status(out, "01", status=said, message="n/a")
    result = only(out)
    assert (result.status, bool(result.volumes)) == (expected, counts)
    assert (result.seconds is None) == (said in (None, "skipped", "running"))
    assert ("earlier run" in result.message) == (said in ("failed", "running") and finished)


def test_volumes_that_went_away_or_broke(raw, out):
    path = segmented(raw, out, "01").file("volumes", ".tsv", space="T1w", desc="aseg")
    status(out, "01")
    whole = path.read_text()
    ragged = whole.replace("\t1000\t", "\t", 1)
    for text in ("name\tvolume\nCSF\t3\n", ragged, whole.replace("\t1000\t", "\tn/a\t", 1)):
        path.write_text(text)
        assert only(out).status == "incomplete" and str(path) in only(out).message
    path.unlink()
    assert only(out).status == "incomplete" and "gone" in only(out).message
    (out / "logs" / "sub-01.json").write_text("{")
    assert only(out).status == "incomplete" and "sub-01.json" in only(out).message


def test_derivatives_without_logs_count(raw, out):
    (segmented(raw, out, "01", "a").record).unlink()
    result = only(out)
    assert (result.label, result.status, bool(result.volumes)) == ("sub-01_ses-a", "unknown", True)


def test_status_tables_of_all_shards_the_last_word_counts(raw, out):
    status(out, "01", status="failed", message="old")
    status(out, "01", part=3)
    status(out, "02", status="failed", message="new", part=4)
    for age, name in ((30, "status"), (20, "status_part-3"), (10, "status_part-4")):
        stamp = os.stat(out / "logs" / f"{name}.tsv").st_mtime - age
        os.utime(out / "logs" / f"{name}.tsv", (stamp, stamp))
    segmented(raw, out, "01")
    assert [(r.subject, r.status) for r in read_results(out)] == [("01", "done"), ("02", "failed")]


def test_a_status_table_of_something_else_is_left_out(raw, out, caplog):
    segmented(raw, out, "01")
    (out / "logs" / "status.tsv").write_text("subject\tsession\tstatus\nsub-../..\tn/a\tfailed\n")
    (out / "logs" / "status_part-0.tsv").write_text("one\ttwo\n1\t2\n")
    assert [r.label for r in read_results(out)] == ["sub-01"]
    assert len(caplog.messages) == 2


def test_nothing_to_read(raw, out, tmp_path):
    with pytest.raises(InputMissing, match="no results of level participant"):
        write_group(raw, out)
    assert not out.exists()
    segmented(raw, out, "01")
    with pytest.raises(InputMissing, match="no such folder"):
        write_group(tmp_path / "nowhere", out)


def test_the_output_of_another_app_is_not_touched(raw, out):
    segmented(raw, out, "01")
    (out / "dataset_description.json").write_text('{"GeneratedBy": [{"Name": "other"}]}')
    with pytest.raises(UsageProblem, match="did not make"):
        write_group(raw, out)
    assert not list(out.glob("group*"))


def test_all_sessions_failed(raw, out):
    status(out, "01", status="failed", message="no brain found")
    write_group(raw, out)
    assert rows_of(out / "group_volumes.tsv") == []
    assert "no brain found" in (out / "group.html").read_text()


# The page


class Page(HTMLParser):
    """Tags with their attributes, and the text without scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self._inside = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside.append(tag)

    def handle_endtag(self, tag):
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data):
        if not self._inside:
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def links(self):
        return [attributes["href"] for attributes in self.all("a")]


def result(number, ml, **more):
    volumes = {"T1w": {"CSF": Volume(24, 1000.0 * ml, 0.0)}}
    return Result(f"{number:02}", None, "done", volumes=volumes, **more)


def group_of(n, outlier_report):
    """n sessions on a line of growth, the fifth with half a brain."""
    results = [result(k, 400 + 10 * k) for k in range(n)]
    results[4] = result(4, 220, report=outlier_report)
    return results, {one.key: Age(months=float(k)) for k, one in enumerate(results)}


def test_outliers_are_named_and_linked_to_their_report():
    results, ages = group_of(20, "sub-04.html")
    [scatter] = draw_scatters(results, ages)
    assert [(p.result.label, p.off) for p in scatter.outliers] == [("sub-04", "-50 %")]
    assert [tag.result.label for tag in scatter.tags] == ["sub-04"]
    html = Page(page("A group", results, ages))
    assert len(html.all("circle")) == 20
    # Its point, its name in the picture, the list of outliers, the table.
    assert html.links.count("sub-04.html") == 4
    unlinked = Page(page("A group", *group_of(20, None)))
    assert not [link for link in unlinked.links if link.startswith("sub-")]
    assert "sub-04" in unlinked.words


def test_a_small_group_is_drawn_without_a_curve():
    results, ages = group_of(9, None)
    html = Page(page("A group", results, ages))
    assert len(html.all("circle")) == 9 and not html.all("polyline")
    assert "With fewer than 10 sessions" in " ".join(html.words)


def test_every_session_is_drawn_once_on_the_scale_of_its_age():
    results = [result(k, 400) for k in range(4)]
    known = [Age(months=1), Age(weeks_pma=30), Age(1, 41), Age()]
    scatters = draw_scatters(results, dict(zip((r.key for r in results), known, strict=True)))
    drawn = {s.title.split()[2]: [(p.result.subject, p.age) for p in s.points] for s in scatters}
    assert drawn == {"weeks": [("01", 30), ("02", 41)], "months": [("00", 1)]}
    html = page("A group", results, {r.key: Age() for r in results})
    assert "No age is known" in html and "<svg" not in html


def headings(results, ages):
    text = page("A group", results, {r.key: age for r, age in zip(results, ages, strict=True)})
    return re.findall(r'<button type="button">(age.*?)</button>', text)


def test_ages_have_a_column_where_one_is_known():
    results = [result(k, 400) for k in range(2)]
    assert headings(results, [Age(months=0.0), Age()]) == ["age, months"]
    assert headings(results, [Age(1, 41), Age()]) == ["age, weeks pma", "age, months"]
    assert headings(results, [Age(), Age()]) == []


def test_names_in_the_picture_do_not_hide_each_other():
    results, ages = group_of(40, None)
    results[5] = result(5, 222)
    results[30] = result(30, 300)
    [scatter] = draw_scatters(results, ages)
    # The farthest first; the next one's name would lie on that of 05.
    assert [p.result.subject for p in scatter.outliers] == ["30", "05", "04"]
    assert [tag.result.subject for tag in scatter.tags] == ["30", "05"]


@pytest.mark.parametrize(
    ("values", "zero", "ticks"),
    [
        ([0, 30], False, (0, 5, 10, 15, 20, 25, 30)),
        ([300, 1350], True, (0, 200, 400, 600, 800, 1000, 1200)),
        ([40, 40], False, (38.5, 39, 39.5, 40, 40.5, 41, 41.5)),
        ([0, 0], False, (0, 0.2, 0.4, 0.6, 0.8, 1.0)),
    ],
)
def test_axes_have_round_ticks_and_hold_all_values(values, zero, ticks):
    axis = Axis.around(np.array(values, float), 100, 500, zero=zero)
    assert set(ticks) <= set(axis.ticks)
    assert all(100 <= axis.at(value) <= 500 for value in (*values, *axis.ticks))


EVIL = '<img src=x onerror="alert(1)">&'


def test_all_that_comes_from_data_is_escaped(raw, out):
    (raw / "dataset_description.json").write_text(json.dumps({"Name": EVIL, "BIDSVersion": "1"}))
    warnings = [EVIL, "</script><script>alert(1)</script>"]
    segmented(raw, out, "01", warnings=warnings, quality=Quality("fail", (f"why {EVIL}",), {}))
    status(out, EVIL.replace("/", ""), status="failed", message=EVIL)
    write_group(raw, out)
    html = Page((out / "group.html").read_text(encoding="utf-8"))
    assert not html.all("img") and len(html.all("script")) == 1
    assert not [name for _, attributes in html.tags for name in attributes if name[:2] == "on"]
    # Title, heading; a reason, a warning, and the message in both tables.
    assert "".join(html.words).count(EVIL) >= 6
    assert all(re.match(r"(group_\w+\.tsv|sub-|logs/sub-|#)", link) for link in html.links)


def test_the_page_asks_for_nothing_outside_itself(raw, out):
    segmented(raw, out, "01").report.write_text("page")
    status(out, "02", status="failed", message="see https://example.org")
    (out / "logs" / "sub-02.log").write_text("log")
    write_group(raw, out)
    text = (out / "group.html").read_text(encoding="utf-8")
    html = Page(text)
    assert not [tag for tag in ("link", "img", "iframe", "object") if html.all(tag)]
    assert not [a for _, a in html.tags if "src" in a]
    assert "url(" not in text and "@import" not in text and "fetch(" not in text
    [policy] = [m["content"] for m in html.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none';")
    outside = [link for link in html.links if link[0] != "#"]
    assert all((out / link).is_file() for link in outside), outside
    assert {"sub-01.html", "logs/sub-02.log"} <= set(outside)


def test_every_cell_sorts_by_its_number(raw, out):
    segmented(raw, out, "01", mm3=1000.0)
    segmented(raw, out, "02", mm3=200.0, quality=WORRIES)
    write_group(raw, out)
    html = Page((out / "group.html").read_text(encoding="utf-8"))
    values = [float(cell["data-value"]) for cell in html.all("td") if "data-value" in cell]
    # What needs a look comes first. Urgency, reasons; predicted Dice; age; brain in ml.
    checked, not_judged = list(KINDS).index("check"), list(KINDS).index("not judged")
    assert values == [checked, 2, 0.71, N_LABELS / 5, not_judged, 0, 3, N_LABELS]


def row_of(number, status="done", message="", verdict=None, reasons=(), warnings=()):
    quality = verdict and Quality(verdict, tuple(reasons), {})
    return Row.of(
        Result(str(number), None, status, message, quality=quality, warnings=tuple(warnings))
    )


def test_every_session_is_of_one_kind_with_its_reasons():
    rows = [
        row_of(0, "failed", "no brain found"),
        row_of(1, "failed", "full disk", verdict="pass"),
        row_of(2, verdict="fail", reasons=["blurred", "half a brain"], warnings=["half a brain"]),
        row_of(3, verdict="check", reasons=["odd"], warnings=["a shear"]),
        row_of(4, warnings=["a shear"]),
        row_of(5, verdict="pass"),
    ]
    kinds = ["not done", "not done", "fail", "check", "not judged", "pass"]
    assert [row.kind for row in rows] == kinds
    assert [row.urgency for row in rows] == [0, 0, 1, 2, 3, 4]
    assert [row.reasons for row in rows] == [
        ("no brain found",),
        ("full disk",),
        ("blurred", "half a brain"),
        ("odd", "a shear"),
        ("a shear",),
        (),
    ]
    assert set(VERDICTS) < set(KINDS)


def page_of_kinds(folder):
    """A page of two sessions to check, one failure and three that pass, in this order of names."""
    verdicts = ["pass", "check", "pass", "fail", "check", "pass"]
    results = [
        Result(str(k), None, "done", quality=Quality(verdict, (), {}), report=f"sub-{k}.html")
        for k, verdict in enumerate(verdicts)
    ]
    path = folder / "group.html"
    path.write_text(page("Kinds", results, {one.key: Age() for one in results}), encoding="utf-8")
    return path


def test_failures_come_first_and_each_kind_can_be_chosen(tmp_path):
    html = Page(page_of_kinds(tmp_path).read_text(encoding="utf-8"))
    rows = [row["data-kind"] for row in html.all("tr") if "data-kind" in row]
    assert rows == ["fail", "check", "check", "pass", "pass", "pass"]
    assert [link for link in html.links if link.startswith("sub-")] == [
        f"sub-{k}.html" for k in (3, 1, 4, 0, 2, 5)
    ]
    choices = [radio["value"] for radio in html.all("input") if radio["type"] == "radio"]
    assert choices == ["all", "fail", "check", "pass"]  # no choice that would show nothing
    assert [f"#{choice}" for choice in choices] == [
        link for link in html.links if link[0] == "#" and link != "#volumes"
    ]


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_shows_the_kind_that_the_address_names(tmp_path):
    address = page_of_kinds(tmp_path).as_uri() + "#check"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [*command, profile, address], capture_output=True, text=True, timeout=60, check=True
    )
    rows = re.findall(r"<tr data-kind=\"\w+\"( hidden=\"\")?>.*?sub-(\d)<", done.stdout, re.S)
    assert sorted(number for _, number in rows) == list("012345")
    assert [number for hidden, number in rows if not hidden] == ["1", "4"]
    assert ">2 of 6</output>" in done.stdout


def test_the_same_input_gives_the_same_page(raw, out):
    segmented(raw, out, "01")
    write_group(raw, out)
    first = (out / "group.html").read_bytes()
    write_group(raw, out)
    assert (out / "group.html").read_bytes() == first
