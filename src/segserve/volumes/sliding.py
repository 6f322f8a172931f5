"""Sliding-window segmentation with a rolling slab: memory is one patch depth of scores, however long the volume.

Windows advance along the grid's sweep axis last. Once every window that touches a plane has been run, the plane's
scores are summed up for good: its labels are taken and its place in the slab is used for the next plane.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segserve.engines.base import Engine
from segserve.errors import BadInputError
from segserve.volumes.grid import Grid


class Decide(Protocol):
    """Turns one plane of summed scores (K, A, B) into labels, written to `out` (A, B).

    `windows` is how many windows were summed at each voxel, (A, B).
    """

    def __call__(self, scores: NDArray[np.float32], windows: NDArray[np.float32], out: NDArray[Any]) -> None:
        """Decide the labels of a plane."""
        ...


ReadPlanes = Callable[[int, int], NDArray[np.float32]]
TakePlanes = Callable[[int, int], NDArray[Any]]
Progress = Callable[[int, int], None]


@dataclass
class Slab:
    """The scores of the planes not yet final: a ring of `depth` planes, each (K, A, B) float32 sums."""

    scores: NDArray[np.float32]

    @classmethod
    def empty(cls, grid: Grid, classes: int) -> Slab:
        """A slab of zeros for a grid."""
        first, second = grid.across
        return cls(np.zeros((grid.depth, classes, grid.shape[first], grid.shape[second]), np.float32))

    def plane(self, index: int) -> NDArray[np.float32]:
        """The sums of plane `index` of the sweep axis."""
        plane: NDArray[np.float32] = self.scores[index % len(self.scores)]
        return plane

    def add(self, start: int, corner: tuple[int, int], logits: NDArray[np.float32]) -> None:
        """Add one window's logits (depth, K, a, b), whose first plane is `start`, at `corner` of the cross-section."""
        a, b = corner
        for offset, plane in enumerate(logits):
            self.plane(start + offset)[:, a : a + plane.shape[1], b : b + plane.shape[2]] += plane


class Sweep:
    """One volume being segmented."""

    def __init__(self, engine: Engine, grid: Grid, classes: int, decide: Decide) -> None:
        """Take the slab's memory.

        Args:
            engine: loaded for (batch, 1, *grid.patch).
            grid: the windows.
            classes: K.
            decide: from summed scores to labels.
        """
        first, second = grid.across
        self._engine = engine
        self._grid = grid
        self._decide = decide
        self._slab = Slab.empty(grid, classes)
        self._batch = np.zeros(engine.input_shape, np.float32)
        self._along = grid.coverage(grid.sweep)
        self._across = np.outer(grid.coverage(first), grid.coverage(second))

    def run(self, read: ReadPlanes, take: TakePlanes, progress: Progress) -> None:
        """Segment the volume.

        Args:
            read: the intensities (Z, Y, X) of planes [start, stop) of the sweep axis.
            take: the array (n, A, B) that receives the labels of planes [start, stop) of the sweep axis.
            progress: told (patches done, patches in all) after each batch; may raise to stop.

        Raises:
            BadInputError: the network gave NaN or infinity.
        """
        grid, done = self._grid, 0
        starts = grid.starts[grid.sweep]
        corners = list(grid.across_starts())
        for start, final in zip(starts, [*starts[1:], grid.shape[grid.sweep]], strict=True):
            block = read(start, start + grid.depth)
            for first in range(0, len(corners), len(self._batch)):
                some = corners[first : first + len(self._batch)]
                self._add_batch(block, start, some)
                done += len(some)
                progress(done, grid.patches)
            self._finish(start, final, take)

    def _add_batch(self, block: NDArray[np.float32], start: int, corners: Sequence[tuple[int, int]]) -> None:
        # A batch that is not full keeps old patches at its end; what the network says of those is not read.
        for index, corner in enumerate(corners):
            self._batch[index, 0] = self._patch(block, corner)
        for logits, corner in zip(self._engine(self._batch), corners, strict=False):
            check_finite(logits)
            self._slab.add(start, corner, self._cropped(logits))

    def _patch(self, block: NDArray[np.float32], corner: tuple[int, int]) -> NDArray[np.float32]:
        """The patch (Z, Y, X) at a corner of a block, its edge voxels repeated where the volume is smaller."""
        chosen: list[slice] = [slice(None)] * 3
        for axis, begin in zip(self._grid.across, corner, strict=True):
            chosen[axis] = slice(begin, begin + self._grid.patch[axis])
        patch = block[tuple(chosen)]
        missing = [size - length for size, length in zip(self._grid.patch, patch.shape, strict=True)]
        return np.pad(patch, [(gap // 2, gap - gap // 2) for gap in missing], mode="edge") if any(missing) else patch

    def _cropped(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (K, Z, Y, X) without the padding, as (sweep, K, across)."""
        inside: list[slice] = [slice(None)]
        for size, length in zip(self._grid.patch, self._grid.shape, strict=True):
            front = max(size - length, 0) // 2
            inside.append(slice(front, front + min(size, length)))
        first, second = self._grid.across
        return logits[tuple(inside)].transpose(self._grid.sweep + 1, 0, first + 1, second + 1)

    def _finish(self, start: int, final: int, take: TakePlanes) -> None:
        """Label planes [start, final), which no further window touches, and make room for the next."""
        out = take(start, final)
        for index in range(start, final):
            scores = self._slab.plane(index)
            self._decide(scores, self._across * self._along[index], out[index - start])
            scores[...] = 0


def check_finite(logits: NDArray[np.float32]) -> None:
    """Refuse what a network gives that is not a number.

    Raises:
        BadInputError: with advice.
    """
    # One fast pass: the sum is finite unless something in it is not, or it overflows, which the second pass settles.
    with np.errstate(over="ignore", invalid="ignore"):
        total = logits.sum()
    if not np.isfinite(total) and not np.isfinite(logits).all():
        raise BadInputError(
            "The network gave NaN or infinite values for this volume: check window_level and window_width, "
            "or the intensities it was trained on."
        )
