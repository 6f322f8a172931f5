"""What a training tells while it runs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Stage:
    """A part of the training begins: `weights`, `data`, `training` or `export`."""

    name: str


@dataclass(frozen=True)
class Started:
    """Where it runs: `device` is `cpu`, `cuda:0`, `mps`; `info` says it in words."""

    device: str
    info: str
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class BatchDone:
    """A batch of the running epoch is done; `epoch` counts from 1, `loss` is the epoch's mean so far."""

    epoch: int
    batch: int
    batches: int
    loss: float


@dataclass(frozen=True)
class EpochDone:
    """An epoch is done and validated. All figures are finite; losses are in nats, times in seconds, memory in bytes.

    Per-class maps leave out classes without a validation pixel.
    """

    epoch: int
    train_loss: float
    val_loss: float
    accuracy: float
    mean_iou: float
    per_class_iou: dict[str, float]
    per_class_loss: dict[str, float]
    learning_rate: float
    seconds: float
    peak_memory: int
    best: bool

    def wire(self) -> dict[str, Any]:
        """The epoch as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class CheckpointReady:
    """Everything a resumed training needs: tensors and plain values, readable with `weights_only`.

    `pausing` if the training pauses now: what this holds is all that will be left of it.
    """

    state: dict[str, Any]
    pausing: bool = False


@dataclass(frozen=True)
class Paused:
    """The training stopped because it was asked to; its checkpoint came before."""


@dataclass(frozen=True)
class Finished:
    """The model folder is complete. `metadata` lacks only what publishing gives it, its id."""

    metadata: dict[str, Any]
    warnings: list[str]


Event = Stage | Started | BatchDone | EpochDone | CheckpointReady | Paused | Finished


def finite(value: float) -> float:
    """A number that JSON has: what is none is told as 0."""
    return float(value) if math.isfinite(value) else 0.0
