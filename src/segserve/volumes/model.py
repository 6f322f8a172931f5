"""A loaded volume network: from the request that loads it to the labels of a volume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segserve.engines.base import Engine
from segserve.engines.registry import cuda_is_usable
from segserve.errors import BadInputError
from segserve.models.formats.onnx import open_onnx
from segserve.models.plan import Plan, check_input_shape, make_plan
from segserve.models.request import LoadRequest
from segserve.volumes.geometry import AxisMap, axis_map
from segserve.volumes.grid import Grid, choose_grid
from segserve.volumes.labels import LabelFile, above_half, above_zero, highest_class, label_dtype, write_labels
from segserve.volumes.memory import check_patch, check_volume
from segserve.volumes.sliding import Decide, Progress, Sweep
from segserve.volumes.source import Limits, Source, open_image
from segserve.volumes.window import Intensities, choose_window


@dataclass(frozen=True)
class Job:
    """One volume to segment.

    Attributes:
        image: .nii or .nii.gz.
        target: the .nii.gz to write.
        scratch: a folder for large temporary files.
        window_level, window_width: win over the model's own.
        progress: told (patches done, patches in all); may raise to stop.
    """

    image: Path
    target: Path
    scratch: Path
    limits: Limits
    window_level: float | None = None
    window_width: float | None = None
    progress: Progress = lambda done, total: None


@dataclass(frozen=True)
class Outcome:
    """How a volume was segmented."""

    engine: str
    device: str
    precision: str
    patches: int
    seconds: float
    warnings: list[str]


class VolumeModel:
    """A network ready to segment volumes."""

    def __init__(self, engine: Engine, plan: Plan, classes: int) -> None:
        self.plan = plan
        self.classes = classes
        self.engine = engine
        self._decide = _decide(classes, plan)

    @classmethod
    def load(cls, request: LoadRequest, *, default_patch: int) -> VolumeModel:
        """Load a network and run it once on its real patch.

        Raises:
            BadInputError: the file is no volume network, with what was found and expected.
        """
        file = open_onnx(Path(request.model_path))
        check_input_shape(file.input.shape, str(file.input))
        plan = make_plan(request, file.metadata, file.input.shape, default_patch=default_patch, cuda=cuda_is_usable())
        check_patch(plan)
        engine = file.load((plan.batch, 1, *plan.patch_size))
        return cls(engine, plan, _trial(engine, plan))

    def describe(self) -> dict[str, Any]:
        """What is in force, as the added fields of the wire's MODEL."""
        return {
            **asdict(self.plan),
            "activation": self.plan.activation if self.classes == 1 else None,
            "num_classes": self.classes,
            "engine": self.engine.name,
            "device": self.engine.device,
            "precision": self.engine.precision,
        }

    def segment(self, job: Job) -> Outcome:
        """Segment one volume onto its own grid.

        Raises:
            BadInputError: the image cannot be used, and why.
            TooLargeError: it is over a limit, or needs more memory than there is.
        """
        began = time.monotonic()
        window = choose_window(
            self.plan.window_level if job.window_level is None else job.window_level,
            self.plan.window_width if job.window_width is None else job.window_width,
        )
        source = open_image(job.image, job.scratch, job.limits)
        axes = axis_map(source.nifti.affine, self.plan.orientation)
        grid = choose_grid(
            axes.network_shape(source.nifti.shape),
            self.plan.patch_size,
            self.plan.patch_stride,
            slowest=axes.axes.index(0),
        )
        check_volume(grid, self.classes, job.limits.memory_limit)
        plain, warnings = source.intensities()
        intensities = Intensities(plain.slope, plain.intercept, plain.fill, window)
        labels = LabelFile(job.scratch / "labels.raw", source.nifti, label_dtype(self.classes))
        labels.create()
        sweep = Sweep(self.engine, grid, self.classes, self._decide)
        sweep.run(_reader(source, axes, grid, intensities), _writer(labels, axes, grid), job.progress)
        write_labels(labels, source, job.target)
        seconds = time.monotonic() - began
        return Outcome(
            self.engine.name, self.engine.device, self.engine.precision, grid.patches, round(seconds, 3), warnings
        )


def _trial(engine: Engine, plan: Plan) -> int:
    """Run the network once and return its class count."""
    logits = engine(np.zeros(engine.input_shape, np.float32))
    expected = f"({plan.batch}, K, {', '.join(str(size) for size in plan.patch_size)})"
    shape = logits.shape
    if len(shape) != 5 or shape[0] != plan.batch or shape[2:] != plan.patch_size or math.prod(shape) == 0:
        raise BadInputError(f"The network's output has the shape {shape}; a segmentation network gives {expected}.")
    label_dtype(shape[1])
    return int(shape[1])


def _decide(classes: int, plan: Plan) -> Decide:
    if classes > 1:
        return highest_class
    return above_half if plan.activation == "none" else above_zero


def _reader(
    source: Source, axes: AxisMap, grid: Grid, intensities: Intensities
) -> Callable[[int, int], NDArray[np.float32]]:
    sweep, length = grid.sweep, grid.shape[grid.sweep]

    def read(start: int, stop: int) -> NDArray[np.float32]:
        stored = axes.to_network(source.planes(axes.axes[sweep], *axes.file_range(sweep, start, stop, length)))
        block = np.empty(stored.shape, np.float32)
        # Plane by plane: scaling goes through float64, and a slab of that would double the memory.
        for plane, values in zip(np.moveaxis(block, sweep, 0), np.moveaxis(stored, sweep, 0), strict=True):
            plane[...] = intensities(values)
        return block

    return read


def _writer(labels: LabelFile, axes: AxisMap, grid: Grid) -> Callable[[int, int], NDArray[Any]]:
    sweep, length = grid.sweep, grid.shape[grid.sweep]

    def take(start: int, stop: int) -> NDArray[Any]:
        planes = labels.planes(axes.axes[sweep], *axes.file_range(sweep, start, stop, length))
        return np.moveaxis(axes.to_network(planes), sweep, 0)

    return take
