"""What a report shows of one space: the scan, its labels, maps and tables, read from files."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_synthseg.anatomy.volume import Volume
from bids_synthseg.bids.derivatives import SessionPaths
from bids_synthseg.bids.provenance import resolve_uri
from bids_synthseg.bids.report_figures import (
    Crop,
    Sheet,
    draw_disagreement,
    draw_doubt,
    draw_outlines,
    grey_levels,
)
from bids_synthseg.bids.report_viewer import View
from bids_synthseg.errors import BadData
from bids_synthseg.nifti import Image, read_labels, read_scan
from bids_synthseg.reading import read_object
from bids_synthseg.tsv import NOT_AVAILABLE, read_rows

logger = logging.getLogger(__name__)

SHOWN_MEASURES = {
    "predicted_dice": ("predicted Dice", "%.2f"),
    "agreement_dice": ("T1w/T2w Dice", "%.2f"),
    "mirror_dice": ("mirror Dice", "%.2f"),
    "entropy": ("entropy", "%.3f"),
    "islands_mm3": ("islands, mm³", "%.0f"),
}
"""Columns of desc-qc_volumes.tsv that are shown: heading and format."""


@dataclass(frozen=True, eq=False)
class SpaceReport:
    """One space. source: name of the scan that its grid is of; sources: all scans that decided.

    voxel_mm, matrix: of that grid, in words; names, volumes_ml: of every label; measures: label ->
    those of SHOWN_MEASURES, {} where nothing was measured; doubt, disagreement: None without a map;
    maps_like: the earlier space that has the very same maps, "" where there is none.
    """

    contrast: str
    source: str
    sources: tuple[str, ...]
    manual: bool
    voxel_mm: str
    matrix: str
    outlines: Sheet
    doubt: Sheet | None
    disagreement: Sheet | None
    maps_like: str
    maps: tuple[bytes, ...]
    view: View
    names: dict[int, str]
    volumes_ml: dict[int, float]
    measures: dict[int, dict[str, float | None]]
    checksums: dict[str, str]

    @property
    def brain_ml(self) -> float:
        """All structures together."""
        return sum(self.volumes_ml.values())


@dataclass(frozen=True)
class Structure:
    """A row of the table: `volumes_ml` of each space, None where it lacks this label; `share` of
    the brain in the first space; `measures` by the names of SHOWN_MEASURES."""

    index: int
    name: str
    volumes_ml: tuple[float | None, ...]
    share: float | None
    measures: dict[str, float | None]


def read_space(
    paths: SessionPaths,
    contrast: str,
    bids_dir: Path,
    links: Mapping[str, Path],
    earlier: Sequence[SpaceReport] = (),
) -> SpaceReport:
    """Raises InputMissing or BadData where labels, their sidecar, or the scan cannot be read."""
    path = paths.file("dseg", space=contrast, desc="aseg")
    labels = read_labels(path).volume
    sidecar = read_object(path.with_name(path.name.removesuffix(".nii.gz") + ".json"))
    uri = sidecar.get("SpatialReference")
    if not isinstance(uri, str):
        raise BadData(f"{path}: its JSON names no SpatialReference; run the session again")
    scan_path = resolve_uri(uri, bids_dir, paths.output_dir, links)
    scan = read_scan(scan_path).volume
    if not scan.grid.same_as(labels.grid):
        raise BadData(f"{path}: lies on another grid than {scan_path}; run the session again")
    try:
        crop = Crop.around(labels)
    except BadData as problem:
        raise BadData(f"{path}: {problem}") from problem
    small = crop.of(labels)
    grey = grey_levels(crop.of(scan).data, small.data)
    doubt = _map(paths.file("probseg", space=contrast, desc="confidence"), read_scan, labels, crop)
    differ = _map(
        paths.file("mask", space=contrast, desc="disagreement"), read_labels, labels, crop
    )
    volumes = _volumes(paths.file("volumes", ".tsv", space=contrast, desc="aseg"))
    # Contrasts on one grid share one segmentation, and so its maps: once is enough.
    maps = tuple(one.tobytes() for one in (doubt, differ) if one is not None)
    alike = next((space.contrast for space in earlier if maps and space.maps == maps), "")
    return SpaceReport(
        contrast=contrast,
        source=scan_path.name,
        sources=_sources(path, sidecar.get("Sources")),
        manual=bool(sidecar.get("Manual")),
        voxel_mm=" x ".join(f"{side:.3g}" for side in scan.grid.voxel_size_mm),
        matrix=" x ".join(map(str, scan.grid.shape)),
        outlines=draw_outlines(grey, small),
        doubt=None if doubt is None or alike else draw_doubt(grey, small, doubt),
        disagreement=None
        if differ is None or alike
        else draw_disagreement(grey, small, differ != 0),
        maps_like=alike,
        maps=maps,
        view=View(
            contrast,
            Volume(grey, small.grid),
            Volume(small.data.astype(np.uint8), small.grid),
        ),
        names={index: name for index, (name, _) in volumes.items()},
        volumes_ml={index: ml for index, (_, ml) in volumes.items()},
        measures=_measures(paths.file("volumes", ".tsv", space=contrast, desc="qc")),
        checksums={
            name: str(sidecar[name])
            for name in ("WeightsSHA256", "ConfigSHA256")
            if name in sidecar
        },
    )


def _sources(path: Path, listed: object) -> tuple[str, ...]:
    """Names of the files that a sidecar lists; none, with a warning, where it holds no list."""
    if not isinstance(listed, list | None):
        logger.warning("%s: Sources in its JSON is no list; it counts as absent", path)
    names = listed if isinstance(listed, list) else []
    return tuple(str(name).rpartition("/")[2] for name in names)


def structures(spaces: Sequence[SpaceReport]) -> list[Structure]:
    """One row per label of any space, measures from the first space that has some."""
    names = {index: name for space in spaces for index, name in space.names.items()}
    measures = next((space.measures for space in spaces if space.measures), {})
    return [
        Structure(
            index=index,
            name=names[index],
            volumes_ml=tuple(space.volumes_ml.get(index) for space in spaces),
            share=_share(spaces[0], index),
            measures=measures.get(index, dict.fromkeys(SHOWN_MEASURES)),
        )
        for index in sorted(names)
    ]


def _share(space: SpaceReport, index: int) -> float | None:
    volume_ml, brain_ml = space.volumes_ml.get(index), space.brain_ml
    return volume_ml / brain_ml if volume_ml is not None and brain_ml else None


def _volumes(path: Path) -> dict[int, tuple[str, float]]:
    """Label -> name and volume in ml."""
    try:
        return {
            int(row["index"]): (row["name"], float(row["volume_mm3"]) / 1000)
            for row in read_rows(path, "index", "name", "volume_mm3")
        }
    except ValueError as error:
        raise BadData(f"{path}: not a table of volumes ({error}); mend it") from error


def _measures(path: Path) -> dict[int, dict[str, float | None]]:
    """Label -> value of each of SHOWN_MEASURES, None where it is missing."""
    try:
        return {
            int(row["index"]): {key: _number(row.get(key)) for key in SHOWN_MEASURES}
            for row in read_rows(path, "index")
        }
    except ValueError as error:
        raise BadData(f"{path}: not a table of measures ({error}); mend it") from error


def _map(
    path: Path, read: Callable[[Path], Image], labels: Volume, crop: Crop
) -> np.ndarray | None:
    """A map on the grid of the labels, cropped; None where there is none, as in older outputs."""
    if not path.is_file():
        return None
    volume = read(path).volume
    if not volume.grid.same_as(labels.grid):
        raise BadData(f"{path}: lies on another grid than the labels; run the session again")
    return crop.of(volume).data


def _number(text: str | None) -> float | None:
    return None if text is None or text in NOT_AVAILABLE else float(text)
