"""What is in force for a loaded model: the request, the file and the network's shape brought together."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from segserve.engines.candidates import Wish
from segserve.engines.registry import AUTO
from segserve.errors import BadInputError
from segserve.models.metadata import ModelMetadata
from segserve.models.request import Axes, LoadRequest

DEFAULT_ORIENTATION = "LPI"
DEFAULT_THRESHOLD = 0.5
FreeShape = tuple[int | None, ...]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Plan:
    """How a volume network is to be run. Sizes in voxels, (Z, Y, X)."""

    patch_size: Axes
    patch_stride: Axes
    batch: int
    blend: str
    skip_uniform: bool
    orientation: str
    window_level: float | None
    window_width: float | None
    activation: str
    threshold: float
    labels: dict[str, str] | None
    wish: Wish
    warnings: list[str] = field(default_factory=list)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """What the network is fed: (N, 1, Z, Y, X)."""
        return (self.batch, 1, *self.patch_size)

    def describe(self) -> dict[str, Any]:
        """As the wire's MODEL shows it."""
        shown = asdict(self)
        del shown["wish"]
        return shown


def make_plan(
    request: LoadRequest, metadata: ModelMetadata, shape: FreeShape, *, default_patch: int, devices: Collection[str]
) -> Plan:
    """Decide what is in force.

    Args:
        request: what the client asked for; it wins over the metadata, key by key.
        metadata: what the file says.
        shape: the network's input (N, C, Z, Y, X), None where it accepts any.
        default_patch: patch edge where nothing names one.
        devices: the kinds of device that can run such networks here.
    """
    warnings = list(metadata.warnings)
    asked, own = request.config, metadata.config
    patch = _patch(asked.patch_size or own.patch_size, shape[2:], default_patch, warnings)
    stride = _stride(asked.patch_stride or own.patch_stride, patch, warnings)
    batch = _batch(asked.forward_batch_windows or own.forward_batch_windows, shape[0], warnings)
    return Plan(
        patch_size=patch,
        patch_stride=stride,
        batch=batch,
        blend=asked.blend or own.blend or "constant",
        skip_uniform=_first(asked.skip_uniform, own.skip_uniform) is not False,
        orientation=request.orientation or metadata.fields.orientation or DEFAULT_ORIENTATION,
        window_level=_first(request.window_level, metadata.fields.window_level),
        window_width=_first(request.window_width, metadata.fields.window_width),
        activation=metadata.fields.activation or "sigmoid",
        threshold=metadata.fields.binary_segment_threshold or DEFAULT_THRESHOLD,
        labels=request.labels or metadata.fields.labels,
        wish=Wish(
            engine=asked.engine or own.engine or AUTO,
            device=_device(asked.forward_device or own.forward_device, asked.accumulate_device, devices, warnings),
            reduced=_first(asked.fp16, own.fp16) or False,
        ),
        warnings=warnings,
    )


def _first(asked: Value | None, own: Value | None) -> Value | None:
    return own if asked is None else asked


def _device(forward: str | None, accumulate: str | None, devices: Collection[str], warnings: list[str]) -> str | None:
    """The device to run on, None for any. Scores are always summed in the main memory, whatever the device."""
    missing = [device for device in (forward, accumulate) if device and device.partition(":")[0] not in devices]
    if missing and len(devices) == 1:
        warnings.append("No installed engine can use a GPU here: the model runs on the CPU.")
    elif missing:
        warnings.append(f"No installed engine can use {missing[0]} for this model here: the device is chosen for it.")
    return None if forward in missing else forward


def _patch(wanted: Axes | None, shape: FreeShape, default: int, warnings: list[str]) -> Axes:
    named = wanted or (default, default, default)
    patch = (shape[0] or named[0], shape[1] or named[1], shape[2] or named[2])
    if wanted and patch != wanted:
        warnings.append(f"patch_size {list(wanted)} was replaced by {list(patch)}: the network's input shape is fixed.")
    elif not wanted and None in shape:
        warnings.append(f"Neither the request nor the model names a patch_size: {list(patch)} is used.")
    return patch


def _stride(wanted: Axes | None, patch: Axes, warnings: list[str]) -> Axes:
    half: Axes = (max(1, patch[0] // 2), max(1, patch[1] // 2), max(1, patch[2] // 2))
    if not wanted:
        return half
    z, y, x = (stride if stride <= size else less for stride, size, less in zip(wanted, patch, half, strict=True))
    if (z, y, x) != wanted:
        warnings.append(f"patch_stride {list(wanted)} leaves gaps in a patch of {list(patch)}: {[z, y, x]} is used.")
    return z, y, x


def _batch(wanted: int | None, fixed: int | None, warnings: list[str]) -> int:
    if fixed and wanted and wanted != fixed:
        warnings.append(f"forward_batch_windows {wanted} was replaced by {fixed}: the network's batch is fixed.")
    return fixed or wanted or 1


def check_input_shape(shape: FreeShape, description: str) -> None:
    """Refuse a network whose input is not (N, 1, Z, Y, X).

    Raises:
        BadInputError: with the shape found and the one expected.
    """
    if len(shape) != 5:
        raise BadInputError(f"The network's input is {description}; a 5D input is expected: (N, 1, Z, Y, X).")
    if shape[1] not in {1, None}:
        raise BadInputError(
            f"The network's input has {shape[1]} channels, {description}; one is expected: (N, 1, Z, Y, X)."
        )
    if any(axis is not None and axis < 1 for axis in shape):
        raise BadInputError(f"The network's input {description} has an empty axis.")
