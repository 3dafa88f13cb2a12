"""What tests share: a BIDS tree from a dictionary, and a phantom brain of a few voxels."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

# Nested: a dictionary is a folder; str is written as text, dict ending in .json as JSON, an array
# or an image as NIfTI, None as an empty file (enough for everything that only reads names).
Tree = dict[str, object]

# Axes run left, anterior, superior; RAS_OBLIQUE: right, anterior, superior.
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, -0.1, 0.3) @ np.diag([-1.0, 1.1, 1.2]), [12.5, -30.25, 7.0]
)
RAS_OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, -0.1, 0.3) @ np.diag([1.0, 1.1, 1.2]), [-12.5, -10.25, -7.0]
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "validator: needs the BIDS validator (bids-validator-deno)")


def write_tree(root: Path, tree: Tree) -> Path:
    """Write a nested dictionary as folders and files below `root`; returns `root`."""
    for name, content in tree.items():
        path = root / name
        if isinstance(content, dict) and not name.endswith(".json"):
            path.mkdir(parents=True, exist_ok=True)
            write_tree(path, content)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, nib.Nifti1Image):
            content.to_filename(path)
        elif isinstance(content, np.ndarray):
            nifti(content).to_filename(path)
        elif name.endswith(".json"):
            path.write_text(json.dumps(content), encoding="utf-8")
        else:
            path.write_text(str(content or ""), encoding="utf-8")
    return root


def nifti(data: np.ndarray, affine: np.ndarray = OBLIQUE, sform: int = 1, qform: int = 1):
    """A NIfTI image in mm; the codes tell whether sform and qform are set."""
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm", "sec" if data.ndim > 3 else "unknown")
    image.set_qform(affine, code=qform)
    image.set_sform(affine, code=sform)
    return image


@pytest.fixture
def names_only(monkeypatch):
    """A dry run that takes empty files for scans."""
    monkeypatch.setattr("bids_synthseg.bids.plan.checked", lambda group: group)


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets: clock.now, in seconds."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def package_log():
    """Commands set up the log of the process; other tests want theirs back."""
    package = logging.getLogger("bids_synthseg")
    handlers, level = package.handlers, package.level
    yield
    package.handlers = handlers
    package.setLevel(level)


@pytest.fixture
def bids_tree(tmp_path: Path) -> Callable[..., Path]:
    """bids_tree({"sub-01": {"anat": {...}}}) -> root of a raw data set with a description."""

    def make(tree: Tree, name: str = "raw") -> Path:
        description = {"Name": "phantom", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
        base = {"dataset_description.json": description, "README.md": "A phantom for tests.\n"}
        return write_tree(tmp_path / name, base | tree)

    return make


@pytest.fixture(scope="session")
def phantom_labels() -> np.ndarray:
    """(20, 24, 18) int32 label map in RAS: an ellipsoid of CSF, cortex and white matter by side.

    Holds 0, 24, 2, 3, 41, 42, and a thalamus (10, 49) on each side.
    """
    shape = (20, 24, 18)
    x, y, z = (np.arange(n).reshape(s) - (n - 1) / 2 for n, s in zip(shape, _AXES, strict=True))
    radius = np.sqrt((x / 9) ** 2 + (y / 11) ** 2 + (z / 8) ** 2)
    left = np.broadcast_to(x < 0, shape)
    labels = np.zeros(shape, dtype=np.int32)
    labels[radius < 1.0] = 24
    for limit, id_left, id_right in ((0.88, 3, 42), (0.66, 2, 41), (0.3, 10, 49)):
        labels[(radius < limit) & left] = id_left
        labels[(radius < limit) & ~left] = id_right
    return labels


@pytest.fixture(scope="session")
def phantom_image(phantom_labels: np.ndarray) -> np.ndarray:
    """(20, 24, 18) float32 image of `phantom_labels` with T1w-like contrast and noise."""
    grey = {0: 5, 24: 30, 3: 90, 42: 90, 2: 140, 41: 140, 10: 115, 49: 115}
    values = np.zeros(max(grey) + 1, dtype=np.float32)
    values[list(grey)] = list(grey.values())
    noise = np.random.default_rng(7).normal(0, 4, phantom_labels.shape)
    return np.maximum(0, values[phantom_labels] + noise).astype(np.float32)


@pytest.fixture
def phantom_dataset(bids_tree: Callable[..., Path], phantom_image: np.ndarray) -> Path:
    """A raw data set: sub-01 with session 1mo (T1w and T2w, oblique), sub-02 (T2w) without.

    The T2w of sub-01 is the T1w with inverted contrast, cropped and flipped: on a grid of its own.
    """
    t2w = np.where(phantom_image > 15, 200 - phantom_image, phantom_image)[::-1, 2:, :]
    to_t1w = np.array([[-1, 0, 0, t2w.shape[0] - 1], [0, 1, 0, 2], [0, 0, 1, 0], [0, 0, 0, 1]])
    session = {
        "sub-01_ses-1mo_T1w.nii.gz": nifti(phantom_image, RAS_OBLIQUE),
        "sub-01_ses-1mo_T2w.nii.gz": nifti(t2w, RAS_OBLIQUE @ to_t1w),
    }
    tree = {
        "sub-01": {"ses-1mo": {"anat": session}},
        "sub-02": {"anat": {"sub-02_T2w.nii.gz": nifti(phantom_image, RAS_OBLIQUE)}},
    }
    return bids_tree(tree)


_AXES = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))


@pytest.fixture
def one_thread():
    """Tiny networks are slower with more, and sums could be of another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
