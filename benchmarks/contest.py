"""Everybody who segments a volume, on one network: warmed up, compared, and timed in turn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import monai_window, upstream
from benchmarks.images import turned_labels, write_volume
from benchmarks.networks import UNet
from benchmarks.others import Other
from benchmarks.ours import Ours
from benchmarks.timing import in_turn, seconds
from segserve.volumes.grid import WindowStarts
from tests.serving import Served

CLASSES = 14
BOUND, OURS, UPSTREAM, MONAI = "the engine alone", "ours", "upstream's algorithm", "MONAI with torch"
FP16 = ", fp16: true"
LEAST_ALIKE = 0.99
"""Float32 contenders that agree in a smaller share of labels than this do not compute the same thing."""


@dataclass(frozen=True)
class Size:
    """How large a contest is.

    Attributes:
        width: of the U-Net.
        patch, stride: in voxels.
        shape: of the volume, (Z, Y, X).
        small: of the volume on which all contenders are warmed up and compared.
        sample: patches that the engine alone is given.
        every: step of the windows that upstream and MONAI run.
        rounds: how often everything is measured.
    """

    width: int
    patch: int
    stride: int
    shape: tuple[int, int, int]
    small: tuple[int, int, int]
    sample: int
    every: int
    rounds: int

    @property
    def patches(self) -> int:
        """Windows of the volume."""
        return math.prod(len(WindowStarts(length, self.patch, self.stride)) for length in self.shape)


class Contest:
    """Ours in float32 and as `fp16` permits, upstream's algorithm, and MONAI."""

    def __init__(self, size: Size, network: UNet, path: Path, server: Served) -> None:
        """Load the network, as it is and as the ONNX file at `path`, everywhere."""
        patch, stride = size.patch, size.stride
        self._size = size
        self.exact = Ours.load(server, path, fp16=False, stride=stride)
        self.reduced = Ours.load(server, path, fp16=True, stride=stride)
        self._upstream = Other(
            partial(upstream.segment, classes=CLASSES, patch=patch, stride=stride), upstream.onnxruntime_forward(path)
        )
        self._monai = Other[torch.Tensor](partial(monai_window.segment, patch=patch, stride=stride), network)

    def warm_up(self, work: Path) -> dict[str, float]:
        """Let everybody segment a small volume.

        Returns:
            By contender, the share of its labels that are as ours in float32.
        """
        image = write_volume(work / "small.nii.gz", self._size.small)
        for ours in (self.exact, self.reduced):
            ours.engine_seconds(1)  # the first patch takes longer
        expected = _labels(self.exact.segment, image)
        programs = {OURS + FP16: self.reduced.segment, UPSTREAM: self._upstream.segment, MONAI: self._monai.segment}
        alike = {name: float((_labels(program, image) == expected).mean()) for name, program in programs.items()}
        assert min(alike[UPSTREAM], alike[MONAI]) >= LEAST_ALIKE, alike
        return alike

    def race(self, work: Path) -> dict[str, float]:
        """Measure everybody in turn; the median seconds for a volume."""
        size, image = self._size, write_volume(work / "image.nii.gz", self._size.shape)
        target = image.with_name("labels.nii.gz")

        def bound(ours: Ours) -> float:
            return ours.engine_seconds(size.sample) * size.patches / size.sample

        def request(ours: Ours) -> None:
            assert ours.segment(image, target) == size.patches

        contenders = {
            BOUND: lambda: bound(self.exact),
            OURS: lambda: seconds(lambda: request(self.exact)),
            BOUND + FP16: lambda: bound(self.reduced),
            OURS + FP16: lambda: seconds(lambda: request(self.reduced)),
            UPSTREAM: lambda: self._upstream.seconds(image, target, size.every),
            MONAI: lambda: self._monai.seconds(image, target, size.every),
        }
        return in_turn(contenders, size.rounds)


def _labels(program: Callable[[Path, Path], object], image: Path) -> npt.NDArray[np.uint8]:
    target = image.with_name("labels.nii.gz")
    program(image, target)
    return turned_labels(target)
