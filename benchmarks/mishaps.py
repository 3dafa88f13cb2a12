"""A newborn as scans should not be: Dice, verdict and a picture of each mishap.

    python benchmarks/mishaps.py BIDS_DIR PARTICIPANT OUT

The scans of a participant whose label map is in derivatives/reference are turned by 40 degrees
within their field of view, cut by a quarter, sliced at 3 mm, darkened by a strong bias field, and
left as they are. OUT/bids has them as sessions of one subject, OUT/derivatives what the App makes
of them, OUT/*.png the pictures. What a cut takes away counts as missed.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_synthseg.anatomy.volume import Volume
from bids_synthseg.bids.derivatives import SessionPaths
from bids_synthseg.bids.quality import Quality
from bids_synthseg.evaluation import evaluate, mean
from bids_synthseg.figure import write_mosaic
from bids_synthseg.nifti import new_image, read_labels, read_scan, write_image
from bids_synthseg.reading import read_object
from bids_synthseg.storage import make_folder, write_text

TURN_DEG = 40.0
SLICE_MM = 3.0
BIAS = 20.0
"""The brightest place is so many times as bright as the darkest."""

Mishap = Callable[[Volume, int], np.ndarray]
"""(volume, order of interpolation) -> (X, Y, Z); order 0 is a label map."""


def as_it_is(volume: Volume, order: int) -> np.ndarray:
    """No mishap."""
    return volume.data


def turned(volume: Volume, order: int) -> np.ndarray:
    """The head is turned about an oblique axis, the field of view stays."""
    matrix = Rotation.from_rotvec(np.radians(TURN_DEG) * np.array([0.6, 0.0, 0.8])).as_matrix()
    centre = (np.array(volume.grid.shape) - 1) / 2
    offset = centre - matrix @ centre
    return ndimage.affine_transform(volume.data, matrix, offset, order=order)


def cut(volume: Volume, order: int) -> np.ndarray:
    """A quarter of the field of view is gone: zeros, so that the reference still fits."""
    data = volume.data.copy()
    if order:
        data[:, : data.shape[1] // 4] = 0
    return data


def sliced(volume: Volume, order: int) -> np.ndarray:
    """Thick slices along the third axis, interpolated."""
    if not order:
        return volume.data
    thick = round(SLICE_MM / volume.grid.voxel_size_mm[2])
    means = ndimage.uniform_filter1d(volume.data, thick, axis=2)[:, :, thick // 2 :: thick]
    factors = (1, 1, volume.data.shape[2] / means.shape[2])
    return ndimage.zoom(means, factors, order=1)


def biased(volume: Volume, order: int) -> np.ndarray:
    """A smooth field, brightest at one corner."""
    if not order:
        return volume.data
    places = np.meshgrid(*(np.linspace(0, 1, n) for n in volume.data.shape), indexing="ij")
    return volume.data * BIAS ** (-np.mean(places, axis=0))


MISHAPS: tuple[Mishap, ...] = (as_it_is, turned, cut, sliced, biased)


def write_data(source: Path, participant: str, out: Path) -> None:
    """The data set of mishaps with its references."""
    reference = read_labels(
        source / f"derivatives/reference/sub-{participant}/anat/sub-{participant}_dseg.nii.gz"
    )
    bids, answers = out / "bids", out / "bids/derivatives/reference"
    for folder, more in ((bids, {}), (answers, {"DatasetType": "derivative"})):
        about = {"Name": "Mishaps of a newborn", "BIDSVersion": "1.10.0", **more}
        make_folder(folder)
        write_text(folder / "dataset_description.json", json.dumps(about))
    table = source / "derivatives/reference/dseg.tsv"
    write_text(answers / "dseg.tsv", table.read_text(encoding="utf-8"))
    for mishap in MISHAPS:
        session = mishap.__name__.replace("_", "")
        stem = f"sub-{participant}/ses-{session}/anat/sub-{participant}_ses-{session}"
        for contrast in ("T1w", "T2w"):
            path = source / f"sub-{participant}/anat/sub-{participant}_{contrast}.nii.gz"
            volume = read_scan(path).volume
            write(bids / f"{stem}_{contrast}.nii.gz", volume, mishap(volume, 1), np.float32)
        labels = reference.volume
        write(answers / f"{stem}_dseg.nii.gz", labels, mishap(labels, 0), np.int16)


def write(path: Path, volume: Volume, data: np.ndarray, dtype: type) -> None:
    """One image on the grid of a volume."""
    make_folder(path.parent)
    write_image(path, data, new_image(volume, path), dtype)


def main(source: Path, participant: str, out: Path) -> None:
    """Write, segment, compare."""
    write_data(source, participant, out)
    app = [sys.executable, "-m", "bids_synthseg", str(out / "bids"), str(out / "derivatives")]
    subprocess.run([*app, "participant", "--quiet", "--viewer", "none"], check=False)
    scores = evaluate(out / "derivatives", out / "bids/derivatives/reference")
    print(f"sub-{participant} of {source.name}, merged")
    print("| mishap | Dice | verdict | reasons |")
    print("|---|--:|---|---|")
    for mishap in MISHAPS:
        session = mishap.__name__.replace("_", "")
        paths = SessionPaths(out / "derivatives", participant, session)
        quality = Quality.of(read_object(paths.record).get("Quality"))
        dice = mean(s.dice for s in scores if s.session == paths.label and s.column == "merged")
        verdict = quality.verdict if quality else "failed"
        reasons = " ".join(quality.reasons) if quality else ""
        print(f"| {mishap.__name__.replace('_', ' ')} | {dice:.3f} | {verdict} | {reasons} |")
        labels = paths.file("dseg", space="T1w", desc="aseg")
        scan = out / "bids" / paths.anat.relative_to(out / "derivatives")
        if labels.is_file():
            write_mosaic(scan / f"{paths.label}_T1w.nii.gz", labels, out / f"{session}.png")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        print("not run: it takes BIDS_DIR PARTICIPANT OUT")
    else:
        main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
