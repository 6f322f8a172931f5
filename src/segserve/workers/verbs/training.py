"""What a training process does: one training, told as it goes."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from segserve import logs
from segserve.errors import BadInputError
from segserve.training import checkpoint
from segserve.training.events import (
    BatchDone,
    CheckpointReady,
    EpochDone,
    Event,
    Finished,
    Paused,
    Stage,
    Started,
)
from segserve.training.spec import TrainingSpec
from segserve.training.train import Order, train
from segserve.workers.verbs.base import Request

log = logging.getLogger("segserve.worker")

# torch says it in as many ways as it has allocators, all of them as RuntimeError.
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|failed to allocate", re.IGNORECASE)
BATCH_EVENT_SECONDS = 0.5
RETRY_SECONDS = 5.0
NICE = 5


class TrainingVerbs:
    """The verbs of a training process."""

    def train(self, request: Request) -> dict[str, Any]:
        """Train to the end, or to a pause; replies the outcome, and the metadata of the model that was made."""
        _yield_to_others()
        handler = _JobLog(request.emit)
        logging.getLogger("segserve").addHandler(handler)
        try:
            return self._train(request)
        except RuntimeError as error:
            if not OUT_OF_MEMORY.search(str(error)):
                raise
            log.exception("out of memory")
            batch = request.body["spec"]["training"]["batch_size"]
            raise BadInputError(
                f"There is not enough memory on {request.body['device']} for this training: lower batch_size "
                f"(it is {batch}), or choose a smaller encoder or smaller patches."
            ) from None
        finally:
            logging.getLogger("segserve").removeHandler(handler)

    def _train(self, request: Request) -> dict[str, Any]:
        assert request.scratch
        body, kept = request.body, request.outputs["checkpoint"]
        weights_dir = body["weights_dir"]
        order = Order(
            spec=TrainingSpec.model_validate(body["spec"]),
            model_folder=request.outputs["model"],
            scratch=request.scratch,
            device=body["device"],
            weights_dir=Path(weights_dir) if weights_dir else None,
            data_memory=body["data_memory"],
            checkpoint=checkpoint.load(kept) if body["resume"] else None,
            same_batches=body["same_batches"],
            pause_asked=lambda: request.told("pause"),
        )
        for epoch in order.checkpoint["history"] if order.checkpoint else []:
            request.emit({"kind": "past epoch", "epoch": epoch})
        teller = _Teller(request.emit, kept)
        reply: dict[str, Any] = {}
        for event in train(order):
            if isinstance(event, Finished):
                reply = {"outcome": "finished", **asdict(event)}
            elif isinstance(event, Paused):
                reply = {"outcome": "paused"}
            else:
                teller.tell(event)
        return reply


class _Teller:
    """Puts events on the wire, and checkpoints on the disk before it tells of them."""

    def __init__(self, emit: Callable[[dict[str, Any]], None], kept: Path) -> None:
        self._emit = emit
        self._kept = kept
        self._last_batch = 0.0
        self._trouble = ""

    def tell(self, event: Event) -> None:
        if isinstance(event, Stage):
            self._emit({"kind": "stage", "stage": event.name})
        elif isinstance(event, Started):
            self._emit({"kind": "started", **asdict(event)})
        elif isinstance(event, EpochDone):
            self._emit({"kind": "epoch", "epoch": event.wire()})
        elif isinstance(event, CheckpointReady):
            self._keep(event)
        elif isinstance(event, BatchDone) and time.monotonic() - self._last_batch >= BATCH_EVENT_SECONDS:
            self._last_batch = time.monotonic()
            self._emit({"kind": "batch", **asdict(event)})

    def _keep(self, event: CheckpointReady) -> None:
        """Write a checkpoint. One on the way is no reason to end a training; a pause waits until its own is written."""
        while not self._is_written(event) and event.pausing:
            time.sleep(RETRY_SECONDS)

    def _is_written(self, event: CheckpointReady) -> bool:
        try:
            checkpoint.save(self._kept, event.state)
        except OSError as error:
            self._complain(_trouble(error, pausing=event.pausing))
            return False
        self._trouble = ""
        self._emit({"kind": "checkpoint"})
        return True

    def _complain(self, trouble: str) -> None:
        """Tell of a trouble once, however long it lasts."""
        if trouble != self._trouble:
            self._trouble = trouble
            log.warning("%s", trouble)
            self._emit({"kind": "trouble", "text": trouble})


def _trouble(error: OSError, *, pausing: bool) -> str:
    """What a checkpoint that cannot be written means, and what to do."""
    remedy = "Free some space in the server's state directory, or make it writable"
    if pausing:
        return (
            f"The training cannot pause yet: its checkpoint cannot be written ({error.strerror}). {remedy}; "
            f"it is tried again every {RETRY_SECONDS:.0f} s."
        )
    return (
        f"The checkpoint cannot be written ({error.strerror}): should the training be interrupted, what it learnt "
        f"since the one before is lost. {remedy}."
    )


class _JobLog(logging.Handler):
    """Sends what this process logs to the job's own log."""

    def __init__(self, emit: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(logging.INFO)
        self._emit_event = emit
        self._clock = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        """Tell the message without its traceback, which is the server's own affair."""
        text = logs.one_line(record.getMessage())
        line = f"{self._clock.formatTime(record)} {record.levelname:7} {text}"
        self._emit_event({"kind": "log", "line": line})


def _yield_to_others() -> None:
    """Let the server and the viewers' models go first where all compete for the same cores."""
    process = psutil.Process()
    try:
        process.nice(getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", NICE))
    except psutil.Error:
        return
