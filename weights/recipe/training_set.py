"""Lay out the label maps that the shipped weights were trained on.

    python weights/recipe/training_set.py LABELS TRAINING_SET

LABELS holds one BIDS folder per source. Folders are copied as they are but for
`infant-templates`: its newborns' scans lie in `sourcescans/` on a smaller grid, of which the maps
are a centred padding. They are padded alike (checked by overlap, since the headers do not say so),
set beside the maps, and the part of the brain mask that the map leaves empty becomes CSF (24).

The youngest map of `lifespan-brainparc`, the output of another network, becomes a data set of its
own, in which structures that are not to be trusted may be their neighbours as well.
"""

import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

CSF = 24

DISTRUSTED = {
    "7": "7 8", "46": "46 47", "26": "26 11 12 2", "58": "58 50 51 41", "28": "28 2 10 13 16",
    "60": "60 41 49 52 16", "31": "4 2", "63": "43 41",
}  # fmt: skip
"""Labels of the youngest map -> what they may be."""


def padded(scan: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`scan` in the middle of zeros of `shape`."""
    before = [(n - m) // 2 for n, m in zip(shape, scan.shape, strict=True)]
    after = [n - m - b for n, m, b in zip(shape, scan.shape, before, strict=True)]
    return np.pad(scan, list(zip(before, after, strict=True)))


def best_padding(scan: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The centred padding, to the voxel, that covers the labelled brain best."""
    centred = padded(scan, labels.shape)
    shifts = [(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)]
    brain = labels > 0
    cover = {s: (np.roll(centred, s, (0, 1, 2)) > 0)[brain].mean() for s in shifts}
    shift = max(cover, key=cover.get)
    if cover[shift] < 0.97:
        raise SystemExit(f"scan and map do not fit: only {cover[shift]:.3f} of the map is covered")
    return np.roll(centred, shift, (0, 1, 2))


def prepare_newborn(map_path: Path, scans: list[Path]) -> None:
    """Put the scans on the grid of the map at `map_path` and complete the map with CSF."""
    image = nib.load(map_path)
    labels = np.asanyarray(image.dataobj).copy()
    mask = np.ones(labels.shape, dtype=bool)
    for scan in scans:
        data = best_padding(np.asanyarray(nib.load(scan).dataobj), labels)
        mask &= data > 0
        nib.save(nib.Nifti1Image(data, image.affine), map_path.parent / scan.name)
    mask = ndimage.binary_fill_holes(mask)
    labels[mask & (labels == 0)] = CSF
    nib.save(nib.Nifti1Image(labels, image.affine), map_path)
    print(map_path.name, "CSF", int((labels == CSF).sum()), "of", int((labels > 0).sum()), "voxels")


def split_infantile(source: Path) -> None:
    """Move sub-infantile of `source` to a data set beside it, with sets for what is distrusted."""
    own = source.parent / "lifespan-infantile"
    own.mkdir()
    shutil.move(source / "sub-infantile", own)
    shutil.copy(source / "dataset_description.json", own)
    lines = (source / "dseg.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    rows = [[*row[:2], DISTRUSTED.get(row[0], row[2])] for row in rows]
    text = "\n".join("\t".join(row) for row in rows) + "\n"
    (own / "dseg.tsv").write_text(text, encoding="utf-8")


def main(labels: Path, out: Path) -> None:
    """Copy every source, complete the newborns, set the distrusted map apart."""
    for source in sorted(path for path in labels.iterdir() if path.is_dir()):
        shutil.copytree(source, out / source.name, ignore=shutil.ignore_patterns("sourcescans"))
        for folder in (out / source.name, *(out / source.name).iterdir()):
            folder.chmod(folder.stat().st_mode | 0o200)
    newborns = sorted((labels / "infant-templates" / "sourcescans").glob("sub-*"))
    for subject in newborns:
        anat = out / "infant-templates" / subject.name / "anat"
        for file in anat.iterdir():
            file.chmod(0o644)
        anat.chmod(0o755)
        scans = sorted((subject / "anat").glob("*_T[12]w.nii.gz"))
        prepare_newborn(anat / f"{subject.name}_dseg.nii.gz", scans)
    split_infantile(out / "lifespan-brainparc")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
