"""Samples as files: image and labels on one grid, with labels that read back as what they are."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from training_samples import ball_map, tiny_config

from bids_synthseg import nifti
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.errors import CannotCreate
from bids_synthseg.learning.export import FIRST_SET, set_indices, write_samples
from bids_synthseg.learning.label_sets import read_source_labels, twin_classes
from bids_synthseg.learning.preview import paint

TABLE = LabelTable.default()
CONFIG = tiny_config(shape=(16, 24, 16))
SIDED = ({0}, {2}, {41}, {3}, {42}, {24})
# Background or CSF; white matter of a side, or any; cortex with hippocampus, on either side alone.
VAGUE = ({0, 24}, {2, 41}, {2, 41}, {3, 17}, {42, 53}, {24})


def map_of(ids=SIDED, dataset="a", **changes):
    """The ball with other meanings of its classes."""
    one = ball_map(dataset=dataset)
    own = [np.isin(TABLE.ids, list(each)) for each in ids]
    return replace(one, sets=np.concatenate([own, one.sets[len(ids) :]]), **changes)


def rows_of(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def test_indices_by_hand():
    found = set_indices([map_of(SIDED), map_of(VAGUE)], TABLE)
    by_ids = {frozenset(TABLE.ids[list(one)].tolist()): index for one, index in found.items()}
    several = {frozenset(one) for one in ({0, 24}, {2, 41}, {3, 17}, {42, 53})}
    assert {one: i for one, i in by_ids.items() if len(one) == 1} == {
        frozenset({i}): i for i in (0, 2, 3, 24, 41, 42)
    }
    assert {one for one in by_ids if len(one) > 1} == several
    assert {by_ids[one] for one in several} == set(range(FIRST_SET, FIRST_SET + 4))


def test_a_label_of_one_side_gets_its_other_side():
    found = set_indices([map_of(({0}, {2}, {2}, {3, 17}, {3, 17}, {24}))], TABLE)
    ids = [frozenset(TABLE.ids[list(one)].tolist()) for one in found]
    assert {frozenset({41}), frozenset({42, 53})} <= set(ids)


@pytest.mark.parametrize("ids", [SIDED, VAGUE], ids=["sided", "vague"])
def test_files_read_back_as_the_samples(tmp_path, ids):
    maps = [map_of(ids)]
    images = write_samples(maps, CONFIG, TABLE, tmp_path / "out", n=2, seed=3)
    labels = read_source_labels(tmp_path / "out" / "dseg.tsv", TABLE)
    twin_classes(labels, TABLE)  # raises where a side is missing
    meaning = {label.index: label.labels for label in labels}
    samples = list(paint(maps, CONFIG, 2, seed=3))
    for path, one in zip(images, samples, strict=True):
        scan = nifti.read_scan(path).volume
        found = nifti.read_labels(path.with_name(f"{path.name.rsplit('_', 1)[0]}_dseg.nii.gz"))
        np.testing.assert_array_equal(scan.data, one.image)
        assert found.volume.grid.same_as(scan.grid)
        np.testing.assert_allclose(scan.grid.voxel_size_mm, one.voxel_mm, rtol=1e-6)
        np.testing.assert_allclose(scan.grid.centre_mm, 0, atol=1e-4)
        # Row by row of the map: each voxel carries an index that means its class's set.
        for number in np.unique(one.classes):
            (index,) = np.unique(found.volume.data[one.classes == number])
            assert meaning[index] == set(TABLE.ids[maps[0].sets[number]].tolist())


def test_the_folder_says_what_it_holds(tmp_path):
    maps = [map_of(dataset="a", age_weeks=38.5), map_of(dataset="b")]
    images = write_samples(maps, CONFIG, TABLE, tmp_path, n=3)
    assert [path.relative_to(tmp_path).as_posix() for path in images] == [
        f"sub-{n:04d}/anat/sub-{n:04d}_desc-synthetic_PDw.nii.gz" for n in (1, 2, 3)
    ]
    people = rows_of(tmp_path / "participants.tsv")
    assert [row["painted_from"] for row in people] == ["a/sub-01", "b/sub-01", "a/sub-01"]
    assert [row["age_weeks_pma"] for row in people] == ["38.5", "n/a", "38.5"]
    assert {row["contrast"] for row in people} == {"random"}
    description = json.loads((tmp_path / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["BIDSVersion"]
    assert "3 images" in (tmp_path / "README.md").read_text()


def test_a_contrast_that_is_known_is_named(tmp_path):
    contrast = replace(CONFIG.synthesis.contrast, prior=1.0, prior_contrasts=("T2w",))
    config = replace(CONFIG, synthesis=replace(CONFIG.synthesis, contrast=contrast))
    (image,) = write_samples([map_of()], config, TABLE, tmp_path, n=1)
    assert image.name == "sub-0001_desc-synthetic_T2w.nii.gz"


def test_another_data_set_is_not_touched(tmp_path):
    (tmp_path / "dataset_description.json").write_text("{}")
    with pytest.raises(CannotCreate, match="holds a data set already"):
        write_samples([map_of()], CONFIG, TABLE, tmp_path, n=1)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset_description.json"]
