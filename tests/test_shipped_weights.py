"""The shipped weights: in order, frank about nothing private, plausible on the phantom newborn.

The model card has the scores.
"""

import configparser
import json
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from scipy import ndimage

from bids_synthseg import cli, console, phantom, pipeline
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.metrics import dice
from bids_synthseg.errors import BadData
from bids_synthseg.models.registry import card_of, model_files, read_manifest, verify_folder
from bids_synthseg.pipeline import Options, Segmenter
from bids_synthseg.segmentation.labelling import label_volume
from bids_synthseg.segmentation.predict import segment
from bids_synthseg.storage import file_sha256

WEIGHTS = Path(__file__).parents[1] / "weights"
FILES = ("segmentation.safetensors", "locator.safetensors")

pytestmark = pytest.mark.skipif(
    not all((WEIGHTS / name).is_file() for name in FILES), reason="weights/*.safetensors missing"
)


# A place on a machine: at the start of a text or after a blank, quote, bracket, comma, = or colon
# (but not the two slashes of an address).
PLACE = re.compile(
    r"""(^|[\s"'`=,;(\[{<>|:])(~[\w.-]*/|/(?![/\s])|\\\\|[A-Za-z]:[\\/](?!/)|file:)"""
)


def strings(value: object) -> Iterator[str]:
    """Every text within plain values, keys as well."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from strings(key)
            yield from strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from strings(one)


def places(path: Path) -> list[str]:
    """Texts of a file's metadata that name an absolute place on some machine."""
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    documents = [json.loads(text) for text in metadata.values()]
    return [text for text in strings([*metadata, *documents]) if PLACE.search(text)]


def test_what_ships_is_in_order():
    """Fails after a change of weights until `make weights-manifest` has run."""
    lines = list(verify_folder(WEIGHTS))
    assert all(line.endswith(": OK") for line in lines) and len(lines) >= len(FILES) + 1


def test_the_manifest_names_what_is_there():
    expected = {path.name: file_sha256(path) for path in model_files(WEIGHTS)}
    assert read_manifest(WEIGHTS) == expected, "run make weights-manifest"


def test_every_model_has_a_card_that_names_its_checksum():
    for path in model_files(WEIGHTS):
        card = card_of(path)
        assert card and file_sha256(path) in card.read_text(encoding="utf-8"), path.name


def test_all_of_it_is_installed():
    setup = configparser.ConfigParser()
    setup.read(WEIGHTS.parent / "setup.cfg", encoding="utf-8")
    patterns = setup["options.package_data"]["bids_synthseg.weights"].split()
    wanted = [path.name for path in WEIGHTS.iterdir() if path.suffix in {".safetensors", ".md"}]
    for name in [*wanted, "SHA256SUMS"]:
        assert any(fnmatch(name, pattern) for pattern in patterns), name


@pytest.mark.parametrize("path", model_files(WEIGHTS), ids=lambda path: path.stem)
def test_no_place_on_a_machine_is_told(path):
    assert places(path) == []


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("/home/me/runs/4", True),
        ("started from /data/x.pt", True),
        ("C:\\Users\\me", True),
        ("D:/runs", True),
        ("\\\\server\\share", True),
        ("~/runs", True),
        ("~me/runs", True),
        ("file:///tmp/x", True),
        ("host:/scratch/me", True),
        ({"/mnt/maps": 1}, True),
        ([{"maps": ["a/sub-01", "/b/sub-02"]}], True),
        ({"init_from": "4-coarse-rank", "maps": ["adult-synthseg/sub-01"], "steps": 3}, False),
        ("https://github.com/owner/name", False),
        ("T1w / T2w ratio of 1/2, see weights/README.md", False),
        ("and/or, 3/4", False),
        ("~0.4 mm", False),
    ],
)
def test_places_are_recognised(value, found):
    assert any(PLACE.search(text) for text in strings(value)) is found


def test_a_locator_is_no_segmentation_model(phantom_dataset, tmp_path, package_log, capsys):
    wrong = WEIGHTS / "locator.safetensors"
    out = tmp_path / "out"
    arguments = [phantom_dataset, out, "participant", "--device", "cpu", "--model", wrong]
    assert console.run(cli.command, [str(one) for one in arguments]) == 65
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{wrong}: is a model for another task" in line and "give one for segmentation" in line
    assert not list(out.rglob("*.nii.gz"))


def test_a_shipped_file_that_changed_is_refused(tmp_path, monkeypatch):
    """A changed weight has no other symptom than a worse segmentation."""
    for name in (*FILES, "SHA256SUMS"):
        (tmp_path / name).write_bytes((WEIGHTS / name).read_bytes())
    monkeypatch.setattr(pipeline, "shipped_folder", lambda: tmp_path)
    options = Options(device="cpu")
    sound = Segmenter.load(options).weights_sha256
    for name in FILES:
        path = tmp_path / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(BadData, match=f"{name}: not the file that SHA256SUMS"):
            Segmenter.load(options)
        if name == FILES[0]:  # a model of the user's own may be anything, also this one
            Segmenter.load(Options(device="cpu", model=path))
        path.write_bytes(content)
    assert Segmenter.load(options).weights_sha256 == sound


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.load(Options(device="cpu"))


@pytest.mark.parametrize("contrast", phantom.CONTRASTS)
def test_a_newborn_phantom_is_segmented_plausibly(segmenter, contrast):
    truth = phantom.phantom_labels()
    image = phantom.phantom_image(truth, contrast)
    result = segment(image, segmenter.model, segmenter.locator)
    assert result.box.found
    found = label_volume(result.field, image.grid)
    brain = truth.data > 0
    assert dice(found.mask.astype(int), brain.astype(int), [1])[1] > 0.7

    # Nothing in the air: the scalp ends 5 mm outside the brain.
    away_mm = ndimage.distance_transform_edt(~brain, sampling=truth.grid.voxel_size_mm)
    assert not found.aseg[away_mm > 8].any()

    # Left is left, and most voxels are on their side of the midline.
    table = LabelTable.default()
    x = image.grid.to_world(np.stack(np.indices(image.grid.shape), -1))[..., 0]
    for row in table.rows:
        there = [found.native == index for index in (row.index, row.mirror)]
        if row.side == "left" and min(part.sum() for part in there) > 50:
            assert x[there[0]].mean() < x[there[1]].mean(), row.name
    sides = {side: [r.index for r in table.rows if r.side == side] for side in ("left", "right")}
    assert (x[np.isin(found.native, sides["left"])] < 0).mean() > 0.9
    assert (x[np.isin(found.native, sides["right"])] > 0).mean() > 0.9
