"""Fluid near the brain belongs to it, fluid down the spine does not."""

import numpy as np

from bids_synthseg.anatomy.extent import without_far_fluid


def column(**parts: slice) -> tuple[np.ndarray, np.ndarray]:
    """Brain and fluid in a volume of 5 x 5 x 100; each part is a stretch of the last axis."""
    brain, fluid = np.zeros((2, 5, 5, 100), dtype=bool)
    for name, stretch in parts.items():
        brain[1:4, 1:4, stretch] = True
        if name.startswith("fluid"):
            fluid[1:4, 1:4, stretch] = True
    return brain, fluid


def reach(mask: np.ndarray) -> tuple[int, int]:
    places = np.flatnonzero(mask.any(axis=(0, 1)))
    return int(places[0]), int(places[-1])


def test_fluid_down_the_spine_is_cut_off():
    brain, fluid = column(fluid_below=slice(0, 50), tissue=slice(50, 90))
    assert reach(without_far_fluid(brain, fluid)) == (46, 89)  # a tenth of 40 below 50


def test_fluid_around_the_brain_stays():
    brain, fluid = column(
        fluid_below=slice(47, 50), tissue=slice(50, 90), fluid_above=slice(90, 93)
    )
    assert reach(without_far_fluid(brain, fluid)) == (47, 92)


def test_a_stray_piece_of_tissue_does_not_stretch_the_reach():
    brain, fluid = column(fluid_below=slice(10, 50), tissue=slice(50, 90), stray=slice(2, 4))
    assert reach(without_far_fluid(brain, fluid)) == (46, 89)


def test_fluid_alone_and_nothing_stay_as_they_are():
    brain, fluid = column(fluid_only=slice(20, 30))
    assert (without_far_fluid(brain, fluid) == brain).all()
    assert not without_far_fluid(*column()).any()
