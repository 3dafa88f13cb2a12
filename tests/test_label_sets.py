"""Label sets: tables read, schemes known, sides paired, sets narrowed by what a map tells apart."""

import csv
from importlib.resources import files

import numpy as np
import pytest

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.errors import BadData, InputMissing
from bids_synthseg.learning.label_sets import (
    SourceLabel,
    class_labels,
    read_source_labels,
    shape_roles,
    target_sets,
    tissue_classes,
    twin_classes,
)
from bids_synthseg.synthesis.contrast import TISSUE_OF
from bids_synthseg.synthesis.shape import ROLE_OF

TABLE = LabelTable.default()
SCHEMES = sorted((files("bids_synthseg") / "data" / "schemes").glob("*.tsv"))


def label(index: int, name: str, *labels: int) -> SourceLabel:
    return SourceLabel(index, name, frozenset(labels))


def read(tmp_path, text: str, encoding: str = "utf-8") -> tuple[SourceLabel, ...]:
    path = tmp_path / "dseg.tsv"
    path.write_text(text, encoding=encoding)
    return read_source_labels(path, TABLE)


def test_own_column_is_used(tmp_path):
    found = read(tmp_path, "index\tname\tmodel_labels\n7\tDeep\t10 49\n3\tFluid\t24\n")
    assert found == (label(0, "Background", 0), label(3, "Fluid", 24), label(7, "Deep", 10, 49))


@pytest.mark.parametrize(
    ("cell", "ids"),
    [
        ("10 49", {10, 49}),
        ("10, 49", {10, 49}),
        ("10;49 24", {10, 24, 49}),
        ("Left-Thalamus", {10}),
        ("left_thalamus 49", {10, 49}),
        ("thalamus", {10, 49}),
        ("cerebral white matter", {2, 41}),
        ("Lateral Ventricle, third ventricle", {4, 14, 43}),
        ("cerebral-white-matter corpus-callosum", {2, 41, 1004, 2004}),
        ("CSF", {24}),
        ("0 CSF", {0, 24}),
    ],
)
def test_meanings_may_be_ids_or_names(tmp_path, cell, ids):
    assert read(tmp_path, f"index\tname\tmodel_labels\n7\tOne\t{cell}\n")[1].labels == ids


def test_a_table_saved_by_a_spreadsheet_is_read(tmp_path):
    text = "index\tname\tmodel_labels\r\n3\tFluid\t24\r\n"
    assert read(tmp_path, text, "utf-8-sig")[1] == label(3, "Fluid", 24)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda path: path.stem)
def test_shipped_schemes_are_recognised_and_have_both_sides(scheme, tmp_path):
    with scheme.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    found = read(tmp_path, "index\tname\n" + "".join(f"{r['index']}\t{r['name']}\n" for r in rows))
    assert {one.index: one.labels for one in found} == {
        int(r["index"]): frozenset(map(int, r["labels"].split())) for r in rows
    }
    twins = twin_classes(found, TABLE)
    assert (twins[twins] == np.arange(len(found))).all()
    assert (tissue_classes(found, TABLE) >= 0).all()


def test_part_of_a_scheme_is_recognised(tmp_path):
    found = read(tmp_path, "index\tname\n1\tExternal-CSF\n3\tWhite-Matter\n")
    assert found[1:] == (
        label(1, "External-CSF", 24),
        label(3, "White-Matter", 2, 41, 1004, 2004),
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no column 'index'"),
        ("index\tname\n", "no known scheme"),
        ("index\tname\n1\tUnheard-Of\n", "add a column model_labels"),
        ("number\tname\n1\tCSF\n", "write index, name, separated by tabs"),
        ("index,name\n1,CSF\n", "separated by tabs"),
        ("index\tname\n1.5\tCSF\n", "whole numbers"),
        ("index\tname\tmodel_labels\n1\tA\t24\n1\tB\t2 41\n", "stands twice"),
        ("index\tname\tmodel_labels\n-1\tA\t24\n", "negative"),
        ("index\tname\tmodel_labels\n1\tA\t24 99\n", "label 1: model_labels '24 99'"),
        ("index\tname\tmodel_labels\n1\tA\t24,\n", "label 1: model_labels '24,'"),
        ("index\tname\tmodel_labels\n1\tA\tLeft-Thalmus\n", "label 1: .*'Left-Thalmus'"),
        ("index\tname\tmodel_labels\n1\tA\tn/a\n", "label 1: model_labels 'n/a'"),
        ("index\tname\tmodel_labels\n1\tA\t\n", "label 1: model_labels ''"),
        ("index\tname\tmodel_labels\n1\tA\n", "line 2 has 2 cell"),
    ],
)
def test_bad_tables_are_named_in_one_line(tmp_path, text, complaint):
    with pytest.raises(BadData, match=complaint) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "dseg.tsv") in str(caught.value) and "\n" not in str(caught.value)


def test_a_table_of_bytes_is_refused(tmp_path):
    (tmp_path / "dseg.tsv").write_bytes(b"index\tname\n1\t\xff\xfe\n")
    with pytest.raises(BadData, match="cannot be read"):
        read_source_labels(tmp_path / "dseg.tsv", TABLE)


def test_missing_table(tmp_path):
    with pytest.raises(InputMissing, match="label table missing"):
        read_source_labels(tmp_path / "dseg.tsv", TABLE)


def test_twins_by_name_and_by_meaning():
    labels = (
        label(0, "Background", 0),
        label(1, "Left-Thalamus", 10),
        label(2, "L_GM", 3),
        label(3, "Both", 2, 41),
        label(4, "Right-Thalamus", 49),
        label(5, "R_GM", 42),
        label(6, "ctx-rh-callosum", 2004),
        label(7, "ctx-lh-callosum", 1004),
        # Names that lie about the side: what counts is what they stand for.
        label(8, "Left-Extra-1", 4),
        label(9, "Left-Extra-2", 43),
    )
    assert twin_classes(labels, TABLE).tolist() == [0, 4, 5, 3, 1, 2, 7, 6, 9, 8]


def test_a_side_alone_is_refused():
    with pytest.raises(ValueError, match=r"label 5 \(Left-Only\) lies on one side"):
        twin_classes((label(0, "Background", 0), label(5, "Left-Only", 10)), TABLE)


def test_tissues():
    labels = (
        label(0, "Background", 0),
        label(1, "CSF", 14, 15, 24),
        label(2, "Cortex", 3, 42),
        label(3, "White", 2, 41),
        label(4, "Pallidum", 13),
        label(5, "Cerebellum", 7, 8, 46, 47),
        label(6, "Skull", 0),
    )
    names = ["background", "csf", "grey", "white", "white", "white", "other"]
    assert tissue_classes(labels, TABLE).tolist() == [TISSUE_OF[name] for name in names]


def test_sets_are_narrowed_by_what_a_map_tells_apart():
    labels = (
        label(0, "Background", 0, 24),
        label(8, "Cerebellum", 8, 172),
        label(24, "CSF", 24),
        label(172, "Vermis", 172),
    )

    def ids(voxels: list[int]) -> list[set[int]]:
        return [set(TABLE.ids[row]) for row in target_sets(labels, np.array(voxels), TABLE)]

    apart = [{0}, {8}, {24}, {172}]
    assert ids([1000, 100, 50, 20]) == apart
    # A label of none or of a few stray voxels tells nothing apart.
    assert ids([1000, 100, 50, 0]) == [{0}, {8, 172}, {24}, {172}]
    assert ids([1000, 10_000, 1, 1]) == [{0, 24}, {8, 172}, {24}, {172}]


def test_only_a_class_known_by_its_own_id_is_narrowed():
    labels = (label(0, "Background", 0), label(1, "CSF", 14, 24), label(24, "Outer", 24))
    sets = target_sets(labels, np.array([10, 10, 10]), TABLE)
    assert set(TABLE.ids[sets[1]]) == {14, 24}


def test_the_label_that_stands_for_a_class():
    standing = {
        label(0, "Background", 0, 24): 0,
        label(8, "Cerebellum", 8, 172): 8,
        label(21, "White-Matter-B", 2, 1004): 21,  # a component, with priors of its own
        label(1, "CSF", 14, 15, 24): 24,
        label(72, "5th-Ventricle", 4, 14, 24, 43): 4,
        label(5, "Deep", 10, 11, 49): 10,
        label(30, "Vessel", 0, 2, 24): 0,  # what may be background has no priors
        label(506, "Skull", 0): 0,
        label(2, "Cortex", 3, 42): 3,  # ids of a scheme of its own mean nothing here
    }
    assert class_labels(tuple(standing)).tolist() == list(standing.values())


def test_roles_in_changes_of_shape():
    roles = {
        label(0, "Background", 0, 24): "other",
        label(4, "Lateral", 4): "ventricle",
        label(5, "Ventricles", 4, 14, 15, 43): "ventricle",
        label(14, "Third", 14): "other",
        label(3, "Cortex", 3, 17, 18, 42, 53, 54): "cortex",
        label(17, "Hippocampus", 17): "other",
        label(2, "White", 2, 1004): "white",
        label(1004, "Callosum", 1004, 2004): "other",
        label(6, "Grey-and-white", 2, 3): "other",
        label(1, "CSF", 14, 15, 24): "csf",
        label(72, "5th-Ventricle", 4, 24): "other",
    }
    found = shape_roles(tuple(roles), TABLE)
    assert found.dtype == np.int8
    assert found.tolist() == [ROLE_OF[role] for role in roles.values()]
