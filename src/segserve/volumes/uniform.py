"""Windows whose voxels are all equal, such as air: their logits are computed once and used again."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


class UniformWindows:
    """The logits (K, Z, Y, X) of uniform windows by their value, the least recently used forgotten first."""

    def __init__(self, room: int) -> None:
        """Keep none yet.

        Args:
            room: how many values to know at a time, at least 1.
        """
        self._room = room
        self._known: OrderedDict[int, Logits] = OrderedDict()

    def recall(self, value: int | None) -> Logits | None:
        """What was kept for a value."""
        if value is None or value not in self._known:
            return None
        self._known.move_to_end(value)
        return self._known[value]

    def keep(self, value: int, logits: Logits) -> None:
        """Keep a copy of a window's logits."""
        while len(self._known) >= self._room:
            self._known.popitem(last=False)
        self._known[value] = logits.copy()


def uniform_value(patch: NDArray[np.float32]) -> int | None:
    """The bits of the one value that all voxels of a patch (Z, Y, X) have; None where they differ."""
    bits = patch.view(np.uint32)
    first = bits[0, 0, 0]
    # Few voxels settle it for nearly every patch that is not uniform.
    if (bits[:, -1, -1] != first).any() or (bits[bits.shape[0] // 2] != first).any() or (bits != first).any():
        return None
    return int(first)
