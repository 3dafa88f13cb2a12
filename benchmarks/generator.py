"""Synthetic images per second at 128^3: the generator against a plain affine-only sampling.

python benchmarks/generator.py [VOLUMES]
"""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import torch

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.learning.datasets import load_dataset
from bids_synthseg.phantom import phantom_labels
from bids_synthseg.synthesis.deformation import nearest_index, sampling_coordinates
from bids_synthseg.synthesis.recipe import SynthesisConfig, draw, render

SHAPE = (128, 128, 128)


def phantom_map():
    """A newborn phantom, read back the way training reads any label map."""
    labels = phantom_labels()
    table = LabelTable.default()
    with TemporaryDirectory() as folder:
        anat = Path(folder) / "sub-phantom" / "anat"
        anat.mkdir(parents=True)
        image = nib.Nifti1Image(labels.data.astype(np.int16), labels.grid.affine)
        image.to_filename(anat / "sub-phantom_dseg.nii.gz")
        rows = "".join(f"{row.index}\t{row.name}\t{row.index}\n" for row in table.rows)
        (Path(folder) / "dseg.tsv").write_text("index\tname\tmodel_labels\n" + rows)
        return load_dataset(Path(folder), table)[0]


def main(volumes: int) -> None:
    """Time both, print the table."""
    source = phantom_map().source
    config = SynthesisConfig()
    drawn = [draw(source, config, SHAPE, 0.9, np.random.default_rng(k)) for k in range(volumes)]
    render(source, drawn[0])

    start = time.perf_counter()
    for k in range(volumes):
        render(source, draw(source, config, SHAPE, 0.9, np.random.default_rng(k)))
    full = (time.perf_counter() - start) / volumes

    start = time.perf_counter()
    for one in drawn:
        affine = torch.from_numpy(one.affine).float()
        coordinates = sampling_coordinates(affine, torch.zeros(3, 2, 2, 2), SHAPE)
        index = nearest_index(coordinates, source.classes.shape).clamp(min=0).long()
        torch.from_numpy(one.means)[source.classes.reshape(-1)[index].long()]
    bare = (time.perf_counter() - start) / volumes

    print(f"Generator, 128^3, {torch.get_num_threads()} threads, {volumes} volumes")
    print("step\tseconds per volume\tvolumes per second\tagainst bare sampling")
    print(f"affine sampling and means only\t{bare:.3f}\t{1 / bare:.2f}\t1.0")
    print(f"all effects\t{full:.3f}\t{1 / full:.2f}\t{full / bare:.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 12)
