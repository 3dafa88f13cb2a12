"""Whether probabilities mean what they say: how often the surest label is right, by how sure it is.

The expected calibration error is that of Guo et al. 2017 (On Calibration of Modern Neural Networks,
arXiv:1706.04599), with a voxel for a sample and the label map's channels for classes.
"""

from dataclasses import dataclass

import numpy as np

N_BINS = 15

CERTAIN = 0.999
"""From this probability on a voxel is certainly background."""


@dataclass(frozen=True, eq=False)
class Reliability:
    """What a reliability diagram is drawn from, all (B,): in bin m of B, which holds confidences in
    (m / B, (m + 1) / B], the number of `voxels`, the sum of their `confidence` and how many of them
    are `correct`. Sums of two parts of an image add up to that of the whole."""

    voxels: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray

    @staticmethod
    def of_nothing(n_bins: int = N_BINS) -> "Reliability":
        """That of no voxel."""
        return Reliability(*np.zeros((3, n_bins)))

    def __add__(self, other: "Reliability") -> "Reliability":
        return Reliability(
            self.voxels + other.voxels,
            self.confidence + other.confidence,
            self.correct + other.correct,
        )

    @property
    def ece(self) -> float:
        """Expected calibration error, 0 to 1: the gap between accuracy and mean confidence of each
        bin, weighted by its voxels. NaN without voxels."""
        return _share(np.abs(self.correct - self.confidence).sum(), self.voxels.sum())

    @property
    def accuracy(self) -> float:
        """Fraction of all voxels whose surest label is right; NaN without voxels."""
        return _share(self.correct.sum(), self.voxels.sum())

    @property
    def mean_confidence(self) -> float:
        """Mean probability of the surest label; above `accuracy` for posteriors too sure."""
        return _share(self.confidence.sum(), self.voxels.sum())

    @property
    def bins(self) -> list[tuple[float, float, int, float, float]]:
        """Lower and upper limit, voxels, mean confidence and accuracy of every bin."""
        edges = np.linspace(0, 1, len(self.voxels) + 1)
        return [
            (float(low), float(high), int(n), _share(sure, n), _share(right, n))
            for low, high, n, sure, right in zip(
                edges, edges[1:], self.voxels, self.confidence, self.correct, strict=False
            )
        ]


def uncertain(posteriors: np.ndarray) -> np.ndarray:
    """(C, ...) -> (...) bool: where channel 0, background, is less than `CERTAIN`.

    Air, of which there is more than brain, would hide any error. The posteriors alone choose, and
    not the truth: a choice that knows the truth makes calibrated posteriors look wrong.
    """
    return posteriors[0] < CERTAIN


def reliability(
    posteriors: np.ndarray, truth: np.ndarray, where: np.ndarray, n_bins: int = N_BINS
) -> Reliability:
    """Confidence and correctness of posteriors (C, ...) at the voxels `where` (...) bool.

    `truth` (...): the right channel of each voxel. A tie goes to the earlier channel. Raises
    ValueError for shapes that do not fit.
    """
    if posteriors.shape[1:] != truth.shape or truth.shape != where.shape:
        raise ValueError(
            f"posteriors {posteriors.shape}, truth {truth.shape} and where {where.shape} do not fit"
        )
    chosen = posteriors[:, where]
    confidence = chosen.max(axis=0, initial=0).astype(np.float64)
    correct = chosen.argmax(axis=0) == truth[where]
    number = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    weights = (None, confidence, correct)
    return Reliability(*(np.bincount(number, one, n_bins).astype(np.float64) for one in weights))


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
