"""What the viewer in a report shows: scans and label maps as text that a page can hold.

NiiVue gets its script and images compressed, in base64; the browser unpacks them. Where NiiVue is
not wanted, nilearn makes a page of its own, which the report frames.
"""

import base64
import gzip
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.volume import Grid, Volume, resample
from bids_synthseg.errors import UsageProblem
from bids_synthseg.nifti import new_image, write_image

MOST_VOXELS = 8_000_000
"""Of an image in a page: an adult brain of 1 mm has 5 million, and a larger one is made coarser."""


@dataclass(frozen=True, eq=False)
class View:
    """A scan of grey levels and its labels, both uint8, on one grid; `name` for people."""

    name: str
    scan: Volume
    labels: Volume

    def reduced(self) -> "View":
        """On coarser voxels, isotropic, where there are more than MOST_VOXELS."""
        grid = self.scan.grid
        if np.prod(grid.shape) <= MOST_VOXELS:
            return self
        sides_mm = np.array(grid.shape) * grid.voxel_size_mm
        voxel_mm = float((np.prod(sides_mm) / MOST_VOXELS) ** (1 / 3))
        shape = tuple(int(n) for n in np.maximum(1, sides_mm // voxel_mm))
        coarse: Grid = grid.window((np.array(grid.shape) - 1) / 2, voxel_mm, shape)
        scan = resample(self.scan, coarse)
        grey = scan.data.round().clip(0, 255).astype(np.uint8)
        return View(self.name, Volume(grey, coarse), resample(self.labels, coarse, order=0))


def niivue_views(views: list[View]) -> list[dict[str, str]]:
    """name, scan and labels of each view, images as base64 of gzipped NIfTI."""
    return [
        {
            "name": view.name,
            "scan": _nifti_base64(view.scan),
            "labels": _nifti_base64(view.labels),
        }
        for view in (one.reduced() for one in views)
    ]


@lru_cache(maxsize=1)
def niivue_script() -> str:
    """NiiVue itself, gzipped, as base64."""
    script = (files("bids_synthseg") / "data" / "viewer" / "niivue.umd.js").read_bytes()
    return base64.b64encode(gzip.compress(script, 9, mtime=0)).decode("ascii")


def niivue_license() -> str:
    """The licences that go with it."""
    return (files("bids_synthseg") / "data" / "viewer" / "LICENSE").read_text(encoding="utf-8")


def nilearn_page(view: View, table: LabelTable) -> str:
    """A page of nilearn's viewer: labels over the scan. UsageProblem where it is not installed."""
    try:
        from matplotlib.colors import ListedColormap
        from nilearn.plotting import view_img
    except ImportError as error:
        raise UsageProblem(
            "--viewer nilearn: nilearn is not installed; pip install nilearn, or use niivue"
        ) from error
    small = view.reduced()
    colours = ["#000000"] * 256
    for row in table.rows:
        if row.index < len(colours):
            colours[row.index] = row.color
    with TemporaryDirectory() as folder:
        scan = _write(small.scan, Path(folder) / "scan.nii.gz")
        labels = _write(small.labels, Path(folder) / "labels.nii.gz")
        page = view_img(
            labels, bg_img=scan, cmap=ListedColormap(colours), threshold=0.5, vmin=0, vmax=255,
            symmetric_cmap=False, resampling_interpolation="nearest", opacity=0.5, colorbar=False,
            black_bg=True, dim=0, title=view.name,
        )  # fmt: skip
        # Its page names an icon on the network.
        return re.sub(r'<link rel="(?:shortcut )?icon"[^>]*>', "", page.get_standalone())


def _nifti_base64(volume: Volume) -> str:
    with TemporaryDirectory() as folder:
        path = _write(volume, Path(folder) / "volume.nii.gz")
        return base64.b64encode(path.read_bytes()).decode("ascii")


def _write(volume: Volume, path: Path) -> Path:
    write_image(path, volume.data, new_image(volume, path), np.uint8)
    return path
