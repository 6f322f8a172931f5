"""Where the windows lie, and which way they sweep."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, product

import numpy as np
from numpy.typing import NDArray

from segserve.models.request import Axes

FLOAT_BYTES = 4


@dataclass(frozen=True)
class WindowStarts:
    """Where windows begin along an axis; the last one is shifted inward to end with the axis.

    Ascending, distinct; only 0 for an axis not longer than the patch. None is kept: there may be 2^31 of them.

    Attributes:
        length: of the axis, in voxels.
        patch: of the window, in voxels.
        stride: from one window to the next, 1 to `patch`.
    """

    length: int
    patch: int
    stride: int

    @property
    def _last(self) -> int:
        return max(self.length - self.patch, 0)

    @property
    def _unshifted(self) -> range:
        return range(0, self._last, self.stride)

    def __len__(self) -> int:
        """How many windows there are."""
        return len(self._unshifted) + 1

    def __iter__(self) -> Iterator[int]:
        """Each start."""
        return chain(self._unshifted, (self._last,))

    def coverage(self, begin: int, end: int) -> NDArray[np.float32]:
        """How many windows cover each of the positions [begin, end)."""
        positions = np.arange(begin, end)
        first = np.maximum((positions - self.patch) // self.stride + 1, 0)
        last = np.minimum(positions // self.stride, len(self._unshifted) - 1)
        return np.asarray(np.maximum(last - first + 1, 0) + (positions >= self._last), np.float32)


@dataclass(frozen=True)
class Grid:
    """The windows over one volume. All triples are (Z, Y, X) in voxels.

    Attributes:
        shape: the volume.
        patch: the window.
        stride: from one window to the next.
        sweep: the axis along which the windows advance last, so that only one patch depth of scores is kept.
    """

    shape: Axes
    patch: Axes
    stride: Axes
    sweep: int

    @cached_property
    def starts(self) -> tuple[WindowStarts, WindowStarts, WindowStarts]:
        """Window starts of each axis."""
        z, y, x = (WindowStarts(*axis) for axis in zip(self.shape, self.patch, self.stride, strict=True))
        return z, y, x

    @property
    def across(self) -> tuple[int, int]:
        """The two axes that are not swept."""
        first, second = (axis for axis in range(3) if axis != self.sweep)
        return first, second

    @property
    def depth(self) -> int:
        """Planes of scores kept at a time."""
        return min(self.patch[self.sweep], self.shape[self.sweep])

    @property
    def patches(self) -> int:
        """How many windows there are."""
        return math.prod(len(starts) for starts in self.starts)

    def across_starts(self) -> Iterator[tuple[int, int]]:
        """The windows' starts in the plane that is not swept."""
        first, second = self.across
        return product(self.starts[first], self.starts[second])

    def coverage_across(self) -> NDArray[np.float32]:
        """How many windows at one position of the sweep cover each voxel of a plane."""
        first, second = (self.starts[axis].coverage(0, self.shape[axis]) for axis in self.across)
        return np.outer(first, second)

    def coverage_along(self, begin: int, end: int) -> NDArray[np.float32]:
        """How many positions of the sweep cover each of the planes [begin, end)."""
        return self.starts[self.sweep].coverage(begin, end)

    def plane_voxels(self) -> int:
        """Voxels of the cross-section."""
        first, second = self.across
        return self.shape[first] * self.shape[second]

    def slab_voxels(self) -> int:
        """Voxels of one patch depth of the whole cross-section."""
        return self.depth * self.plane_voxels()


def choose_grid(shape: Axes, patch: Axes, stride: Axes, *, slowest: int) -> Grid:
    """The grid whose sweep keeps the fewest scores.

    Args:
        shape: of the volume, (Z, Y, X).
        patch: of the windows.
        stride: from one window to the next.
        slowest: the axis along which the file lies; it wins where others are no better, since sweeping it
            reads the file from front to back.
    """
    grids = [Grid(shape, patch, stride, axis) for axis in (slowest, *(a for a in range(3) if a != slowest))]
    return min(grids, key=Grid.slab_voxels)


def uniform_room(grid: Grid) -> int:
    """How many whole windows of scores may be kept beside the slab: an eighth of it, but one at least."""
    return max(1, grid.slab_voxels() // (8 * math.prod(grid.patch)))
