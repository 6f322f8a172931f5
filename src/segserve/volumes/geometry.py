"""From the file's axes to the network's and back: permutation and flips only, so every voxel stays itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from segserve.models.request import NATIVE

Affine = NDArray[np.float64]


@dataclass(frozen=True)
class AxisMap:
    """How a file's array axes (k, j, i) become a network's (z, y, x).

    Attributes:
        axes: for each network axis, the file axis it is.
        flipped: for each network axis, whether it runs against its file axis.
    """

    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]

    def to_network(self, array: NDArray[Any]) -> NDArray[Any]:
        """A view of a (k, j, i) array as the network sees it; writing to it writes to the array."""
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped)
        return array.transpose(self.axes)[steps]

    def network_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """The network's (Z, Y, X) of a file's (K, J, I)."""
        z, y, x = (shape[axis] for axis in self.axes)
        return z, y, x

    def file_range(self, axis: int, start: int, stop: int, length: int) -> tuple[int, int]:
        """The range of file planes that network planes [start, stop) of `axis` are; `length` is the axis's own."""
        return (length - stop, length - start) if self.flipped[axis] else (start, stop)


def directions(affine: Affine) -> Affine:
    """An affine's axes alone, each scaled to a largest entry of 1: no spacing, however odd, overflows then."""
    scaled = np.eye(4)
    largest = np.abs(affine[:3, :3]).max(axis=0)
    scaled[:3, :3] = affine[:3, :3] / np.where(largest > 0, largest, 1.0)
    return scaled


def axis_map(affine: Affine, orientation: str) -> AxisMap:
    """The map that turns a file's array into `orientation`.

    Args:
        affine: 4x4, voxel indices (i, j, k) to RAS millimetres. An oblique or sheared one counts as its
            nearest axis permutation (polar decomposition, as nibabel's `io_orientation`).
        orientation: the body directions to which x, y, z grow, as ITK's DICOMOrient takes them
            (`LPS` is ITK's identity), or `native` for the file's own axes.
    """
    if orientation == NATIVE:
        return AxisMap((0, 1, 2), (False, False, False))
    transform = ornt_transform(io_orientation(directions(affine)), axcodes2ornt(tuple(orientation)))
    # Row i of the transform says where file axis i goes, in (x, y, z); arrays have both triples reversed.
    axes, flipped = [0, 0, 0], [False, False, False]
    for file_axis, (target, direction) in enumerate(transform):
        axes[2 - int(target)] = 2 - file_axis
        flipped[2 - int(target)] = direction < 0
    return AxisMap((axes[0], axes[1], axes[2]), (flipped[0], flipped[1], flipped[2]))
