"""The part of a volume whose scores are still being summed up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segserve.volumes.grid import Grid


@dataclass
class Slab:
    """The scores of the planes not yet final: a ring of `depth` planes.

    Attributes:
        scores: float32 (depth, K, A, B), weighted sums of logits.
        weights: float32 (depth, A, B), the sums of the weights; None where windows weigh the same everywhere.
    """

    scores: NDArray[np.float32]
    weights: NDArray[np.float32] | None

    @classmethod
    def empty(cls, grid: Grid, classes: int, *, weighted: bool) -> Slab:
        """A slab of zeros for a grid."""
        first, second = grid.across
        plane = (grid.shape[first], grid.shape[second])
        weights = np.zeros((grid.depth, *plane), np.float32) if weighted else None
        return cls(np.zeros((grid.depth, classes, *plane), np.float32), weights)

    def add(
        self, start: int, corner: tuple[int, int], logits: NDArray[np.float32], weights: NDArray[np.float32] | None
    ) -> None:
        """Add one window's logits (depth, K, a, b), whose first plane is `start`, at `corner` of the cross-section.

        `weights`, (depth, a, b), multiplies them where it is given.
        """
        a, b = corner
        for offset, plane in enumerate(logits):
            place = (start + offset) % len(self.scores)
            there = (slice(a, a + plane.shape[1]), slice(b, b + plane.shape[2]))
            if weights is None or self.weights is None:
                self.scores[(place, slice(None), *there)] += plane
            else:
                self.scores[(place, slice(None), *there)] += plane * weights[offset]
                self.weights[(place, *there)] += weights[offset]

    def clear(self, index: int) -> None:
        """Make room for another plane where plane `index` was."""
        self.scores[index % len(self.scores)] = 0
        if self.weights is not None:
            self.weights[index % len(self.scores)] = 0
