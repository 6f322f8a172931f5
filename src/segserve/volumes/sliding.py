"""Sliding-window segmentation with a rolling slab: memory is one patch depth of scores, however long the volume.

Windows advance along the grid's sweep axis last. Once every window that touches a plane has been run, the plane's
scores are summed up for good: its labels are taken and its place in the slab is used for the next plane.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segserve.engines.base import Engine
from segserve.errors import BadInputError
from segserve.volumes.grid import Grid, uniform_room
from segserve.volumes.slab import Slab
from segserve.volumes.threads import over_planes
from segserve.volumes.uniform import UniformWindows, uniform_value


class Decide(Protocol):
    """Turns one plane of summed scores (K, A, B) into labels, written to `out` (A, B).

    `windows` is how many windows were summed at each voxel, (A, B), each by its weight there.
    """

    def __call__(self, scores: NDArray[np.float32], windows: NDArray[np.float32], out: NDArray[Any]) -> None:
        """Decide the labels of a plane."""
        ...


@dataclass
class _Lot:
    """Windows whose logits are added together, in order.

    Attributes:
        corners: of each window.
        sources: its logits: of a place in the batch, or already known.
        values: for each patch in the batch, the one value it consists of, if it does.
    """

    corners: list[tuple[int, int]] = field(default_factory=list)
    sources: list[int | NDArray[np.float32]] = field(default_factory=list)
    values: list[int | None] = field(default_factory=list)

    def add(self, corner: tuple[int, int], source: int | NDArray[np.float32]) -> None:
        self.corners.append(corner)
        self.sources.append(source)


ReadPlanes = Callable[[int, int], NDArray[np.float32]]
TakePlanes = Callable[[int, int], NDArray[Any]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Windows:
    """How windows are run and put together.

    Attributes:
        batch: windows the network is given at a time.
        weights: float32 (Z, Y, X) of each voxel of a window; None where all weigh the same.
        skip_uniform: whether windows of one value alone are computed once.
    """

    batch: int = 1
    weights: NDArray[np.float32] | None = None
    skip_uniform: bool = False


class Sweep:
    """One volume being segmented.

    Attributes:
        skipped: windows that needed no computing so far.
        network_seconds: that the engine took so far.
    """

    def __init__(self, engine: Engine, grid: Grid, classes: int, decide: Decide, windows: Windows) -> None:
        """Take the slab's memory.

        Args:
            engine: what runs the network.
            grid: where the windows lie.
            classes: K.
            decide: from summed scores to labels.
            windows: how they are run and put together.
        """
        self.skipped = 0
        self.network_seconds = 0.0
        self._engine = engine
        self._grid = grid
        self._decide = decide
        self._slab = Slab.empty(grid, classes, weighted=windows.weights is not None)
        self._weights = None if windows.weights is None else self._cropped(windows.weights[None])[:, 0]
        self._batch = np.zeros((windows.batch, 1, *grid.patch), np.float32)
        self._uniform = UniformWindows(uniform_room(grid)) if windows.skip_uniform else None
        self._across = grid.coverage_across()

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
        for start, final in pairwise(chain(grid.starts[grid.sweep], (grid.shape[grid.sweep],))):
            block = read(start, start + grid.depth)
            for lot in self._lots(block):
                self._run_lot(start, lot)
                done += len(lot.corners)
                progress(done, grid.patches)
            self._finish(start, final, take)

    def _lots(self, block: NDArray[np.float32]) -> Iterator[_Lot]:
        """The windows of a block in their order, cut wherever the batch is full; their patches are in the batch."""
        lot = _Lot()
        for corner in self._grid.across_starts():
            patch = self._patch(block, corner)
            value = uniform_value(patch) if self._uniform else None
            known = self._uniform.recall(value) if self._uniform else None
            if known is not None:
                lot.add(corner, known)
            elif value is not None and value in lot.values:
                lot.add(corner, lot.values.index(value))
            else:
                self._batch[len(lot.values), 0] = patch
                lot.add(corner, len(lot.values))
                lot.values.append(value)
            if len(lot.values) in {0, len(self._batch)}:
                yield lot
                lot = _Lot()
        if lot.corners:
            yield lot

    def _run_lot(self, start: int, lot: _Lot) -> None:
        # A batch that is not full keeps old patches at its end; what the network says of those is not read.
        began = time.monotonic()
        answers = self._engine(self._batch) if lot.values else self._batch
        self.network_seconds += time.monotonic() - began
        for value, logits in zip(lot.values, answers, strict=False):
            check_finite(logits)
            if self._uniform and value is not None:
                self._uniform.keep(value, logits)
        for corner, source in zip(lot.corners, lot.sources, strict=True):
            logits = answers[source] if isinstance(source, int) else source
            self._slab.add(start, corner, self._cropped(logits), self._weights)
        self.skipped += len(lot.corners) - len(lot.values)

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
        along = self._grid.coverage_along(start, final)
        slab = self._slab

        def label(first: int, last: int) -> None:
            for index in range(start + first, start + last):
                place = index % len(slab.scores)
                weights = self._across * along[index - start] if slab.weights is None else slab.weights[place]
                self._decide(slab.scores[place], weights, out[index - start])
                slab.clear(index)

        over_planes(final - start, slab.scores.size, label)


def check_finite(logits: NDArray[np.float32]) -> None:
    """Refuse what a network gives that is not a number.

    Args:
        logits: float32 (K, Z, Y, X).

    Raises:
        BadInputError: with advice.
    """
    finite = np.ones(logits.shape[1], bool)

    def look(first: int, last: int) -> None:
        part = logits[:, first:last]
        # One fast pass: the sum is finite unless something in it is not, or it overflows, which the second settles.
        with np.errstate(over="ignore", invalid="ignore"):
            total = part.sum()
        finite[first:last] = np.isfinite(total) or np.isfinite(part).all()

    over_planes(logits.shape[1], logits.size, look)
    if not finite.all():
        raise BadInputError(
            "The network gave NaN or infinite values for this volume: check window_level and window_width, "
            "or the intensities it was trained on."
        )
