"""Training maps in other terms: brain against everything else."""

import numpy as np
from training_samples import ball_map

from bids_synthseg.learning.maps import BRAIN_TABLE, of_brain
from bids_synthseg.synthesis import head


def test_brain_is_what_cannot_be_background():
    one = ball_map()
    one.sets[0, 24] = True  # "background or fluid"
    (brain,) = of_brain([one])
    assert brain.sets.shape == (6 + head.N_CLASSES, len(BRAIN_TABLE))
    np.testing.assert_array_equal(brain.sets[:6, 0], [True] + 5 * [False])
    np.testing.assert_array_equal(brain.sets[:6, 1], 6 * [True])
    painted = brain.sets[6:]
    assert painted[head.CSF].tolist() == [False, True]
    assert (np.delete(painted, head.CSF, axis=0) == [True, False]).all()
    assert brain.source is one.source and brain.name == one.name
