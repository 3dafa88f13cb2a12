"""Ages: which table and column counts, in which unit, and what is not guessed."""

import logging

import pytest

from bids_synthseg.bids.ages import Age, read_ages

DAYS_PER_MONTH = 365.25 / 12


def tsv(*rows: str) -> str:
    return "\n".join(row.replace(" ", "\t") for row in rows) + "\n"


def sub01(**tables: str) -> dict:
    """Tables of sub-01 with its one session 1mo."""
    tree = {"ses-1mo": {}}
    if "sessions" in tables:
        tree["sub-01_sessions.tsv"] = tables["sessions"]
    if "scans" in tables:
        tree["ses-1mo"] = {"sub-01_ses-1mo_scans.tsv": tables["scans"]}
    return {"sub-01": tree}


def age_of(root):
    return read_ages(root, [("01", "1mo")])["01", "1mo"]


@pytest.mark.parametrize(
    ("header", "text", "months"),
    [
        ("age_months", "3.5", 3.5),
        ("age_weeks", "10", 70 / DAYS_PER_MONTH),
        ("age_years", "2", 24),
        ("age_days", "0", 0),
    ],
)
def test_a_column_that_names_its_unit(bids_tree, header, text, months, caplog):
    root = bids_tree({"participants.tsv": tsv(f"participant_id {header}", f"sub-01 {text}")})
    assert age_of(root) == Age(pytest.approx(months))
    assert not caplog.messages


@pytest.mark.parametrize(
    ("units", "months"),
    [
        ("year", 36),
        ("Years", 36),
        ("a", 36),
        ("months", 3),
        ("mo", 3),
        ("wk.", 21 / DAYS_PER_MONTH),
    ],
)
def test_a_bare_age_has_the_unit_that_the_json_tells(bids_tree, units, months):
    root = bids_tree(
        {
            "participants.tsv": tsv("participant_id age", "sub-01 3"),
            "participants.json": {"age": {"Units": units}},
        }
    )
    assert age_of(root) == Age(pytest.approx(months))


@pytest.mark.parametrize(
    ("table", "described", "words"),
    [
        (("participant_id age", "sub-01 3"), {}, "age has no Units in participants.json"),
        (("participant_id age", "sub-01 3"), {"age": {"Units": "s"}}, "Units 's' of age; write"),
        (("participant_id age", "sub-01 3"), {"age": "in years"}, "age has no Units"),
        (("participant_id age_months", "sub-01 3,5"), {}, "'3,5' is not a number"),
        (("participant_id age_years", "sub-01 89+"), {}, "'89+' is not a number"),
        (("participant_id age_months", "sub-01 nan"), {}, "'nan' is not a number"),
        (("participant_id age_months", "sub-01 -1"), {}, "age_months -1 is negative"),
        (("participant_id age_months", "sub-01 3 4"), {}, "line 2 has 3 cell(s), the header 2"),
        (("participant_id age_weeks age", "sub-01 x 4"), {}, "age_weeks 'x'"),
    ],
)
def test_what_is_not_clear_is_unknown_and_said(bids_tree, table, described, words, caplog):
    root = bids_tree({"participants.tsv": tsv(*table), "participants.json": described})
    assert age_of(root) == Age()
    [message] = caplog.messages
    assert words in message and message.startswith("age unknown: ")


@pytest.mark.parametrize("value", ["n/a", "N/A", ""])
def test_not_available_is_unknown_without_a_word(bids_tree, value, caplog):
    root = bids_tree({"participants.tsv": f"participant_id\tage_months\nsub-01\t{value}\n"})
    assert age_of(root) == Age()
    assert not caplog.messages


def test_the_order_of_tables(bids_tree):
    participants = {"participants.tsv": tsv("participant_id age_months", "sub-01 1")}
    sessions = tsv("session_id age_months", "ses-0mo 9", "ses-1mo 2", "ses-1mo 2.1")
    scans = tsv("filename age_months", "func/x.nii 8", "anat/x.nii 3", "anat/y.nii 3.2")
    roots = [
        bids_tree(participants | sub01(), "a"),
        bids_tree(participants | sub01(sessions=sessions), "b"),
        bids_tree(participants | sub01(sessions=sessions, scans=scans), "c"),
        bids_tree(sub01(sessions=sessions, scans=scans.replace("\t3\n", "\tn/a\n")), "d"),
    ]
    assert [age_of(root).months for root in roots] == [1, 2, 3, pytest.approx(3.2)]


def test_a_row_for_each_session_in_participants(bids_tree, caplog):
    rows = ("participant_id session_id age_months", "sub-01 ses-1mo 1", "sub-01 ses-2mo 2")
    tree = {"participants.tsv": tsv(*rows), "sub-01": {f"ses-{n}mo": {} for n in (1, 2, 3)}}
    ages = read_ages(bids_tree(tree), [("01", f"{n}mo") for n in (1, 2, 3)])
    assert [age.months for age in ages.values()] == [1, 2, None]
    assert not caplog.messages


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        ("participants", ("participant_id age_months", "sub-01 1", "01 7")),
        ("participants", ("participant_id session_id age_months", "01 1mo 1", "sub-01 ses-1mo 7")),
        ("sessions", ("session_id age_months", "ses-1mo 2", "1mo 7")),
        ("scans", ("filename age_months", "anat/x.nii 3", "anat/y.nii 4")),
    ],
)
def test_rows_that_contradict_each_other_tell_nothing(bids_tree, table, rows, caplog):
    tree = sub01(**{table: tsv(*rows)})
    if table == "participants":
        tree["participants.tsv"] = tsv(*rows)
    assert age_of(bids_tree(tree)) == Age()
    [message] = caplog.messages
    assert "2 rows of sub-01 contradict each other; keep one for each session" in message


@pytest.mark.parametrize(
    "name",
    ["sub-01_ses-1mo_T2w.nii.gz", "./anat/x.nii", "sub-01/ses-1mo/anat/x.nii", "anat\\x.nii"],
)
def test_images_as_people_name_them(bids_tree, name):
    assert age_of(bids_tree(sub01(scans=tsv("filename age_months", f"{name} 3")))).months == 3


@pytest.mark.parametrize(
    "table",
    [
        "Participant_ID\tAge_Months\nsub-01\t3\n",
        "participant_id   age_months\nsub-01  3\n",
        " participant_id \t age_months\nsub-01\t3\n",
    ],
)
def test_tables_as_people_write_them(bids_tree, table):
    assert age_of(bids_tree({"participants.tsv": table})).months == 3


def test_capitals_in_table_and_description(bids_tree):
    tree = {
        "participants.tsv": tsv("participant_id Age", "sub-01 3"),
        "participants.json": {"Age": {"Units": "Months"}},
    }
    assert age_of(bids_tree(tree)).months == pytest.approx(3)


@pytest.mark.parametrize("text", ["1e308", "5000", "1e4"])
def test_an_age_that_nobody_reaches(bids_tree, text, caplog):
    tree = {"participants.tsv": tsv("participant_id age_months", f"sub-01 {text}")}
    assert age_of(bids_tree(tree)) == Age()
    assert "is no age that people reach" in caplog.text


def test_a_description_is_inherited(bids_tree):
    sessions = tsv("session_id age", "ses-1mo 2")
    tree = {"sessions.json": {"age": {"Units": "month"}}, **sub01(sessions=sessions)}
    assert age_of(bids_tree(tree, "a")).months == pytest.approx(2)
    tree["sub-01"]["sub-01_sessions.json"] = {"age": {"Units": "year"}}
    assert age_of(bids_tree(tree, "b")).months == pytest.approx(24)


def test_one_age_is_not_that_of_several_sessions(bids_tree, caplog):
    tree = {"participants.tsv": tsv("participant_id age_months", "sub-01 1", "sub-02 5")}
    root = bids_tree(tree | {"sub-01": {"ses-1mo": {}, "ses-2mo": {}}})
    ages = read_ages(root, [("01", "1mo"), ("02", None)])
    assert ages == {("01", "1mo"): Age(), ("02", None): Age(5)}
    assert "one age for 2 sessions of sub-01" in caplog.text


def test_age_since_conception(bids_tree):
    root = bids_tree(
        {
            "participants.tsv": tsv(
                "participant_id age_weeks_pma age_weeks", "01 41.5 2", "02 30 n/a"
            )
        }
    )
    ages = read_ages(root, [("01", None), ("02", None), ("03", None)])
    assert ages["01", None] == Age(pytest.approx(14 / DAYS_PER_MONTH), 41.5)
    assert ages["02", None] == Age(None, 30)
    assert ages["03", None] == Age()


def test_a_spreadsheet_s_byte_order_mark_is_no_part_of_a_name(bids_tree):
    text = "\ufeff" + tsv("participant_id age_months", "sub-01 3")
    assert age_of(bids_tree({"participants.tsv": text})).months == 3


def test_many_complaints_are_cut_short(bids_tree, caplog):
    rows = [f"sub-{n:02} x{n}" for n in range(10)]
    root = bids_tree({"participants.tsv": tsv("participant_id age_months", *rows)})
    with caplog.at_level(logging.WARNING):
        read_ages(root, [(f"{n:02}", None) for n in range(10)])
    assert len(caplog.messages) == 4 and "7 more" in caplog.messages[-1]
