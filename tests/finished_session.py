"""What level participant leaves of a session, made from a phantom without any network."""

from pathlib import Path

import numpy as np

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.bids.derivatives import SessionPaths, SessionWriter, Space
from bids_synthseg.nifti import read_scan
from bids_synthseg.storage import write_text

ASEG = LabelTable.default().fold("aseg")[0]
BIBTEX = """\
@article{billot2023,
  title   = {{SynthSeg}: Segmentation of brain {MRI}},
  author  = {Billot, Benjamin and Greve, Douglas N. and Puonti, Oula and others},
  journal = {Medical Image Analysis},
  year    = {2023},
  doi     = {10.1016/j.media.2023.102789},
}
"""
LOG_LINE = "2026-01-01 10:00:00,000 {} bids_synthseg.execution: {}\n"


def finish_session(
    raw: Path,
    out: Path,
    labels: np.ndarray,
    key: tuple[str, str | None] = ("01", None),
    contrasts: tuple[str, ...] = ("T1w", "T2w"),
    *,
    maps: bool = True,
    details: dict | None = None,
) -> SessionPaths:
    """Write labels (X, Y, Z) and all that goes with them, on the grids of scans that lie in `raw`
    already. maps: confidence (0.4 in the thalamus, else 1) and disagreement (in the thalamus)."""
    paths = SessionPaths(out, *key)
    writer = SessionWriter(paths, raw, config_sha256="c" * 64, weights_sha256="w" * 64)
    writer.start()
    folder = raw / paths.anat.relative_to(out)
    scans = {name: folder / f"{paths.label}_{name}.nii.gz" for name in contrasts}
    thalamus = np.isin(labels, (10, 49))
    for name, path in scans.items():
        image = read_scan(path)
        space = Space(name, image, tuple(scans.values()))
        writer.write_aseg(space, labels)
        counts = np.array([(labels == row.index).sum() for row in ASEG.rows], float)
        volumes = counts * image.volume.grid.voxel_volume_mm3
        writer.write_volumes(space, ASEG, volumes, volumes)
        if maps:
            writer.write_confidence(space, np.where(thalamus, 0.4, 1.0))
            writer.write_disagreement(space, thalamus)
            measures = {"index": [10, 49], "name": ["Left-Thalamus", "Right-Thalamus"]}
            measures |= {"predicted_dice": [0.91, None]}
            writer.write_table(space, "qc", measures, {name: {} for name in measures})
    uris = [f"bids:raw:{path.relative_to(raw).as_posix()}" for path in scans.values()]
    writer.finish("s" * 64, {"Warnings": [], "Scans": uris, "LeftOut": {}} | (details or {}))
    write_text(paths.log, LOG_LINE.format("DEBUG", "bids_synthseg 0.1.0, Python 3.11"))
    write_text(out / "logs" / "CITATION.md", "# Methods\n\nBy SynthSeg [@billot2023], it was.\n")
    write_text(out / "logs" / "CITATION.bib", BIBTEX)
    config = '[run]\ncommand = ["bids_synthseg", "in put", "out"]\nversion = "0.1.0"\n'
    write_text(out / "logs" / "config.toml", config)
    return paths
