"""From logits to label probabilities: which structure, and left or right, are two questions.

The last channel of a `sided` head is the logit of "left"; the others are one per structure. The
probability of a sided label is the product of both.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from bids_synthseg.anatomy.labels import LabelTable

KINDS = ("sided", "joint")


@dataclass(frozen=True)
class Head:
    """How the channels of a network answer for a label table.

    `sided`: one channel per structure and one for the side; `joint`: one per label.
    """

    table: LabelTable
    kind: str = "sided"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"head kind must be one of {KINDS}, not {self.kind!r}")

    @property
    def n_channels(self) -> int:
        """Channels the network must put out."""
        return len(self.table.structures) + 1 if self.kind == "sided" else len(self.table)

    @property
    def n_classes(self) -> int:
        """The first channels, of which one is right in every voxel."""
        return self.n_channels - (self.kind == "sided")

    @cached_property
    def structure_channels(self) -> np.ndarray:
        """(C,) the network channel that answers for each label."""
        if self.kind == "joint":
            return np.arange(len(self.table))
        return np.array([self.table.structures.index(row.structure) for row in self.table.rows])

    def split(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, n, ...) logits -> (B, S, ...) structure and (B, ...) left-side probabilities.

        A joint head has a structure per label, and every voxel of it counts as left.
        """
        if self.kind == "joint":
            return logits.softmax(1), torch.ones_like(logits[:, 0])
        return logits[:, :-1].softmax(1), logits[:, -1].sigmoid()

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, n, ...) logits -> (B, C, ...) probabilities; they sum to 1 in every voxel where
        each sided structure of the table has both its sides."""
        structures, left = self.split(logits)
        if self.kind == "joint":
            return structures
        result = structures[:, torch.from_numpy(self.structure_channels).to(logits.device)]
        for channel, row in enumerate(self.table.rows):
            if row.side != "midline":
                result[:, channel] *= left if row.side == "left" else 1 - left
        return result

    def memberships(self, sets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(K, C) label sets -> (K, S) float32, which structures (1, else 0) belong to each set
        on the left, and which on the right."""
        n = self.n_classes
        left, right = np.zeros((len(sets), n)), np.zeros((len(sets), n))
        for channel, row in enumerate(self.table.rows):
            target = self.structure_channels[channel]
            if self.kind == "joint" or row.side != "right":
                left[:, target] += sets[:, channel]
            if self.kind == "joint" or row.side != "left":
                right[:, target] += sets[:, channel]
        return left.astype(np.float32), right.astype(np.float32)
