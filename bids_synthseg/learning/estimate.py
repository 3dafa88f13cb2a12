"""Priors of intensity from scans and their label maps, after Infant-SynthSeg (Shang et al. 2022).

Within a scan, median and median absolute deviation, so that a few wrong voxels count for little;
between subjects, mean and SD. Voxels at the border of their label are left out where enough remain,
which the published priors do not do: they mix tissues, and the generator mixes them anyway. In
newborns this takes ventricles on T1w from 0.34 to 0.20 and their SD on T2w from 0.24 to 0.05.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from bids_synthseg.errors import InputMissing
from bids_synthseg.learning.maps import TrainingMap
from bids_synthseg.synthesis.priors import (
    CENTRE_SD_FLOOR,
    SPREAD_FLOOR,
    SPREAD_SD_FLOOR,
    Priors,
)

log = logging.getLogger(__name__)

FEWEST_VOXELS = 50
"""So few voxels of a label tell nothing of its intensities."""

MAD_TO_SD = 1.4826
"""SD of a Gaussian whose median absolute deviation is 1."""


def estimate_priors(maps: Sequence[TrainingMap]) -> dict[str, Priors]:
    """Contrast -> priors, from the scans beside the maps; sides stay apart.

    A scan is scaled to 0..1 between the 2nd and 98th percentile of its positive voxels and clipped;
    a label takes the classes that it stands for in `source.labels`. Scans of one subject count as
    one, their mean. Labels of no brain, and contrasts without a scan, are left out. Raises
    InputMissing where no map has a scan that shows more than one grey.
    """
    seen: dict[str, dict[tuple[str, str], list[np.ndarray]]] = defaultdict(dict)
    ids = np.unique(np.concatenate([one.source.labels for one in maps])) if maps else np.zeros(0)
    ids = ids[ids > 0]
    for one in maps:
        source = one.source
        label_of = source.labels[source.classes.cpu().numpy()]
        for contrast, image in zip(source.contrasts, source.images, strict=True):
            scan = image.cpu().numpy().astype(np.float32)
            values = scan_statistics(scan, label_of, ids)
            if np.isnan(values).all():
                log.warning("%s: its %s tells nothing of any label; left out", one.name, contrast)
                continue
            seen[contrast].setdefault((one.dataset, one.subject), []).append(values)
    if not seen:
        raise InputMissing(
            "no T1w or T2w scan beside the label maps to estimate priors from; put "
            "sub-*_T1w.nii.gz or sub-*_T2w.nii.gz, on the map's grid, beside sub-*_dseg.nii.gz"
        )
    return {
        contrast: _between([_mean(scans) for scans in subjects.values()], contrast, ids)
        for contrast, subjects in sorted(seen.items())
    }


def scan_statistics(scan: np.ndarray, label_of: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """(2, L) median and robust SD of labels (L,) in a scan (X, Y, Z) with labels (X, Y, Z).

    Of voxels whose six neighbours have the same label, or of all where these are fewer than
    FEWEST_VOXELS. NaN for a label of fewer positive voxels than that, all NaN for a scan of one
    grey.
    """
    result = np.full((2, len(ids)), np.nan)
    positive = scan > 0
    if not positive.any():
        return result
    low, high = np.percentile(scan[positive], (2, 98))
    if high <= low:
        return result
    wanted = positive & (label_of > 0)
    values = np.clip((scan[wanted] - low) / (high - low), 0, 1)
    inner = _interior(label_of)[wanted]
    order = np.argsort(label_of[wanted], kind="stable")
    labels = label_of[wanted][order]
    first, last = (np.searchsorted(labels, ids, side) for side in ("left", "right"))
    for number, (start, stop) in enumerate(zip(first, last, strict=True)):
        own = order[start:stop]
        if inner[own].sum() >= FEWEST_VOXELS:
            own = own[inner[own]]
        if len(own) >= FEWEST_VOXELS:
            centre = np.median(values[own])
            result[:, number] = centre, MAD_TO_SD * np.median(np.abs(values[own] - centre))
    return result


def _interior(label_of: np.ndarray) -> np.ndarray:
    """(X, Y, Z) bool: the six neighbours have the same label; those off the grid do not count."""
    same = np.ones(label_of.shape, dtype=bool)
    for axis in range(3):
        differ = np.moveaxis(np.diff(label_of, axis=axis) != 0, axis, 0)
        along = np.moveaxis(same, axis, 0)
        along[:-1] &= ~differ
        along[1:] &= ~differ
    return same


def _mean(several: list[np.ndarray]) -> np.ndarray:
    """Mean of arrays of one shape, over those that are not NaN; NaN where all are."""
    stacked = np.stack(several)
    count = np.isfinite(stacked).sum(axis=0)
    return np.where(count, np.nansum(stacked, axis=0) / np.maximum(count, 1), np.nan)


def _between(subjects: list[np.ndarray], contrast: str, ids: np.ndarray) -> Priors:
    """Mean and population SD over subjects, of the labels that any of them has."""
    mean = _mean(subjects)
    sd = np.sqrt(_mean([(one - mean) ** 2 for one in subjects]))
    has = np.isfinite(mean[0])
    return Priors(
        contrast=contrast,
        labels=ids[has],
        centre_mean=mean[0, has],
        centre_sd=np.maximum(sd[0, has], CENTRE_SD_FLOOR),
        spread_mean=np.maximum(mean[1, has], SPREAD_FLOOR),
        spread_sd=np.maximum(sd[1, has], SPREAD_SD_FLOOR),
        subjects=np.isfinite(np.stack(subjects)[:, 0, has]).sum(axis=0),
    )
