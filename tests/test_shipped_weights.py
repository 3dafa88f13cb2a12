"""The shipped weights on the phantom newborn: plausible, no more; the model card has the scores."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from bids_synthseg import phantom
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.metrics import dice
from bids_synthseg.pipeline import Options, Segmenter
from bids_synthseg.segmentation.labelling import label_volume
from bids_synthseg.segmentation.predict import segment

WEIGHTS = Path(__file__).parents[1] / "weights"
FILES = ("segmentation.safetensors", "locator.safetensors")

pytestmark = pytest.mark.skipif(
    not all((WEIGHTS / name).is_file() for name in FILES), reason="weights/*.safetensors missing"
)


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
