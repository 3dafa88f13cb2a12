"""What is written for a session and a data set, and when a session counts as finished."""

import json
import logging
import os
import re
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_synthseg import __version__
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.bids import dataset
from bids_synthseg.bids.dataset import prepare_output, write_dataset_files
from bids_synthseg.bids.derivatives import SessionPaths, SessionWriter, Space, is_finished
from bids_synthseg.bids.provenance import bids_uri, made_with, options_sha256
from bids_synthseg.bids.quality import STRUCTURE_MEASURES
from bids_synthseg.bids.query import find_scan_groups
from bids_synthseg.bids.tables import format_table, tissue_channels, volume_columns, write_table
from bids_synthseg.errors import CannotCreate, InputMissing, StorageProblem, UsageProblem
from bids_synthseg.nifti import read_scan

TABLE = LabelTable.default()
CONFIG, WEIGHTS = "c" * 64, "d" * 64


@pytest.fixture
def output(phantom_dataset):
    return prepare_output(phantom_dataset, phantom_dataset / "derivatives" / "bids_synthseg")


def writer_for(raw, output, subject="01", session="1mo"):
    paths = SessionPaths(output, subject, session)
    return SessionWriter(paths, raw, config_sha256=CONFIG, weights_sha256=WEIGHTS)


@pytest.fixture
def writer(phantom_dataset, output):
    return writer_for(phantom_dataset, output)


@pytest.fixture
def space(phantom_dataset):
    [group] = find_scan_groups(phantom_dataset, participants=["01"])
    paths = tuple(scan.path for scan in group.scans)
    return Space("T1w", read_scan(paths[0]), paths)


def sidecar(path):
    return json.loads(path.with_name(path.name.split(".")[0] + ".json").read_text())


def test_names(tmp_path):
    paths = SessionPaths(tmp_path, "01", "1mo")
    assert paths.file("dseg", space="T1w", desc="aseg") == (
        tmp_path / "sub-01/ses-1mo/anat/sub-01_ses-1mo_space-T1w_desc-aseg_dseg.nii.gz"
    )
    assert SessionPaths(tmp_path, "01").file("T1w", ".json", desc="preproc", run="2") == (
        tmp_path / "sub-01/anat/sub-01_run-2_desc-preproc_T1w.json"
    )
    with pytest.raises(KeyError, match="seg"):
        paths.file("dseg", seg="aseg")
    assert paths.record == tmp_path / "logs/sub-01_ses-1mo.json"
    assert paths.report == tmp_path / "sub-01_ses-1mo.html"
    assert paths.figures == tmp_path / "sub-01/figures"


def test_segmentation_and_its_sidecar(writer, space, phantom_labels):
    path = writer.write_aseg(space, phantom_labels)
    assert path.name == "sub-01_ses-1mo_space-T1w_desc-aseg_dseg.nii.gz"
    image, raw = nib.load(path), nib.load(space.like.path)
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(image.get_fdata(), phantom_labels)
    np.testing.assert_array_equal(image.affine, raw.affine)
    assert sidecar(path) == {
        "Description": "Segmentation with FreeSurfer's label numbers (desc-aseg_dseg.tsv)",
        "Manual": False,
        "Sources": [
            "bids:raw:sub-01/ses-1mo/anat/sub-01_ses-1mo_T1w.nii.gz",
            "bids:raw:sub-01/ses-1mo/anat/sub-01_ses-1mo_T2w.nii.gz",
        ],
        "SpatialReference": "bids:raw:sub-01/ses-1mo/anat/sub-01_ses-1mo_T1w.nii.gz",
        "ConfigSHA256": CONFIG,
        "WeightsSHA256": WEIGHTS,
    }


def test_aseg_holds_no_number_above_255(writer, space, phantom_labels):
    labels = np.where(phantom_labels == 10, 1004, phantom_labels)
    with pytest.raises(ValueError, match="uint8"):
        writer.write_aseg(space, labels)
    path = writer.write_native(space, labels)
    assert path.name.endswith("_space-T1w_desc-native_dseg.nii.gz")
    assert nib.load(path).get_fdata().max() == 1004


def test_mask(writer, space, phantom_labels):
    path = writer.write_mask(space, phantom_labels > 0)
    assert set(np.unique(nib.load(path).get_fdata())) == {0, 1}
    assert sidecar(path)["Type"] == "Brain"


def test_maps_of_what_is_sure_and_where_contrasts_disagree(writer, space, phantom_labels):
    confidence = np.where(phantom_labels > 0, 0.6, 1.0)
    path = writer.write_confidence(space, confidence)
    assert path.name == "sub-01_ses-1mo_space-T1w_desc-confidence_probseg.nii.gz"
    image = nib.load(path)
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_allclose(image.get_fdata(), confidence, atol=0.002)
    path = writer.write_disagreement(space, phantom_labels == 2)
    assert path.name == "sub-01_ses-1mo_space-T1w_desc-disagreement_mask.nii.gz"
    np.testing.assert_array_equal(nib.load(path).get_fdata(), phantom_labels == 2)
    assert "different labels" in sidecar(path)["Description"]


def test_sources_may_lie_in_a_linked_data_set(phantom_dataset, output, space, tmp_path):
    paths = SessionPaths(output, "01", "1mo")
    hashes = {"config_sha256": CONFIG, "weights_sha256": WEIGHTS}
    source = tmp_path / "sr" / "sub-01" / "anat" / "sub-01_T2w.nii.gz"
    writer = SessionWriter(paths, phantom_dataset, **hashes, links={"sr": tmp_path / "sr"})
    assert writer.uri(source) == "bids:sr:sub-01/anat/sub-01_T2w.nii.gz"
    linked = Space("T1w", space.like, (source,))
    mask = np.zeros(space.like.volume.grid.shape)
    assert sidecar(writer.write_mask(linked, mask))["Sources"] == [writer.uri(source)]
    with pytest.raises(ValueError, match="neither"):
        SessionWriter(paths, phantom_dataset, **hashes).uri(source)


def test_reference_may_be_an_output(writer, space, phantom_image, phantom_labels):
    reference = writer.write_preproc(space, phantom_image, "Mean of two runs.")
    assert reference.name == "sub-01_ses-1mo_desc-preproc_T1w.nii.gz"
    assert sidecar(reference)["SkullStripped"] is False
    np.testing.assert_array_equal(nib.load(reference).get_fdata(), phantom_image)
    path = writer.write_mask(Space("T1w", space.like, space.sources, reference), phantom_labels > 0)
    assert sidecar(path)["SpatialReference"] == (
        "bids::sub-01/ses-1mo/anat/sub-01_ses-1mo_desc-preproc_T1w.nii.gz"
    )


def posteriors(labels):
    rest = np.float32(0.1 / (len(TABLE) - 1))
    return np.where(labels[None] == TABLE.ids[:, None, None, None], np.float32(0.9), rest)


def test_posteriors(writer, space, phantom_labels):
    data = posteriors(phantom_labels)
    path = writer.write_posteriors(space, data, TABLE)
    image = nib.load(path)
    assert image.shape == (*phantom_labels.shape, len(TABLE))
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_allclose(image.get_fdata(), np.moveaxis(data, 0, -1), atol=0.002)
    assert sidecar(path)["LabelMap"][:3] == ["BG", "L_WM", "L_CTX"]
    exact = nib.load(writer.write_posteriors(space, data, TABLE, compact=False))
    np.testing.assert_array_equal(exact.get_fdata(), np.moveaxis(data, 0, -1))
    with pytest.raises(ValueError, match="33 channels"):
        writer.write_posteriors(space, data[1:], TABLE)


def test_tissues_come_as_a_trio(writer, space, phantom_labels):
    data = posteriors(phantom_labels)
    paths = writer.write_tissues(space, data, TABLE)
    assert [path.name[25:] for path in paths] == [
        f"label-{name}_probseg.nii.gz" for name in ("GM", "WM", "CSF")
    ]
    grey, white, fluid = (nib.load(path).get_fdata() for path in paths)
    assert (grey[phantom_labels == 3] > 0.9).all() and (white[phantom_labels == 41] > 0.9).all()
    assert (fluid[phantom_labels == 24] > 0.9).all()
    np.testing.assert_allclose(grey + white + fluid + data[0], 1, atol=1e-5)


def test_every_label_but_background_has_one_tissue():
    channels = tissue_channels(TABLE)
    assert sorted(np.concatenate(list(channels.values()))) == list(range(1, len(TABLE)))
    assert {TABLE.channel_of(index) for index in (7, 16, 41, 2004)} <= set(channels["WM"])
    assert {TABLE.channel_of(index) for index in (8, 42, 172)} <= set(channels["GM"])


def test_volumes(writer, space):
    folded, _ = TABLE.fold("aseg")
    hard, soft = np.arange(len(folded)) * 1000.0, np.linspace(0, 1, len(folded))
    path = writer.write_volumes(space, folded, hard, soft)
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    assert lines[0] == ["index", "name", "volume_mm3", "volume_soft_mm3"]
    assert lines[1] == ["2", "Left-Cerebral-White-Matter", "1000", "0.0323"]
    assert len(lines) == len(folded)  # a line of names, and no background
    assert sidecar(path)["volume_mm3"]["Units"] == "mm^3"
    with pytest.raises(ValueError, match="zip"):
        volume_columns(folded, hard[1:], soft)


def test_table_cells(tmp_path):
    text = format_table({"a": [1, None, float("nan")], "b": [np.float32(0.5), "", 12345678.0]})
    assert text == "a\tb\n1\t0.5\nn/a\tn/a\nn/a\t12345678\n"
    assert format_table({"a": [-0.00001, 0.0]}) == "a\n0\n0\n"
    assert format_table({"a": ["x\ty\n"]}) == "a\nx\\ty\\n\n"
    with pytest.raises(ValueError, match="zip"):
        format_table({"a": [1], "b": []})
    with pytest.raises(ValueError, match="descriptions"):
        write_table(tmp_path / "x.tsv", {"a": []}, {})


def test_transform(writer):
    path = writer.write_transform("T2w", "T1w", "#Insight Transform File V1.0\n")
    assert path.name == "sub-01_ses-1mo_from-T2w_to-T1w_mode-image_xfm.txt"
    assert path.read_text() == "#Insight Transform File V1.0\n"


def test_a_session_is_finished_only_whole_and_unchanged(writer, space, phantom_labels):
    writer.start()
    writer.write_mask(space, phantom_labels > 0)
    assert not is_finished(writer.paths, "s") and not is_finished(writer.paths, None)
    assert not writer.paths.anat.exists()  # nothing shows before all is there
    writer.finish("s", {"Warnings": ["a"]})
    assert is_finished(writer.paths, "s") and not is_finished(writer.paths, "other")
    assert json.loads(writer.paths.record.read_text())["Warnings"] == ["a"]
    mask = writer.paths.file("mask", space="T1w", desc="brain")
    content = mask.read_bytes()
    for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
        mask.write_bytes(damaged)
        assert not is_finished(writer.paths, "s")
    mask.unlink()
    assert not is_finished(writer.paths, "s")
    mask.write_bytes(content)
    assert is_finished(writer.paths, "s")
    writer.paths.record.write_text("{")
    assert not is_finished(writer.paths, "s")


def test_signature_changes_with_all_that_decides_the_result(phantom_dataset):
    def signature(version="1", weights="w", options=None):
        [group] = find_scan_groups(phantom_dataset, participants=["01"])
        options = options or {"mirror": True, "b": 1}
        return options_sha256(made_with(group.scans, version, weights, options))

    first = signature()
    assert signature(options={"b": 1, "mirror": True}) == first
    others = [signature("2"), signature(weights="x"), signature(options={"mirror": False, "b": 1})]
    scan = next(phantom_dataset.rglob("*1mo_T1w.nii.gz"))
    content = scan.read_bytes()
    scan.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    others.append(signature())
    scan.write_bytes(content)
    assert signature() == first
    scan.rename(scan.with_name("sub-01_ses-1mo_run-1_T1w.nii.gz"))
    others.append(signature())
    assert len({first, *others}) == 6

    [group] = find_scan_groups(phantom_dataset, participants=["02"])
    group.scans[0].path.unlink()
    with pytest.raises(InputMissing, match="sub-02_T2w"):
        made_with(group.scans, "1", "w", {})


def test_uris(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "raw" / "derivatives" / "x"
    assert bids_uri(raw / "sub-01/a.nii", raw, out) == "bids:raw:sub-01/a.nii"
    assert bids_uri(out / "sub-01/a.nii", raw, out) == "bids::sub-01/a.nii"
    with pytest.raises(ValueError, match="neither"):
        bids_uri(tmp_path / "a.nii", raw, out)


def test_root_files(phantom_dataset, output, monkeypatch):
    monkeypatch.setenv("BIDS_SYNTHSEG_DOCKER_TAG", "bids_synthseg:1.2")
    monkeypatch.setattr(dataset, "_code_url", lambda: "https://example.org/code")
    write_dataset_files(phantom_dataset, output, TABLE)
    assert json.loads((output / "dataset_description.json").read_text()) == {
        "Name": "Brain segmentation of: phantom",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "License": "not stated by the source data set",
        "GeneratedBy": [
            {
                "Name": "bids_synthseg",
                "Version": __version__,
                "CodeURL": "https://example.org/code",
                "Container": {"Type": "docker", "Tag": "bids_synthseg:1.2"},
            }
        ],
        "SourceDatasets": [{"URL": "bids:raw:"}],
        "DatasetLinks": {"raw": "../.."},
    }
    table = (output / "desc-native_dseg.tsv").read_text().splitlines()
    assert table[0] == "index\tname\tabbreviation\tcolor\tmapping"
    assert table[1] == "0\tBackground\tBG\t#000000\t0" and len(table) == len(TABLE) + 1
    aseg = (output / "desc-aseg_dseg.tsv").read_text()
    assert "1004" not in aseg and len(aseg.splitlines()) == len(table) - 2
    assert "desc-aseg\t" in (output / "descriptions.tsv").read_text()


def test_root_files_are_the_same_from_every_shard(phantom_dataset, output):
    def written():
        write_dataset_files(phantom_dataset, output, TABLE)
        return {path.name: path.read_bytes() for path in output.iterdir()}

    assert written() == written()
    assert set(written()) == {
        ".bidsignore", "README.md", "dataset_description.json", "desc-aseg_dseg.tsv",
        "desc-native_dseg.tsv", "descriptions.tsv",
    }  # fmt: skip


def test_link_to_the_input_is_relative_and_leads_there(phantom_dataset, tmp_path):
    (tmp_path / "link").symlink_to(phantom_dataset)
    out = prepare_output(tmp_path / "link", tmp_path / "a" / "out")
    link = dataset.dataset_description(tmp_path / "link", out)["DatasetLinks"]["raw"]
    assert link == "../../raw"
    assert (out / link).resolve() == phantom_dataset.resolve()


def test_output_folder_in_the_wrong_place(phantom_dataset, tmp_path):
    def refused(output, words, kind=UsageProblem):
        with pytest.raises(kind, match=words) as caught:
            prepare_output(phantom_dataset, output)
        assert str(output) in str(caught.value) and "; " in str(caught.value)

    refused(phantom_dataset, "is the input")
    refused(phantom_dataset / "sub-01", "inside the input")
    refused(phantom_dataset / "derivatives", "inside the input")
    (tmp_path / "link").symlink_to(phantom_dataset)
    refused(tmp_path / "link" / "out", "inside the input")
    assert not (phantom_dataset / "out").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "dataset_description.json").write_text('{"GeneratedBy": [{"Name": "fMRIPrep"}]}')
    refused(other, "did not make")
    assert [path.name for path in other.iterdir()] == ["dataset_description.json"]
    (other / "dataset_description.json").write_text("{")
    refused(other, "not valid JSON")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "in the way", CannotCreate)
    refused(tmp_path / "file" / "out", "in the way", CannotCreate)


def test_output_folder_may_be_used_again(phantom_dataset, output):
    write_dataset_files(phantom_dataset, output, TABLE)
    assert prepare_output(phantom_dataset, output) == output
    assert not (output / ".probe").exists()


def test_odd_name_in_derivatives_is_said(phantom_dataset, caplog):
    with caplog.at_level(logging.WARNING):
        prepare_output(phantom_dataset, phantom_dataset / "derivatives" / "segmentations")
    assert "to hold 'bids_synthseg'" in caplog.text


@pytest.mark.parametrize(("number", "kind"), [(28, StorageProblem), (30, CannotCreate)])
def test_full_and_read_only_disks(phantom_dataset, tmp_path, monkeypatch, number, kind):
    def refuse(descriptor):
        raise OSError(number, "refused")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(kind, match=re.escape(str(tmp_path / "out"))):
        prepare_output(phantom_dataset, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_read_only_disk_refuses_removals_as_well(tmp_path, monkeypatch):
    def refuse(path, *options, **more):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(CannotCreate, match="no permission"):
        prepare_output(tmp_path / "raw", tmp_path / "out")


@pytest.mark.validator
def test_validator_finds_no_error(phantom_dataset, output, phantom_labels):
    validator = shutil.which("bids-validator-deno")
    if validator is None:
        pytest.skip("bids-validator-deno is not installed")
    write_dataset_files(phantom_dataset, output, TABLE)
    folded, _ = TABLE.fold("aseg")
    for group in find_scan_groups(phantom_dataset):
        writer = writer_for(phantom_dataset, output, group.subject, group.session)
        writer.start()
        for contrast, [scan] in group.by_contrast.items():
            like = read_scan(scan.path)
            space = Space(contrast, like, tuple(scan.path for scan in group.scans))
            labels = np.zeros(like.volume.grid.shape, np.int32)
            labels[5:9, 5:9, 5:9] = 2
            writer.write_aseg(space, labels)
            writer.write_native(space, labels)
            writer.write_mask(space, labels > 0)
            writer.write_volumes(space, folded, np.zeros(len(folded)), np.zeros(len(folded)))
            writer.write_confidence(space, (labels > 0).astype(float))
            writer.write_disagreement(space, labels > 0)
            writer.write_table(
                space, "qc", {name: [0] for name in STRUCTURE_MEASURES}, STRUCTURE_MEASURES
            )
            writer.write_posteriors(space, posteriors(labels), TABLE)
            writer.write_tissues(space, posteriors(labels), TABLE)
            writer.write_preproc(space, like.volume.data, "The raw image.")
        writer.write_transform("T2w", "T1w", "#Insight Transform File V1.0\n")
        writer.paths.report.write_text("<html></html>")
        writer.paths.figures.mkdir(parents=True)
        (writer.paths.figures / f"{group.label}_desc-aseg_dseg.svg").write_text("<svg/>")
        writer.finish("s")
    found = subprocess.run([validator, "--json", output], capture_output=True, text=True)
    issues = json.loads(found.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
    assert found.returncode == 0
