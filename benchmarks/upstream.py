"""The published server's way to segment a volume: every score of the volume kept at once, in float16."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from benchmarks.images import read_turned, write_labels

Array = npt.NDArray[np.float32]
Forward = Callable[[Array], Array]
"""A window (1, 1, Z, Y, X) to its logits (1, K, Z, Y, X)."""
ARGMAX_PLANES = 16


def onnxruntime_forward(network: Path) -> Forward:
    """A network in an ONNX Runtime session on the processor, with its default options."""
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def forward(patch: Array) -> Array:
        logits: Array = session.run(None, {name: patch})[0]
        return logits

    return forward


def segment(image: Path, target: Path, forward: Forward, *, classes: int, patch: int, stride: int) -> None:
    """Segment `image`, which is nowhere smaller than a patch, and write the labels in the network's orientation.

    Args:
        image: a volume that SimpleITK reads.
        target: the .nii.gz to write.
        forward: the network.
        classes: its output channels.
        patch: edge of its windows, in voxels.
        stride: from one window to the next.
    """
    values, turned = read_turned(image)
    scores = torch.zeros((1, classes, *values.shape), dtype=torch.float16)
    counts = torch.zeros((1, 1, *values.shape), dtype=torch.uint8)
    for z, y, x in _windows(values.shape, patch, stride):
        logits = forward(np.ascontiguousarray(values[z, y, x])[None, None])
        scores[0, :, z, y, x] += torch.from_numpy(logits[0]).to(torch.float16)
        counts[0, 0, z, y, x] += 1
    scores = scores / counts
    chunks = [chunk.argmax(1).to(torch.uint8) for chunk in scores.split(ARGMAX_PLANES, dim=2)]
    write_labels(torch.cat(chunks, dim=1)[0].numpy(), turned, target)


def _windows(shape: tuple[int, ...], patch: int, stride: int) -> Iterator[list[slice]]:
    """Windows (Z, Y, X) in steps of `stride`, z outermost; the last along an axis ends with it."""
    starts = [range(0, length - patch + stride, stride) for length in shape]
    for corner in product(*starts):
        ends = [min(start + patch, length) for start, length in zip(corner, shape, strict=True)]
        yield [slice(end - patch, end) for end in ends]
