"""Labels: choosing them from scores, keeping them on disk while a volume is swept, writing the finished file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segserve.errors import BadInputError
from segserve.volumes.nifti import NiftiHeader, map_planes
from segserve.volumes.sliding import Decide
from segserve.volumes.source import Source
from segserve.volumes.unpack import CHUNK
from segserve.volumes.writers import Finished, writer_for


def label_dtype(classes: int) -> np.dtype[Any]:
    """uint8 up to 256 classes, uint16 up to 65536.

    Raises:
        BadInputError: there are more.
    """
    if classes > 2**16:
        raise BadInputError(f"The network has {classes} classes; at most 65536 fit a label map.")
    return np.dtype(np.uint8 if classes <= 2**8 else np.uint16)


def highest_class(scores: NDArray[np.float32], windows: NDArray[np.float32], out: NDArray[Any]) -> None:
    """The class of highest score, the first one where several are equal.

    Two passes over contiguous planes: many times faster than `numpy.argmax` over the first axis.

    Args:
        scores: float32 (K, A, B), summed over windows.
        windows: not needed: each class was summed over the same ones.
        out: an integer (A, B), written.
    """
    del windows
    best = scores.max(axis=0)
    out[...] = 0
    for label in range(len(scores) - 1, -1, -1):
        np.copyto(out, label, where=scores[label] == best)


def above(threshold: float, activation: str) -> Decide:
    """For a network of one class: 1 where its probability is strictly above a threshold, else 0.

    Args:
        threshold: between 0 and 1, exclusive.
        activation: `none` if the network gives probabilities, whose mean counts; else the sigmoid of its mean logit
            does, which is above the threshold where that logit is above the threshold's: ln(t / (1 - t)), 0 for 0.5.
    """
    bound = np.float32(threshold if activation == "none" else math.log(threshold / (1 - threshold)))

    def decide(scores: NDArray[np.float32], windows: NDArray[np.float32], out: NDArray[Any]) -> None:
        np.greater(scores[0], windows * bound, out=out, casting="unsafe")

    return decide


@dataclass(frozen=True)
class LabelFile:
    """The labels of a source, on disk in the source's own array order while they are being made."""

    path: Path
    source: NiftiHeader
    dtype: np.dtype[Any]

    def create(self) -> None:
        """Take the room on disk.

        Raises:
            OSError: there is none. Zeros are written for that: room that a hole in the file only promises would be
                missed later, by a signal that ends the process, when labels are stored through the mapping.
        """
        left = self.source.voxels * self.dtype.itemsize
        with self.path.open("wb") as stream:
            while left > 0:
                left -= stream.write(bytes(min(CHUNK, left)))

    def planes(self, axis: int, start: int, stop: int) -> NDArray[Any]:
        """Planes [start, stop) of an axis, mapped for writing."""
        return map_planes(self.path, self.dtype, 0, self.source.shape, axis, start, stop, "r+")


def write_labels(labels: LabelFile, source: Source, target: Path) -> None:
    """Write the finished labels: the format follows the target's ending.

    Args:
        labels: filled by the sweep, native byte order.
        source: the image they belong to.
        target: .nii.gz, .nii (both under the source's header, extensions included), .nrrd or .mha.

    Raises:
        BadInputError: the name ends in nothing known, or its format cannot tell the source's grid.
    """
    writer_for(target.name)(Finished(labels.path, labels.dtype, source), target)
