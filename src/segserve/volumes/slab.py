"""The part of a volume whose scores are still being summed up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segserve.volumes.grid import Grid
from segserve.volumes.threads import over_planes


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
        there = (slice(a, a + logits.shape[2]), slice(b, b + logits.shape[3]))

        def add(first: int, last: int) -> None:
            for offset in range(first, last):
                place = (start + offset) % len(self.scores)
                if weights is None or self.weights is None:
                    self.scores[(place, slice(None), *there)] += logits[offset]
                else:
                    self.scores[(place, slice(None), *there)] += logits[offset] * weights[offset]
                    self.weights[(place, *there)] += weights[offset]

        over_planes(len(logits), logits.size, add)

    def clear(self, index: int) -> None:
        """Make room for another plane where plane `index` was."""
        self.scores[index % len(self.scores)] = 0
        if self.weights is not None:
            self.weights[index % len(self.scores)] = 0
