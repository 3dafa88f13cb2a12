"""Whatever others hand in: an answer, or one line that names the file; never a traceback or a hang.

The seeds are fixed, so that what is found once is found again.
"""

import gzip
import json
import logging
import random
import struct
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import OBLIQUE, nifti, write_tree
from finished_session import finish_session
from safetensors import safe_open
from safetensors.torch import save_file

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.bids.ages import read_ages
from bids_synthseg.bids.dataset import dataset_links, prepare_output, write_dataset_files
from bids_synthseg.bids.group import write_group
from bids_synthseg.bids.plan import checked, plan_text
from bids_synthseg.bids.query import find_scan_groups
from bids_synthseg.bids.reports import write_reports
from bids_synthseg.errors import AppError
from bids_synthseg.fields import build
from bids_synthseg.learning.config import TrainConfig, read_config
from bids_synthseg.models.checkpoint import METADATA_KEY, Model, load_model, save_model
from bids_synthseg.models.description import facts
from bids_synthseg.models.heads import Head
from bids_synthseg.models.tasks import SEGMENTATION, check_model
from bids_synthseg.models.unet import NetworkConfig, UNet
from bids_synthseg.nifti import read_labels, read_scan, write_image

ODD_VALUES = (
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**40, 1.5, -0.0, 1e308, -1e308, float("nan"),
    float("inf"), "", "x", "n/a", "1e308", "\ud800", "\x00", "a\tb\n", [], [1], [[[]]], ["a", None],
    {}, {"a": 1}, {"": {"": {}}},
)  # fmt: skip


def survives(function, *arguments):
    """Whether it answered; an AppError counts as none, and has one line."""
    try:
        function(*arguments)
    except AppError as error:
        assert str(error).strip() and len(str(error)) < 2000
        return False
    return True


def mutated_json(content, rng):
    """A copy with one value anywhere replaced, removed or doubled."""
    content = json.loads(json.dumps(content))
    places = []

    def walk(node):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(content)
    node, key = rng.choice(places)
    if rng.random() < 0.15 and isinstance(node, dict):
        del node[key]
    elif rng.random() < 0.1 and isinstance(node, list):
        node.append(node[key])
    else:
        node[key] = rng.choice(ODD_VALUES)
    return content


def mutated_text(text, rng):
    """A copy with some of its bytes cut, doubled or replaced."""
    raw = bytearray(text.encode())
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(raw) + 1)
        match rng.randrange(4):
            case 0:
                del raw[place : place + rng.randint(1, 8)]
            case 1:
                raw[place:place] = rng.choice(
                    [b"\t", b"\n", b'"', b"\xff", b"\x00", b"1e308", b"-1", b"nan", b" ", b"[" * 99]
                )
            case 2:
                raw[place:place] = bytes(raw[place : place + 9])
            case 3:
                raw[place : place + 1] = bytes([rng.randrange(256)])
    return bytes(raw)


# Headers


def header_fields():
    """Offset and format of fields of a NIfTI-1 header, whole or single numbers."""
    names = np.dtype(type(nifti(np.zeros((2, 2, 2))).header).template_dtype)
    formats = {"int16": "h", "float32": "f", "int32": "i", "uint8": "B"}
    for name in names.names:
        kind, offset = names.fields[name][:2]
        base, shape = kind.subdtype or (kind, (1,))
        if base.name in formats:
            for number in range(shape[0]):
                yield offset + number * base.itemsize, formats[base.name]


NUMBERS = {
    "h": (0, -1, 1, 2, 3, 8, 255, 32767, -32768),
    "i": (0, -1, 347, 348, 540, 2**31 - 1),
    "B": (0, 5, 0x55, 255),
    "f": (0.0, -1.0, 1e-30, 1e30, -1e30, 3e38, 353.0, float("nan"), float("inf"), -float("inf")),
}


def test_headers(tmp_path):
    """One field at a time with every odd number, and many at once."""
    noise = np.random.default_rng(1).gamma(3, 50, (5, 6, 7)).astype(np.float32)
    nifti(noise, OBLIQUE).to_filename(tmp_path / "good.nii")
    good = (tmp_path / "good.nii").read_bytes()
    places = list(header_fields())
    edits = [[(*place, value)] for place in places for value in NUMBERS[place[1]]]
    rng = random.Random(1)
    for _ in range(150):
        chosen = rng.choices(places, k=rng.randint(2, 5))
        edits.append([(*place, rng.choice(NUMBERS[place[1]])) for place in chosen])
    read = 0
    for number, edit in enumerate(edits):
        raw = bytearray(good)
        for offset, kind, value in edit:
            struct.pack_into("<" + kind, raw, offset, value)
        packed = number % 5 == 0
        path = tmp_path / ("scan.nii.gz" if packed else "scan.nii")
        path.write_bytes(gzip.compress(raw, 1) if packed else raw)
        survives(read_labels, path)
        if survives(read_scan, path):
            read += 1
            scan = read_scan(path)
            write_image(tmp_path / "out.nii", scan.volume.data > 9, scan, np.uint8)
            back = read_labels(tmp_path / "out.nii")
            assert back.volume.grid.same_as(scan.volume.grid, 1e-2)
    assert len(edits) > 500 and read > len(edits) / 3


def test_bits_of_an_archive(tmp_path):
    """Every flipped bit of the packed data is noticed."""
    noise = np.random.default_rng(1).gamma(3, 50, (5, 6, 7)).astype(np.float32)
    nifti(noise).to_filename(tmp_path / "scan.nii.gz")
    good = (tmp_path / "scan.nii.gz").read_bytes()
    rng, start = random.Random(2), 10 + len("scan.nii") + 1
    for _ in range(100):
        raw = bytearray(good)
        raw[rng.randrange(start, len(raw))] ^= 1 << rng.randrange(8)
        (tmp_path / "scan.nii.gz").write_bytes(raw)
        assert not survives(read_scan, tmp_path / "scan.nii.gz")


# Tables, sidecars, records

TABLES = {
    "participants.tsv": "participant_id\tsession_id\tage\tage_weeks_pma\nsub-01\tn/a\t3\t41\n",
    "participants.json": '{"age": {"Units": "months", "Description": "age"}}',
    "sub-01/sub-01_scans.tsv": "filename\tqc\tage_weeks\nanat/sub-01_T1w.nii\t3\t10\n",
    "dataset_description.json": '{"Name": "x", "BIDSVersion": "1.10.0", "License": "CC0"}',
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_and_descriptions(tmp_path, name, caplog):
    caplog.set_level(logging.ERROR)
    root = write_tree(tmp_path / "raw", {"sub-01": {"anat": {"sub-01_T1w.nii": None}}})
    for other, text in TABLES.items():
        (root / other).write_text(text)

    def plan():
        for column in (None, "qc"):
            groups = find_scan_groups(root, quality_column=column)
            plan_text([checked(group) for group in groups], root)
        read_ages(root, [group.key for group in groups])
        write_dataset_files(root, prepare_output(root, tmp_path / "out"), LabelTable.default())

    rng = random.Random(name)
    for number in range(120):
        if name.endswith(".json") and number % 2:
            content = mutated_json(json.loads(TABLES[name]), rng)
            (root / name).write_text(json.dumps(content))
        else:
            (root / name).write_bytes(mutated_text(TABLES[name], rng))
        survives(plan)


def test_records_of_our_own(tmp_path, phantom_dataset, phantom_labels, caplog):
    """What level group and the reports read again, with one value of another type or size."""
    caplog.set_level(logging.CRITICAL)
    out = prepare_output(phantom_dataset, tmp_path / "out")
    write_dataset_files(phantom_dataset, out, LabelTable.default())
    finish_session(phantom_dataset, out, phantom_labels, ("02", None), ("T2w",))
    paths = [path for path in out.rglob("*") if path.suffix in (".json", ".tsv")]
    rng = random.Random(3)
    for number in range(40):
        path = rng.choice(paths)
        good = path.read_bytes()
        if path.suffix == ".json" and number % 3:
            path.write_text(json.dumps(mutated_json(json.loads(good), rng)))
        else:
            path.write_bytes(mutated_text(good.decode(), rng))
        survives(prepare_output, phantom_dataset, out)
        survives(dataset_links, out)
        survives(write_group, phantom_dataset, out)
        if number % 8 == 0:
            survives(lambda: write_reports(phantom_dataset, out, viewer="none"))
        path.write_bytes(good)


# Models and configurations


def test_metadata_of_models(tmp_path):
    head = Head(LabelTable.default(), "sided")
    config = NetworkConfig(features=(2, 4), convs=(1, 1), channels_out=head.n_channels)
    model = Model(UNet(config), head, (16, 24, 16), 0.9, {"steps": 3, "maps": ["a/b"]})
    save_model(tmp_path / "good.safetensors", model)
    with safe_open(tmp_path / "good.safetensors", "pt") as stored:
        description = json.loads(stored.metadata()[METADATA_KEY])
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    rng, path = random.Random(4), tmp_path / "model.safetensors"
    loaded = 0

    def use():
        check_model(path, load_model(path), SEGMENTATION)
        facts(path)

    huge = ("channels_out", "channels_in", "stem", "features", "convs", "kernel", "evidence")
    mutants = [mutated_json(description, rng) for _ in range(150)]
    mutants += [
        description | {"network": description["network"] | {name: value}}
        for name in huge
        for value in (10**9, "1e9", [10**9], True, -1, [10**6] * 5, float("nan"))
    ]
    for mutant in mutants:
        save_file(tensors, path, {METADATA_KEY: json.dumps(mutant)})
        loaded += survives(use)
    assert 0 < loaded < len(mutants) / 2
    broken = {key: torch.full_like(value, float("nan")) for key, value in tensors.items()}
    save_file(broken, path, {METADATA_KEY: json.dumps(description)})
    with pytest.raises(AppError, match="are not finite; fetch it again"):
        load_model(path)


def numeric_fields(config, where=()):
    """Every field that holds a number, or several, of a configuration and those within it."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from numeric_fields(value, (*where, field.name))
        elif isinstance(value, bool | str):
            continue
        elif not isinstance(value, tuple) or not value or not isinstance(value[0], str):
            yield (*where, field.name)


def changed(config, place, number):
    name, *rest = place
    value = getattr(config, name)
    if rest:
        return replace(config, **{name: changed(value, rest, number)})
    if isinstance(value, tuple):
        return replace(config, **{name: (number, *value[1:])})
    return replace(config, **{name: {"a": number} if isinstance(value, dict) else number})


@pytest.mark.parametrize("place", list(numeric_fields(TrainConfig())), ids=".".join)
def test_every_number_of_a_configuration_has_a_range(place):
    for number in (float("nan"), float("inf"), -1e300, 1e300, -(10**30), 10**30):
        with pytest.raises(ValueError, match=place[-1].split("_")[0]):
            changed(TrainConfig(), place, number)


def test_configurations(tmp_path):
    presets = Path(__file__).parents[1] / "bids_synthseg/data/presets"
    texts = [path.read_text() for path in sorted(presets.glob("*.toml"))]
    rng = random.Random(5)
    for _ in range(150):
        (tmp_path / "run.toml").write_bytes(mutated_text(rng.choice(texts), rng))
        survives(read_config, tmp_path / "run.toml")
    defaults = vars_of(TrainConfig())
    for _ in range(200):
        try:
            build(TrainConfig, mutated_json(defaults, rng))
        except ValueError as problem:
            assert len(str(problem)) < 1000


def vars_of(config):
    return {
        field.name: vars_of(value) if is_dataclass(value) else value
        for field in fields(config)
        for value in (getattr(config, field.name),)
    }


def test_label_tables(tmp_path):
    table = LabelTable.default().records()
    rng = random.Random(6)
    for _ in range(100):
        try:
            LabelTable.from_records(mutated_json(table, rng))
        except ValueError as problem:
            assert str(problem)
