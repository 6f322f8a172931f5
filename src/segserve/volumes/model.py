"""A loaded volume network: from the request that loads it to the labels of a volume."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segserve.engines.base import EngineError, TorchNetwork
from segserve.engines.registry import usable_devices
from segserve.engines.remembered import choose_once
from segserve.engines.trial import trial_batches
from segserve.engines.verdict import Choice, Trial
from segserve.models.formats.opened import Opened
from segserve.models.formats.volume import open_volume_network
from segserve.models.plan import Plan, check_input_shape, make_plan
from segserve.models.request import LoadRequest
from segserve.volumes.blend import window_weights
from segserve.volumes.geometry import AxisMap, axis_map
from segserve.volumes.grid import Grid, choose_grid
from segserve.volumes.labels import LabelFile, above, highest_class, label_dtype, write_labels
from segserve.volumes.memory import check_patch, check_volume
from segserve.volumes.sliding import Progress, Sweep, Windows
from segserve.volumes.source import Limits, Source, open_image
from segserve.volumes.trial import advised, check_logits
from segserve.volumes.window import Intensities, choose_window


@dataclass(frozen=True)
class Job:
    """One volume to segment.

    Attributes:
        image: NIfTI, NRRD or MetaImage.
        target: the file to write, its format by its ending.
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
    """How a volume was segmented.

    Attributes:
        skipped: of the patches, those that needed no computing.
        stages: seconds to `read` the file, to run the `network`, to `stitch` windows and choose labels, to `write`.
    """

    engine: str
    device: str
    precision: str
    patches: int
    skipped: int
    seconds: float
    stages: dict[str, float]
    warnings: list[str]


class VolumeModel:
    """A network ready to segment volumes."""

    def __init__(self, choice: Choice, plan: Plan) -> None:
        self.plan = plan
        self.classes = choice.shape[1]
        self.engine = choice.engine
        self._choice = choice
        self._decide = highest_class if self.classes > 1 else above(plan.threshold, plan.activation)
        self._windows = Windows(
            plan.batch, window_weights(plan.blend, plan.patch_size), plan.skip_uniform and choice.repeatable
        )

    @classmethod
    def load(
        cls, request: LoadRequest, *, default_patch: int, choices: Path | None = None, trusted: Sequence[Path] = ()
    ) -> VolumeModel:
        """Load a network, run it on its real patch, and choose the engine for it.

        Args:
            request: which network, and how it is to be run.
            default_patch: patch edge where nothing names one.
            choices: a folder where choices of engines are kept, so that the next load need not time them.
            trusted: folders whose files may be run whoever owns them.

        Raises:
            BadInputError: the file is no volume network, with what was found and expected.
            NotTrustedError: it holds code that may not be run.
            MissingExtraError: the engine asked for is not installed.
        """
        opened = open_volume_network(request, trusted)
        check_input_shape(opened.shape, opened.described)
        devices = usable_devices(type(opened.network))
        plan = make_plan(request, opened.metadata, opened.shape, default_patch=default_patch, devices=devices)
        check_patch(plan)
        windowed = plan.window_level is not None and plan.window_width is not None
        trial = Trial(trial_batches(plan.batch_shape, unit=windowed), partial(check_logits, plan=plan))
        try:
            choice = choose_once(opened.network, opened.files, plan.wish, trial, choices)
        except EngineError as error:
            raise advised(error, plan) if isinstance(opened.network, TorchNetwork) else error from error
        plan.warnings.extend([*_precision_warning(choice, plan), *_classes_warning(choice, opened)])
        return cls(choice, plan)

    def describe(self) -> dict[str, Any]:
        """What is in force, as the added fields of the wire's MODEL."""
        return {
            **self.plan.describe(),
            "activation": self.plan.activation if self.classes == 1 else None,
            "threshold": self.plan.threshold if self.classes == 1 else None,
            "num_classes": self.classes,
            "engine": self.engine.name,
            "device": self.engine.device,
            "precision": self.engine.precision,
            "engines": self._choice.wire_verdicts(),
        }

    def segment(self, job: Job) -> Outcome:
        """Segment one volume onto its own grid.

        Raises:
            BadInputError: the image cannot be used, and why.
            TooLargeError: it is over a limit, or needs more memory than there is.
        """
        marks = [time.monotonic()]
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
        check_volume(grid, self.classes, job.limits.memory_limit, weighted=self._windows.weights is not None)
        plain, warnings = source.intensities()
        intensities = Intensities(plain.slope, plain.intercept, plain.fill, window)
        marks.append(time.monotonic())
        labels = LabelFile(job.scratch / "labels.raw", source.nifti, label_dtype(self.classes))
        labels.create()
        sweep = Sweep(self.engine, grid, self.classes, self._decide, self._windows)
        sweep.run(_reader(source, axes, grid, intensities), _writer(labels, axes, grid), job.progress)
        marks.append(time.monotonic())
        write_labels(labels, source, job.target)
        marks.append(time.monotonic())
        read, swept, written = (later - earlier for earlier, later in pairwise(marks))
        network = sweep.network_seconds
        stages = {"read": read, "network": network, "stitch": swept - network, "write": written}
        return Outcome(
            engine=self.engine.name,
            device=self.engine.device,
            precision=self.engine.precision,
            patches=grid.patches,
            skipped=sweep.skipped,
            seconds=round(marks[-1] - marks[0], 3),
            stages={stage: round(seconds, 4) for stage, seconds in stages.items()},
            warnings=warnings,
        )


def _precision_warning(choice: Choice, plan: Plan) -> list[str]:
    """Why a network computes in float32 although less was permitted."""
    if not plan.wish.reduced or not choice.candidate.exact:
        return []
    tried = [verdict for verdict in choice.verdicts if verdict.precision != "float32"]
    if not tried:
        return ["fp16 was asked for; this machine computes fastest and right in float32, which is used."]
    reasons = "; ".join(f"{one.precision}: {one.refused or 'not faster'}" for one in tried)
    return [f"fp16 was asked for; float32 is used ({reasons})."]


def _classes_warning(choice: Choice, opened: Opened) -> list[str]:
    if opened.classes in {None, choice.shape[1]}:
        return []
    return [f"The model is said to tell {opened.classes} classes apart; its network gives {choice.shape[1]}."]


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
