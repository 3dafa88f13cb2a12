"""Scores against references in several label schemes, worked out by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from bids_synthseg import console, evaluation, workbench
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.errors import BadData, InputMissing
from bids_synthseg.evaluation import compare, comparison, evaluate
from bids_synthseg.learning.label_sets import read_source_labels

TABLE = LabelTable.default()
NATIVE = TABLE.ids.tolist()
ASEG = TABLE.fold("aseg")[0].ids.tolist()
FREESURFER = {
    0: "Background", 2: "Left-Cerebral-White-Matter", 8: "Left-Cerebellum-Cortex",
    41: "Right-Cerebral-White-Matter", 47: "Right-Cerebellum-Cortex",
}  # fmt: skip
FIDON = {
    0: "Background", 1: "White-Matter", 2: "Ventricles", 3: "Cerebellum", 4: "Extra-axial-CSF",
    5: "Cortical-Gray-Matter", 6: "Deep-Gray-Matter", 7: "Brain-Stem", 8: "Corpus-Callosum",
}  # fmt: skip


def label_table(names):
    return "index\tname\n" + "".join(f"{index}\t{name}\n" for index, name in names.items())


@pytest.fixture
def match(tmp_path):
    """match(names, available) -> Comparison with a reference whose dseg.tsv holds these names."""

    def make(names, available=NATIVE):
        (tmp_path / "dseg.tsv").write_text(label_table(names))
        return comparison(read_source_labels(tmp_path / "dseg.tsv", TABLE), available, TABLE)

    return make


def test_freesurfer_without_cerebellar_white_matter(match):
    to = match(FREESURFER).prediction
    assert {i: to[i] for i in (2, 1004, 7, 8, 41, 2004, 46, 47)} == {
        2: 2, 1004: 2, 7: 8, 8: 8, 41: 41, 2004: 41, 46: 47, 47: 47
    }  # fmt: skip
    # What the reference does not know is not scored, CSF among it.
    assert {to[i] for i in (0, 3, 10, 24, 28)} == {0}
    names = match(FREESURFER).names
    assert names == {8: "cerebellum", 47: "cerebellum", 2: names[41], 41: "cerebral white matter"}


def test_freesurfer_with_all_it_has_more(match):
    more = {
        5: "Left-Inf-Lat-Vent", 4: "Left-Lateral-Ventricle", 7: "Left-Cerebellum-White-Matter",
        21: "Left-Cerebral-White-Matter-B", 61: "Right-Cerebral-White-Matter-B", 24: "CSF",
        16: "Brain-Stem", 170: "Brain-Stem-B", 172: "Vermis", 506: "Extra-cerebral-506",
        85: "Optic-Chiasm",
    }  # fmt: skip
    made = match(FREESURFER | more)
    assert {i: made.reference[i] for i in (5, 21, 61, 170, 506, 85)} == {
        5: 4, 21: 2, 61: 41, 170: 16, 506: 0, 85: 0
    }  # fmt: skip
    # Now 7 is told from 8; 46 is not told from 47.
    assert {i: made.prediction[i] for i in (7, 8, 46, 172)} == {7: 7, 8: 8, 46: 47, 172: 172}
    # FreeSurfer labels little of the fluid: its background may be CSF as well.
    assert made.prediction[24] == made.reference[24] == 0
    assert made.unjudged == {85}
    assert made.names[2] == made.names[41] == "cerebral white matter"
    assert (made.names[7], made.names[8]) == ("cerebellar white matter", "cerebellar cortex")
    assert {5, 21, 61, 170, 506, 85, 24, 0}.isdisjoint(made.names)


def test_tissues_of_the_fetus(match):
    made = match(FIDON)
    expected = {1: (2, 41), 2: (4, 14, 15, 43), 3: (7, 8, 46, 47, 172), 4: (24,), 7: (16,),
                5: (3, 17, 18, 42, 53, 54), 6: (10, 28, 60), 8: (1004, 2004)}  # fmt: skip
    for tissue, ids in expected.items():
        assert {made.prediction[i] for i in ids} == {tissue}
    assert made.reference == {i: i for i in FIDON}
    assert made.names == {index: name for index, name in FIDON.items() if index}


def test_tissues_of_the_fetus_with_aseg_only(match):
    made = match(FIDON, ASEG)
    # desc-aseg has no corpus callosum: the reference's then counts as white matter.
    assert made.reference[8] == 1
    assert 8 not in made.names


def test_compare_by_hand(match):
    names = {0: "Background", 2: "Left-Cerebral-White-Matter", 41: "Right-Cerebral-White-Matter",
             3: "Left-Cerebral-Cortex", 21: "Left-Cerebral-White-Matter-B"}  # fmt: skip
    reference = np.array([[[2, 2, 21, 0, 41, 41, 3, 0]]])
    prediction = np.array([[[2, 2, 0, 0, 41, 1004, 24, 7]]])
    scores = compare(prediction, reference, match(names), (1.0, 1.0, 2.0), full=True)
    # Left: 3 predicted (two 2, one 1004), 3 in the reference (2, 2, 21), 2 shared.
    # Right: 1 predicted, 2 in the reference, 1 shared.
    left, right = 2 * 2 / 6, 2 * 1 / 3
    assert scores["cerebral white matter"][0] == pytest.approx((left + right) / 2)
    assert scores["cerebral white matter"][2] == pytest.approx((0 + 50) / 2)
    assert scores["cerebral cortex"][0] == 0
    assert scores["cerebral cortex"][1] == math.inf
    assert scores["cerebral cortex"][2] == 100
    assert set(scores) == {"cerebral white matter", "cerebral cortex"}


def test_what_may_be_anything_does_not_count(tmp_path):
    (tmp_path / "dseg.tsv").write_text(
        "index\tname\tmodel_labels\n0\tBackground\t0 24\n2\tLeft-Cerebral-White-Matter\t2\n"
        "24\tCSF\t24\n41\tRight-Cerebral-White-Matter\t41\n202\tVessel\t0 24 2 41\n"
    )
    made = comparison(read_source_labels(tmp_path / "dseg.tsv", TABLE), NATIVE, TABLE)
    assert (made.unjudged, set(made.names)) == ({202}, {2, 41})
    reference = np.array([[[2, 2, 202, 202, 202, 24, 0, 41, 0]]])
    prediction = np.array([[[2, 24, 2, 41, 0, 0, 24, 1004, 41]]])
    assert made.judged(reference).tolist() == [[[True, True, False, False, False] + 4 * [True]]]
    # Left: 1 of 2 found, and one of the right is called left; right: one elsewhere.
    left = 2 * 1 / (2 + 2)
    dice = compare(prediction, reference, made, (1, 1, 1))["cerebral white matter"][0]
    assert dice == pytest.approx((left + 0) / 2)


def test_distance_counts_in_mm(match):
    names = {0: "Background", 16: "Brain-Stem"}
    reference, prediction = np.zeros((2, 8, 8, 8), dtype=int)
    reference[2:5, 2:5, 2:5] = 16
    prediction[3:6, 2:5, 2:5] = 16
    scores = compare(prediction, reference, match(names), (2.0, 1.0, 1.0), full=True)
    assert scores["brain stem"] == (pytest.approx(2 / 3), pytest.approx(2.0), 0.0)
    dice, *rest = compare(prediction, reference, match(names), (2.0, 1.0, 1.0))["brain stem"]
    assert dice == pytest.approx(2 / 3) and all(map(math.isnan, rest))


@pytest.fixture
def results(bids_tree):
    """results(files of sub-01, reference, ...) -> output and reference folder."""

    def make(files, reference, names=FREESURFER, session=""):
        place = f"sub-01/{session}/anat" if session else "sub-01/anat"
        stem = f"sub-01_{session}_" if session else "sub-01_"
        truth = bids_tree(
            {"dseg.tsv": label_table(names), place: {f"{stem}dseg.nii.gz": reference}}, "truth"
        )
        output = bids_tree(
            {place: {f"{stem}{name}_dseg.nii.gz": data for name, data in files.items()}}, "out"
        )
        return output, truth

    return make


def cube(*ids):
    """(4, 4, 4) int16: a slab of each id."""
    return np.broadcast_to(np.array(ids, np.int16), (4, 4, 4)).copy()


def as_dict(scores):
    return {(s.structure, s.column): s.dice for s in scores}


def test_columns(results):
    output, truth = results(
        {
            "space-T1w_desc-aseg": cube(0, 2, 41, 41),
            "space-T2w_desc-aseg": cube(0, 0, 0, 41),
            "space-orig_desc-asegT1w": cube(0, 2, 2, 41),
            "run-2_space-orig_desc-asegT2w": cube(2, 2, 0, 0),
            "space-T1w_desc-brain": cube(0, 1, 1, 1),
        },
        cube(0, 2, 41, 41),
    )
    scores = evaluate(output, truth)
    assert as_dict(scores)["cerebral white matter", "merged"] == 1
    assert as_dict(scores)["cerebral white matter", "T1w"] == pytest.approx(2 / 3)
    assert as_dict(scores)["cerebral white matter", "T2w"] == pytest.approx((2 / 3 + 0) / 2)
    # The cerebellum is in the table but in neither image: no score.
    assert math.isnan(as_dict(scores)["cerebellum", "merged"])
    assert {s.session for s in scores} == {"sub-01"}


def test_a_session_of_t2w_alone(results):
    output, truth = results(
        {"space-T2w_desc-aseg": cube(0, 2, 41, 41)}, cube(0, 2, 41, 41), session="ses-1mo"
    )
    scores = evaluate(output, truth)
    assert {(s.session, s.column) for s in scores} == {("sub-01_ses-1mo", "merged")}
    table = evaluation.summary(scores).splitlines()
    assert table[0].split() == ["structure", "T1w", "T2w", "merged"]
    assert table[1].split() == ["cerebral", "white", "matter", "-", "-", "1.000"]
    assert table[-1].split() == ["mean", "-", "-", "1.000"]


def test_native_labels_are_preferred_if_every_column_has_them(results):
    native, aseg = cube(0, 1004, 2, 41), cube(0, 2, 2, 41)
    reference = cube(0, 8, 1, 1)
    files = {"space-T1w_desc-aseg": aseg, "space-T1w_desc-native": native}
    output, truth = results(files, reference, FIDON)
    assert as_dict(evaluate(output, truth))["Corpus-Callosum", "merged"] == 1
    output, truth = results({**files, "space-orig_desc-asegT1w": aseg}, reference, FIDON)
    scores = as_dict(evaluate(output, truth))
    assert ("Corpus-Callosum", "merged") not in scores
    assert scores["White-Matter", "merged"] == scores["White-Matter", "T1w"] == 1


def test_the_grid_that_fits_is_taken_or_none(results):
    fits = cube(0, 2, 41, 41)
    other = np.pad(fits, ((0, 1), (0, 0), (0, 0)))
    output, truth = results({"space-T1w_desc-aseg": other, "space-T2w_desc-aseg": fits}, fits)
    assert as_dict(evaluate(output, truth))["cerebral white matter", "merged"] == 1
    (output / "sub-01/anat/sub-01_space-T2w_desc-aseg_dseg.nii.gz").unlink()
    with pytest.raises(BadData, match="another grid"):
        evaluate(output, truth)


def test_unknown_ids_are_named(results):
    output, truth = results({"space-T1w_desc-aseg": cube(0, 2, 41, 41)}, cube(0, 2, 99, 41))
    with pytest.raises(BadData, match=r"\[99\]"):
        evaluate(output, truth)


def test_missing_sessions(results, caplog, tmp_path):
    output, truth = results({"space-T1w_desc-aseg": cube(0, 2, 41, 41)}, cube(0, 2, 41, 41))
    source = truth / "sub-01" / "anat" / "sub-01_dseg.nii.gz"
    (truth / "sub-02" / "anat").mkdir(parents=True)
    (truth / "sub-02" / "anat" / "sub-02_dseg.nii.gz").write_bytes(source.read_bytes())
    assert {s.session for s in evaluate(output, truth)} == {"sub-01"}
    assert "sub-02: no segmentation" in caplog.text
    with pytest.raises(InputMissing, match="no segmentation of any subject"):
        evaluate(tmp_path / "nowhere", truth)


def test_means_are_over_sessions_first():
    scores = [
        evaluation.Score("sub-01", "a", "merged", 0.5),
        evaluation.Score("sub-02", "a", "merged", 0.7),
        evaluation.Score("sub-01", "b", "merged", 1.0),
        evaluation.Score("sub-02", "b", "merged", math.nan),
    ]
    rows = [line.split() for line in evaluation.summary(scores).splitlines()]
    assert rows[1:] == [
        ["a", "-", "-", "0.600"],
        ["b", "-", "-", "1.000"],
        ["mean", "-", "-", "0.800"],
    ]
    rows = [line.split() for line in evaluation.session_summary(scores).splitlines()]
    assert rows[1:3] == [["sub-01", "-", "-", "0.750"], ["sub-02", "-", "-", "0.700"]]


def test_command(results, tmp_path, capsys):
    output, truth = results({"space-T1w_desc-aseg": cube(0, 2, 41, 0)}, cube(0, 2, 41, 41))
    table = tmp_path / "scores.tsv"
    arguments = ["evaluate", output, truth, "--full", "--per-subject", "--tsv", table]
    assert console.run(workbench.command, [str(a) for a in arguments]) == 0
    printed = capsys.readouterr().out
    assert "mean over 1 session" in printed and "surface distance" in printed
    assert "Volume error" in printed and "sub-01" in printed
    rows = [line.split("\t") for line in Path(table).read_text().splitlines()]
    assert rows[0] == list(evaluation.Score.__dataclass_fields__)
    found = {row[1]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}
    assert found["cerebral white matter"]["dice"] == "0.8333"  # (1 + 2/3) / 2
    assert found["cerebral white matter"]["volume_error_percent"] == "25"
    assert found["cerebellum"]["dice"] == "n/a"
