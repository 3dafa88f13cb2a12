"""Priors: looked up by label with a way out, read and written alike, faults named."""

from dataclasses import replace

import numpy as np
import pytest

from bids_synthseg.errors import BadData, InputMissing
from bids_synthseg.synthesis.priors import Priors, priors_text, read_priors, tables


def priors(**centres: float) -> Priors:
    """T1w priors of labels "_2" and so on."""
    labels = np.array([int(name.strip("_")) for name in centres])
    narrow = np.full(len(labels), 0.02)
    means = np.array(list(centres.values()))
    return Priors("T1w", labels, means, narrow, narrow, narrow, np.full(len(labels), 3))


@pytest.mark.parametrize(
    ("label", "centre"),
    [
        (2, 0.5),  # its own
        (41, 0.5),  # the other side
        (61, 0.7),  # a component: the other side's component
        (170, 0.6),  # a component without a twin: the whole
        (3, np.nan),  # cortex, and no cortex in the table
        (14, 0.15),  # fluid: the mean of the fluids
        (1004, 0.6),  # white matter: the mean of the white matter labels, 21 included
        (0, np.nan),
        (-1, np.nan),
        (999, np.nan),
    ],
)
def test_a_label_takes_the_nearest_prior(label, centre):
    found = priors(_2=0.5, _21=0.7, _16=0.6, _4=0.1, _24=0.2).of(np.array([label]))
    assert found.shape == (1, 4)
    np.testing.assert_allclose(found[0, 0], centre)
    np.testing.assert_allclose(found[0, 1:], np.nan if np.isnan(centre) else 0.02)


def test_a_component_without_any_of_its_own_is_its_whole():
    np.testing.assert_allclose(priors(_41=0.4, _2=0.5).of(np.array([21, 61]))[:, 0], [0.5, 0.4])


def test_text_and_table_say_the_same(tmp_path):
    path = tmp_path / "own.tsv"
    first = priors(_2=0.5, _21=0.75)
    second = replace(first, contrast="T2w", centre_mean=np.array([0.25, 1.0]))
    path.write_text(priors_text({"T1w": first, "T2w": second}), encoding="utf-8")
    found = read_priors(path)
    assert list(found) == ["T1w", "T2w"]
    for one in (first, second):
        for name, values in vars(found[one.contrast]).items():
            assert np.array_equal(values, getattr(one, name)), name
    assert "T1w\t21\tLeft-Cerebral-White-Matter-B\t0.7500\t" in path.read_text(encoding="utf-8")


def test_the_shipped_tables_are_whole_and_rewritten_alike():
    assert tables() == ("adult", "fetal", "months-12", "months-3", "newborn")
    for name in tables():
        found = read_priors(name)
        text = priors_text(found)
        for one in found.values():
            assert one.centre_sd.min() > 0 and one.spread_mean.min() > 0 and one.spread_sd.min() > 0
            assert text.count(f"\n{one.contrast}\t") == len(one.labels)


def test_the_shipped_newborn_has_the_published_order():
    """Infant-SynthSeg's priors: rim (2) and core (21) of white matter, cortex (3), fluid (4)."""
    rim, core, cortex, fluid = np.array([[2, 41], [21, 61], [3, 42], [4, 43]])
    t1w, t2w = (
        [read_priors("newborn")[c].of(labels)[:, 0] for labels in (rim, core, cortex, fluid)]
        for c in ("T1w", "T2w")
    )
    for side in range(2):
        rim_, core_, cortex_, fluid_ = (values[side] for values in t1w)
        assert fluid_ < rim_ < min(core_, cortex_)
        rim_, core_, cortex_, fluid_ = (values[side] for values in t2w)
        assert fluid_ > rim_ > core_ > cortex_


def test_the_shipped_fetus_is_seen_on_t2w():
    found = read_priors("fetal")
    white, cortex, fluid = found["T2w"].of(np.array([2, 3, 24]))[:, 0]
    assert list(found) == ["T2w"] and cortex < white < fluid


ROW = "T1w\t2\twhite\t0.5\t0.1\t0.1\t0.1\t3"
HEADER = "contrast\tlabel\tname\tcentre_mean\tcentre_sd\tspread_mean\tspread_sd\tsubjects"


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([HEADER, ROW.replace("0.5", "n/a")], "n/a"),
        ([HEADER, ROW.replace("0.5", "1.5")], "label 2: centre_mean"),
        ([HEADER, ROW.replace("0.5\t0.1", "0.5\t0")], "label 2: .* centre_sd"),
        ([HEADER, ROW.replace("0.5\t0.1", "0.5\tnan")], "label 2"),
        ([HEADER, ROW, ROW], "T1w: a label stands twice"),
        ([HEADER, "T1w\t2"], "line 2 has 2 cell"),
        ([HEADER.replace("label", "id"), ROW], "label"),
        ([HEADER], "without rows"),
    ],
)
def test_a_faulty_table_is_refused_by_name(tmp_path, lines, complaint):
    path = tmp_path / "faulty.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(BadData, match=complaint) as caught:
        read_priors(path)
    assert "faulty.tsv" in str(caught.value)


def test_no_table_no_priors(tmp_path):
    with pytest.raises(InputMissing, match="adult, fetal, months-12, months-3, newborn"):
        read_priors(tmp_path / "absent.tsv")
