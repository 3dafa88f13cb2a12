"""The models that ship: where they lie, their checksums, and whether they are in order.

`SHA256SUMS` beside them has the format of `sha256sum`; `make weights-manifest` writes it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from bids_synthseg import phantom
from bids_synthseg.errors import AppError, BadData, InputMissing
from bids_synthseg.models.checkpoint import Model, load_model, shipped_folder
from bids_synthseg.models.inputs import network_input
from bids_synthseg.models.tasks import LOCATOR, SEGMENTATION, check_model, task_of
from bids_synthseg.reading import is_there, read_text
from bids_synthseg.storage import file_sha256

MANIFEST = "SHA256SUMS"
SUFFIX = ".safetensors"

NEEDED = {f"{task}{SUFFIX}": task for task in (SEGMENTATION, LOCATOR)}
"""Files that the App opens by name, and what they are for."""

LARGEST_BYTES = 60_000_000
"""All models together."""

SUM_TOLERANCE = 1e-4
"""How far from 1 the probabilities of a voxel may sum in single precision."""

_LINE = re.compile(r"([0-9a-f]{64}) [ *](\S.*)")


def model_files(folder: Path) -> list[Path]:
    """The model files of a folder, by name."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def find_model(name: str) -> Path:
    """The file of a shipped model ("locator"), or of any other by its path."""
    shipped = {path.stem: path for path in model_files(shipped_folder())}
    path = shipped.get(name.removesuffix(SUFFIX), Path(name))
    if not path.is_file():
        raise InputMissing(f"{name}: no such model; give a file, or one of {', '.join(shipped)}")
    return path


def card_of(path: Path) -> Path | None:
    """The model card: NAME.md beside a model file, else the README.md there; None without one."""
    cards = (path.with_suffix(".md"), path.with_name("README.md"))
    return next((card for card in cards if card.is_file()), None)


def read_manifest(folder: Path) -> dict[str, str]:
    """File name -> SHA-256, as SHA256SUMS of the folder has it; {} where there is none."""
    manifest = folder / MANIFEST
    if not is_there(manifest):
        return {}
    lines = read_text(manifest).splitlines()
    matches = [_LINE.fullmatch(line) for line in lines]
    if not all(matches):
        raise BadData(f"{manifest}: not the output of sha256sum; install bids_synthseg again")
    return {match[2]: match[1] for match in matches if match}


def compare_checksums(folder: Path, found: Mapping[str, str], *, shipped: bool = False) -> None:
    """Raises BadData where a file (name -> SHA-256) is not what the folder's manifest says;
    shipped: it must say something, else InputMissing."""
    expected = read_manifest(folder)
    for name, checksum in found.items():
        if shipped and name not in expected:
            raise InputMissing(
                f"{folder / MANIFEST}: names no checksum of {name}, so nobody can tell whether the "
                "weights are whole; install bids_synthseg again"
            )
        if expected.get(name, checksum) != checksum:
            raise BadData(
                f"{folder / name}: not the file that {MANIFEST} beside it names; install "
                "bids_synthseg again (after a change of your own: make weights-manifest)"
            )


def verify_folder(folder: Path) -> Iterator[str]:
    """Verify the models of a folder as a set that ships: a line for each that is sound, and a sum.

    Errors as `verify_files`, and InputMissing without a manifest.
    """
    listed, there = read_manifest(folder), model_files(folder)
    if not listed:
        raise InputMissing(f"{folder / MANIFEST}: no manifest; install bids_synthseg again")
    problems: list[AppError] = [
        BadData(f"{path}: not in {MANIFEST}; run make weights-manifest")
        for path in there
        if path.name not in listed
    ]
    size = sum(path.stat().st_size for path in there)
    total = f"{len(there)} models, {size / 1e6:.1f} of {LARGEST_BYTES / 1e6:.0f} MB"
    if size > LARGEST_BYTES:
        problems.append(BadData(f"{folder}: {total}; ship fewer or smaller ones"))
    names = sorted({*listed, *NEEDED, *(path.name for path in there)})
    yield from verify_files({folder / name: NEEDED.get(name) for name in names}, problems)
    yield f"{total}: OK"


def verify_files(
    tasks: Mapping[Path, str | None], problems: Iterable[AppError] = ()
) -> Iterator[str]:
    """Verify models, each for a task or for any; a line for each that is sound.

    Raises, in the end, one error with a line for each problem, those known before among them; it
    is of the first one's kind: InputMissing or BadData.
    """
    found = list(problems)
    for path, task in tasks.items():
        try:
            yield verify_file(path, task)
        except AppError as problem:
            found.append(problem)
    if found:
        raise type(found[0])("\n".join(map(str, found)))


def verify_file(path: Path, task: str | None = None) -> str:
    """Checksum, content and a forward pass of one model; a line that says so.

    `task`: what it must be for. Raises InputMissing or BadData.
    """
    if not path.is_file():
        raise InputMissing(f"{path}: missing; install bids_synthseg again, or name another file")
    compare_checksums(path.parent, {path.name: file_sha256(path)})
    model = load_model(path)
    check_model(path, model, task or task_of(model))
    if problem := forward_problem(model):
        raise BadData(f"{path}: {problem}; fetch it again, or train it anew")
    known = path.name in read_manifest(path.parent)
    return f"{path.name}: OK" if known else f"{path.name}: OK, with no checksum to compare"


def forward_problem(model: Model) -> str | None:
    """What is wrong with the probabilities of a phantom newborn on the model's grid, or None."""
    labels = phantom.phantom_labels(model.shape)
    image = torch.from_numpy(phantom.phantom_image(labels, "T1w").data)
    with torch.inference_mode():
        logits = model.network.eval()(network_input(image, model.intensity))
        found = model.head.probabilities(logits)
    if not found.isfinite().all():
        return "its probabilities of a phantom are not finite"
    error = float((found.sum(1) - 1).abs().max())
    if error > SUM_TOLERANCE:
        return f"its probabilities of a phantom miss a sum of 1 by {error:.2g}"
    return None
