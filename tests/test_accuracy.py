"""The accuracy report on hand-made networks: every number by hand, and the command as a whole."""

import csv
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import nifti, write_tree
from handmade import grid, head, segmenter
from training_samples import PHANTOM_ROWS

from bids_synthseg import accuracy, console, pipeline, scorecard, trials, workbench
from bids_synthseg.anatomy.intensity import standardised
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.volume import Volume
from bids_synthseg.errors import BadData, InputMissing, UsageProblem
from bids_synthseg.evaluation import Score, comparison, gains
from bids_synthseg.learning.label_sets import read_source_labels
from bids_synthseg.painting import paint_age, paint_contrast, read_sitter
from bids_synthseg.pipeline import Options
from bids_synthseg.scorecard import ALL, BETWEEN, Number
from bids_synthseg.segmentation.field import GridField
from bids_synthseg.segmentation.locate import BOX_MARGIN, BrainBox, box_of, locate
from bids_synthseg.segmentation.predict import segment

pytestmark = pytest.mark.usefixtures("package_log")

TABLE = LabelTable.default()
PLACE = grid((32, 36, 30), (2.2, 2.2, 2.2))
DSEG = "index\tname\tmodel_labels\n" + "".join(
    f"{index}\t{name}\t{index}\n" for index, name in PHANTOM_ROWS.items()
)


def known(labels):
    """Labels of `head` in terms of PHANTOM_ROWS: callosum is white matter."""
    labels = np.where(labels == 1004, 2, labels)
    return np.where(labels == 2004, 41, labels).astype(np.int16)


def map_tree(labels):
    return {"dseg.tsv": DSEG, "sub-4mo": {"anat": {"sub-4mo_dseg.nii.gz": labels}}}


@pytest.fixture
def sitter(tmp_path):
    labels = known(head(PLACE)[0].data)
    labels[labels == 24] = 0  # the real map has no fluid either
    labels[0, 0, 0] = 3  # a stray voxel
    return read_sitter(write_tree(tmp_path / "map", map_tree(nifti(labels, PLACE.affine))))


def test_a_painted_head_is_the_map_voxel_for_voxel(sitter):
    painted = paint_contrast(sitter, 0)
    ids, voxels = np.unique(painted.reference.data, return_counts=True)
    labels = np.array([label.index for label in sitter.labels])
    own = np.bincount(labels[sitter.source.classes.numpy().ravel()], minlength=50)
    assert ids.tolist() == [0, 2, 3, 10, 41, 42, 49]
    assert voxels[1:].tolist() == own[ids[1:]].tolist()
    assert painted.image.grid == painted.reference.grid
    np.testing.assert_allclose(painted.image.grid.voxel_size_mm, 2.2, rtol=1e-5)
    # A head around it: more than the brain is bright.
    bright = painted.image.data > 0.05
    assert bright[painted.reference.data == 0].sum() > 0.1 * (painted.reference.data > 0).sum()


def test_painted_heads_are_the_same_every_time_and_differ(sitter):
    again, other = paint_contrast(sitter, 0), paint_contrast(sitter, 1)
    first = paint_contrast(sitter, 0)
    np.testing.assert_array_equal(first.image.data, again.image.data)
    assert np.abs(first.image.data - other.image.data).max() > 0.1
    np.testing.assert_array_equal(first.reference.data, other.reference.data)


def test_stray_voxels_are_dropped(sitter):
    assert sitter.source.classes[0].sum() == 0


@pytest.mark.parametrize("brain_ml", [60.0, 400.0])
def test_a_sitter_grows_to_a_volume(sitter, brain_ml):
    assert sitter.scaled_to(brain_ml).brain_ml == pytest.approx(brain_ml)
    painted = paint_age(sitter.scaled_to(brain_ml), "T2w", 0, voxel_mm=1.5)
    assert (painted.reference.data > 0).sum() * 1.5**3 / 1000 == pytest.approx(brain_ml, rel=0.03)


@pytest.mark.parametrize(
    ("contrast", "months", "white_is_brighter"),
    [("T1w", 0, False), ("T2w", 0, True), ("T1w", 24, True), ("T2w", 24, False)],
)
def test_white_matter_looks_as_old_as_the_brain_is(sitter, contrast, months, white_is_brighter):
    painted = paint_age(sitter, contrast, months, voxel_mm=2.0)
    white, cortex = (
        np.median(painted.image.data[np.isin(painted.reference.data, ids)])
        for ids in ((2, 41), (3, 42))
    )
    assert (white > cortex) == white_is_brighter


def test_a_sitter_is_one_map(tmp_path):
    with pytest.raises(BadData, match="0 label maps"):
        read_sitter(tmp_path)


def test_gains():
    scores = [
        Score("sub-01", name, column, dice)
        for name, dices in (("a", (0.6, 0.8, 0.75)), ("b", (0.8, 0.8, math.nan)))
        for column, dice in zip(("T1w", "T2w", "merged"), dices, strict=True)
    ]
    (gain,) = gains([*scores, Score("sub-02", "a", "merged", 1.0)])
    assert gain.session == "sub-01"
    assert gain.over_better == pytest.approx(0.75 - 0.8)
    assert gain.over_worse == pytest.approx(0.75 - 0.7)


def test_every_number_is_written():
    numbers = [
        Number("newborns", "sub-01", "T1w", "vermis", "hd95_mm", math.inf),
        Number("locator", "adult-head", "sub-01_T1w", "", "locator_found", 1.0),
        Number("newborns", "sub-01", "T1w", "vermis", "dice", math.nan),
    ]
    rows = [line.split("\t") for line in scorecard.numbers_text(numbers).splitlines()]
    assert rows[0] == ["section", "subject", "image", "structure", "measure", "value"]
    assert [row[-1] for row in rows[1:]] == ["inf", "1", "n/a"]
    assert rows[2][3] == "n/a"


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_markdown_lines_up():
    table = scorecard.markdown(("name", "x"), [("a", "1.000"), ("longer", "-")])
    assert table.splitlines() == [
        "| name   |     x |",
        "| ------ | ----: |",
        "| a      | 1.000 |",
        "| longer |     - |",
    ]


def test_tables_of_scans_by_hand():
    scores = [
        Score("sub-01", "a", "T1w", 0.5, 2.0, 10.0),
        Score("sub-02", "a", "T1w", 0.7, 4.0, math.nan),
        Score("sub-01", "b", "T1w", 1.0, math.inf, 0.0),
        Score("sub-02", "b", "T1w", math.nan, math.nan, math.nan),
    ]
    numbers = accuracy.score_numbers("fetal", scores)
    assert cells(scorecard.structure_table(numbers, "fetal")) == [
        ["structure", "Dice T1w", "HD95 mm T1w", "volume error % T1w"],
        ["---------", "-------:", "----------:", "-----------------:"],
        ["a", "0.600", "3.0", "10.0"],
        ["b", "1.000", "inf", "0.0"],
        ["mean", "0.800", "inf", "5.0"],
    ]
    sessions = cells(scorecard.session_table(numbers, "fetal"))
    assert sessions[0] == ["session", "T1w"]
    assert sessions[2:] == [["sub-01", "0.750"], ["sub-02", "0.700"], ["mean", "0.725"]]


def test_table_of_merging():
    dices = {"T1w": 0.6, "T2w": 0.8, "merged": 0.9}
    numbers = accuracy.score_numbers("x", [Score("sub-01", "a", c, d) for c, d in dices.items()])
    table = cells(scorecard.session_table(numbers, "x"))
    assert table[0] == ["session", "T1w", "T2w", "merged", "merged - better", "merged - worse"]
    assert table[2][1:] == ["0.600", "0.800", "0.900", "+0.100", "+0.300"]


def test_overview_and_agreement_by_hand():
    scores = {
        ("fetal", "sub-01", "T2w", "White-Matter"): 0.9,
        ("fetal", "sub-02", "T2w", "White-Matter"): 0.7,
        ("fetal", "sub-01", "T2w", "Ventricles"): 0.6,
        ("infants", "sub-03", BETWEEN, "cerebral cortex"): 0.5,
        ("infants", "sub-04", BETWEEN, "cerebral cortex"): math.nan,
        ("infants", "sub-03", BETWEEN, "vermis"): 0.7,
        ("infants", "sub-04", BETWEEN, "vermis"): 0.9,
    }
    numbers = [Number(*place, "dice", value) for place, value in scores.items()]
    numbers.append(Number("fetal", ALL, "T2w", "", "ece", 0.1))
    overview = scorecard.overview_table(numbers, {"infants": "infant", "fetal": "fetal"})
    assert cells(overview)[0][3:] == ["mean Dice", "white matter", "cortex"]
    assert cells(overview)[2:] == [
        ["infant", BETWEEN, "2", "0.650", "-", "0.500"],
        ["fetal", "T2w", "2", "0.700", "0.800", "-"],
    ]
    assert cells(scorecard.agreement_table(numbers, "infants")) == [
        ["structure", "sub-03", "sub-04"],
        ["---------------", "-----:", "-----:"],
        ["cerebral cortex", "0.500", "-"],
        ["vermis", "0.700", "0.900"],
        ["mean", "0.600", "0.900"],
    ]


def test_silent_failures_are_counted():
    numbers = []
    for name, dice, flagged in (("a", 0.9, 0.0), ("b", 0.2, 1.0), ("c", 0.1, 0.0)):
        place = "contrasts", "synthetic", name
        numbers += [
            Number(*place, "vermis", "dice", dice),
            Number(*place, "", "failed", float(dice < 0.5)),
            Number(*place, "", "flagged", flagged),
            Number(*place, "", "locator_found", 1.0),
            Number(*place, "", "locator_dice", dice),
            Number(*place, "", "locator_box_error_percent", 100 * dice),
        ]
    row = cells(scorecard.contrast_table(numbers))[2]
    assert row == ["3", "0.400", "0.200", "0.100", "2", "1", "1", "3", "0.400", "90.0"]


def test_table_of_volumes():
    numbers = [
        Number("volumes", f"{age} months", contrast, "brain", measure, value)
        for age, contrast, error in ((0, "T1w", -10.0), (0, "T2w", 1.0), (6, "T1w", 20.0))
        for measure, value in (("true_ml", 500.0), ("error_percent", error))
    ]
    assert cells(scorecard.volume_table(numbers))[2:] == [
        ["0 months", "500", "-10.0", "+1.0"],
        ["6 months", "500", "+20.0", "-"],
        ["mean unsigned", "", "15.0", "1.0"],
    ]


def test_box_error_is_the_worst_face_in_percent_of_its_side():
    turned = grid((10, 10, 10), (1, 1, 1), np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]))
    truth = BrainBox(np.zeros(3), np.array([100.0, 50.0, 100.0]))
    assert trials.box_error_percent(truth, truth, turned) == 0
    # The grid's second axis is the world's -x: of its side, 50 mm, 5 mm are 10 percent.
    shifted = replace(truth, centre_mm=np.array([5.0, 0, 0]))
    assert trials.box_error_percent(shifted, truth, turned) == pytest.approx(10)
    assert trials.box_error_percent(shifted, truth, grid()) == pytest.approx(5)
    # 10 mm longer about a centre that moved by 5 mm: one face stays, the other moves by 10 mm.
    longer = replace(shifted, extent_mm=np.array([110.0, 50.0, 100.0]))
    assert trials.box_error_percent(longer, truth, grid()) == pytest.approx(10)


def test_the_locator_s_mask_is_the_one_it_takes_its_box_from():
    networks = segmenter()
    scan = head(grid(turn=np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])))[1].canonical()[0]
    location = locate(standardised(scan), scan.grid, networks.locator)
    box, seen = location.box, location.mask
    own = box_of(seen.data > 0, seen.grid)
    assert box.found
    np.testing.assert_allclose(own.centre_mm, box.centre_mm)
    np.testing.assert_allclose(own.scaled(BOX_MARGIN).extent_mm, box.extent_mm)


def test_a_locator_that_is_right_and_one_that_sees_nothing():
    labels, scan = head(PLACE)
    # The mask lies on the scan's grid but for the order of its axes.
    brain = Volume(labels.data[::-1] > 0, PLACE.reoriented(flipped()))
    found = {n.measure: n.value for n in trials.locator_numbers("s", "x", "y", scan, brain,
                                                                 segmenter())}  # fmt: skip
    assert found["locator_found"] == 1
    assert found["locator_dice"] > 0.95
    assert found["locator_box_error_percent"] < 10
    dark = replace(segmenter(), locator=segmenter().locator)
    dark.locator.network.level.data.fill_(5.0)
    lost = {n.measure: n.value for n in trials.locator_numbers("s", "x", "y", scan, brain, dark)}
    assert lost["locator_found"] == lost["locator_dice"] == 0
    assert lost["locator_box_error_percent"] > found["locator_box_error_percent"]


def flipped():
    return SimpleNamespace(axes=(0, 1, 2), flips=(True, False, False))


def field_of(labels, sure):
    """Posteriors that give the labels' own channel the probability `sure`, background the rest."""
    channels = np.vectorize(TABLE.channel_of)(labels.data)
    data = np.zeros((len(TABLE), *labels.data.shape), dtype=np.float32)
    np.put_along_axis(data, channels[None], sure, axis=0)
    data[0] += 1 - data.sum(axis=0)
    return GridField(torch.from_numpy(data), labels.grid, TABLE)


@pytest.fixture
def match(tmp_path):
    (tmp_path / "dseg.tsv").write_text(DSEG)
    labels = read_source_labels(tmp_path / "dseg.tsv", TABLE)
    return comparison(labels, TABLE.ids.tolist(), TABLE)


def test_reliability_of_a_field(match):
    labels, _ = head(PLACE)
    reference = Volume(known(labels.data), PLACE)
    brain = labels.data > 0
    found, missed = trials.field_reliability(field_of(labels, 0.8), reference, match)
    # Always right where it says .8, the callosum among it; air is certain and left out.
    assert found.voxels.sum() == brain.sum()
    assert (found.accuracy, missed) == (1, 0)
    assert found.ece == pytest.approx(0.2, abs=1e-4)
    # What the reference does not tell is left out as well.
    partly = replace(match, unjudged=frozenset({10, 49}))
    found, _ = trials.field_reliability(field_of(labels, 0.8), reference, partly)
    assert found.voxels.sum() == (brain & ~np.isin(reference.data, (10, 49))).sum()
    # Certain of air in one half of the brain: those voxels escape, and are told.
    half = np.where(np.arange(32)[:, None, None] < 16, 0, labels.data)
    found, missed = trials.field_reliability(field_of(Volume(half, PLACE), 0.8), reference, match)
    assert missed == pytest.approx(100 * brain[:16].sum() / brain.sum())
    assert found.accuracy == 1


def stub(monkeypatch, answer, flagged=False):
    """Replace the segmentation: answer(reference of the painted head) -> labels."""
    heads = []

    def painted(paint):
        return lambda *a, **k: heads.append(paint(*a, **k)) or heads[-1]

    def segmented(scan, networks):
        assert scan is heads[-1].image
        labels = answer(heads[-1].reference.data)
        return trials.Outcome(labels, TABLE, 100.0, flagged)

    monkeypatch.setattr(trials, "paint_contrast", painted(paint_contrast))
    monkeypatch.setattr(trials, "paint_age", painted(paint_age))
    monkeypatch.setattr(trials, "segmented", segmented)


def test_contrasts_that_succeed_and_fail(monkeypatch, sitter):
    stub(monkeypatch, lambda truth: truth)
    right = trials.contrast_trial(sitter, 2, segmenter())
    assert scorecard.distinct(right, "image") == ["contrast-01", "contrast-02"]
    assert set(scorecard.values(right, "dice", structure="thalamus")) == {1.0}
    assert scorecard.values(right, "failed") == [0, 0]
    stub(monkeypatch, np.zeros_like, flagged=True)
    wrong = trials.contrast_trial(sitter, 1, segmenter())
    assert scorecard.values(wrong, "failed") == scorecard.values(wrong, "flagged") == [1]
    assert cells(scorecard.contrast_table(wrong))[2][:7] == [
        "1", "0.000", "0.000", "0.000", "1", "0", "1"]  # fmt: skip


def test_volumes_of_ages(monkeypatch, sitter):
    stub(monkeypatch, lambda truth: np.where(np.isin(truth, (10, 49)), 0, truth))
    numbers = trials.volume_trial(sitter, {0: 60.0, 12: 90.0}, segmenter())
    assert scorecard.distinct(numbers, "subject") == ["0 months", "12 months"]
    assert scorecard.distinct(numbers, "image") == ["T1w", "T2w"]
    truth = paint_contrast(sitter, 0).reference.data
    lost = np.isin(truth, (10, 49)).sum() / (truth > 0).sum()
    for error in scorecard.values(numbers, "error_percent"):
        assert error == pytest.approx(-100 * lost, abs=1)


def test_median_volumes(tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy, "MONTHS", (0, 3, 24))
    path = tmp_path / "volumes.tsv"
    path.write_text("age_days\tbrain_mask_ml\n10\t400\n40\t520\n20\t440\n80\t700\n400\t1\n")
    assert accuracy.median_volumes_ml(path) == {0: 440, 3: 700}
    path.write_text("age\tml\n1\t2\n")
    with pytest.raises(BadData, match="age_days"):
        accuracy.median_volumes_ml(path)


def test_masks_are_found_beside_their_scans(tmp_path):
    tree = {
        "sub-1": {"anat": {"sub-1_run-1_T2w.nii.gz": "", "sub-1_T1w.nii.gz": ""}},
        "sub-2": {"ses-a": {"anat": {"sub-2_ses-a_T2w.nii.gz": "", "sub-2_ses-a_dwi.nii.gz": ""}}},
        "derivatives": {
            "masks": {"sub-1": {"anat": {"sub-1_run-1_T2w_desc-brain_mask.nii.gz": ""}}},
            "reference": {
                "sub-1": {"anat": {"sub-1_dseg.nii.gz": "", "sub-1_desc-brain_mask.nii.gz": ""}}
            },
        },
    }
    root = write_tree(tmp_path / "raw", tree)
    scans = accuracy.find_scans(root)
    assert [path.name for path in scans] == [
        "sub-1_T1w.nii.gz", "sub-1_run-1_T2w.nii.gz", "sub-2_ses-a_T2w.nii.gz"]  # fmt: skip
    masks = [accuracy.find_mask(path, root) for path in scans]
    assert masks[0].name == "sub-1_desc-brain_mask.nii.gz"
    assert masks[1].name == "sub-1_run-1_T2w_desc-brain_mask.nii.gz"
    assert masks[2] is None


@pytest.fixture
def validation(tmp_path):
    """A validation folder of phantoms: everything but scans of fetuses and adults."""
    labels, image = head(PLACE)
    scan, truth = nifti(image.data, PLACE.affine), nifti(known(labels.data), PLACE.affine)
    description = {"Name": "phantom", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    stacks = {
        "sub-1": {"anat": {"sub-1_T2w.nii.gz": scan}},
        "derivatives": {"masks": {"sub-1": {"anat": {"sub-1_T2w_desc-brain_mask.nii.gz": truth}}}},
    }
    return write_tree(
        tmp_path / "data",
        {
            "brain_volume_by_age.tsv": "age_days\tbrain_mask_ml\n3\t90\n",
            "inputs": {
                "fetal-stacks": stacks,
                "infants": {
                    "dataset_description.json": description,
                    "sub-3mo": {"anat": {"sub-3mo_T1w.nii.gz": scan, "sub-3mo_T2w.nii.gz": scan}},
                    "sub-6mo": {"anat": {"sub-6mo_T1w.nii.gz": scan}},
                },
            },
            "validation": {
                "infant-4mo": map_tree(truth),
                "newborns": {
                    "dataset_description.json": description,
                    "sub-1": {"anat": {"sub-1_T1w.nii.gz": scan, "sub-1_T2w.nii.gz": scan}},
                    "derivatives": {
                        "reference": {
                            "dseg.tsv": DSEG,
                            "sub-1": {"anat": {"sub-1_dseg.nii.gz": truth}},
                        }
                    },
                },
            },
        },
    )


@pytest.fixture
def handmade(monkeypatch):
    monkeypatch.setattr(
        pipeline.Segmenter, "load", staticmethod(lambda options: segmenter("ab" * 32))
    )
    monkeypatch.setattr(accuracy, "N_CONTRASTS", 1)
    monkeypatch.setattr(accuracy, "MONTHS", (0,))


@pytest.fixture
def seen(monkeypatch):
    """The scans that the pipeline has segmented."""
    scans = []

    def counted(scan, *arguments, **options):
        scans.append(scan)
        return segment(scan, *arguments, **options)

    monkeypatch.setattr(pipeline, "segment", counted)
    monkeypatch.setattr(trials, "segment", counted)
    return scans


def test_the_whole_report(validation, handmade, seen, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["accuracy", str(validation), "--out", str(out)]
    assert console.run(workbench.command, arguments) == 0
    printed = capsys.readouterr().out
    assert printed == (out / "accuracy.md").read_text()
    assert "weights abababababab" in printed
    headings = [line for line in printed.splitlines() if line.startswith("#")]
    newborn, infant = ["## Newborn", "### Against the reference"], ["## Infant"]
    nothing, painted = (
        "### Labels where the image is empty",
        "### 4-month map in synthetic contrasts",
    )
    newborn += [nothing, "### Calibration", "### Locator"]
    infant += ["### T1w against T2w", nothing, painted, "### Brain volume by age"]
    assert headings == ["# Accuracy", "## Fetal", "### Locator", *newborn, *infant]
    assert "1 of 1 session(s) segmented" in printed and "2 of 2 session(s) segmented" in printed
    assert "Left out, as there were no data: fetal, adults." in printed
    # Three sessions of five scans, a scan for the locator, a painted contrast, two painted ages.
    assert len(seen) == 5 + 1 + 1 + 2
    with (out / "accuracy.tsv").open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert {row["section"] for row in rows} == {
        "newborns", "infants", "contrasts", "volumes", "locator"}  # fmt: skip

    def value(measure, **where):
        own = [row for row in rows if row["measure"] == measure]
        (found,) = (row["value"] for row in own if where.items() <= row.items())
        return float(found)

    for image in ("T1w", "T2w", "merged"):
        assert value("dice", section="newborns", image=image, structure="cerebral cortex") > 0.85
        assert value("ece", subject=ALL, image=image) == pytest.approx(
            value("ece", subject="sub-1", image=image)
        )
        assert value("accuracy", subject=ALL, image=image, structure="n/a") > 0.8
    assert value("dice_over_better") == pytest.approx(0, abs=0.02)
    assert value("locator_dice", subject="fetal-stacks") > 0.95
    assert value("predicted_ml", subject="fetal-stacks") == pytest.approx(
        value("true_ml", subject="fetal-stacks"), rel=0.1
    )
    assert value("true_ml", section="volumes", image="T1w") == pytest.approx(90, rel=0.03)
    assert (out / "derivatives/newborns/sub-1/anat").is_dir()
    place = {"section": "infants", "subject": "sub-3mo"}
    assert value("dice", **place, image=BETWEEN, structure="thalamus") == 1
    assert value("labels_where_empty_ml", **place, image="T2w") == 0
    pictures = sorted(path.name for path in (out / "pictures").iterdir())
    assert pictures == ["sub-3mo_T1w.png", "sub-3mo_T2w.png", "sub-6mo_T1w.png"]


def test_one_section_of_the_report(validation, handmade, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["accuracy", str(validation), "--out", str(out), "--only", "locator"]
    assert console.run(workbench.command, arguments) == 0
    printed = capsys.readouterr().out
    assert "### Locator" in printed and "Calibration" not in printed and "Left out" not in printed


def test_what_cannot_be_measured(handmade, tmp_path, capsys):
    with pytest.raises(InputMissing, match="nothing to measure"):
        accuracy.run_accuracy(tmp_path, tmp_path / "out", segmenter(), Options())
    arguments = ["accuracy", str(tmp_path), "--only", "toddlers"]
    assert console.run(workbench.command, arguments) == UsageProblem.exit_code
    assert "fetal, newborns, infants, adults" in capsys.readouterr().err
