"""How far a brain reaches: the fluid around it counts, what runs on down the spine does not."""

import numpy as np

from bids_synthseg.anatomy.islands import largest_component

FLUID_MARGIN = 0.1
"""Fluid farther from the box of the tissue than this fraction of its sides is not the brain's."""


def without_far_fluid(brain: np.ndarray, fluid: np.ndarray) -> np.ndarray:
    """(X, Y, Z) bool: the part of `brain` near the box of its largest piece of tissue.

    `brain`, `fluid` (X, Y, Z) bool: all of the brain, and what of it is fluid. Some label maps and
    scans show the fluid of the spinal canal; the box of a brain must not depend on whether they do.
    A mask of fluid alone is returned as it is.
    """
    tissue = largest_component(brain & ~fluid)
    if not tissue.any():
        return brain
    near = np.zeros_like(brain)
    near[tuple(_reach(tissue.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))] = True
    return brain & near


def _reach(occupied: np.ndarray) -> slice:
    """The indices along one axis (N,) bool, from first to last and a margin beyond."""
    places = np.flatnonzero(occupied)
    margin = FLUID_MARGIN * (places[-1] - places[0] + 1)
    return slice(max(0, int(places[0] - margin)), int(places[-1] + margin) + 2)
