"""A placement that watches its workers: what they do is counted, and whether they still answer can be asked."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Protocol, get_args

from segserve.errors import SegserveError
from segserve.metrics import Metrics
from segserve.workers.placement.base import Call, Kind, Listener, Worker, WorkerDiedError

HOLD_MODELS: frozenset[Kind] = frozenset({"volume", "tiles"})
RECENT_SECONDS = 10.0
START_FAILURE_SECONDS = 60.0
"""How long a failed start counts. Not for ever: who sends no requests because of it would never see one succeed."""


class ObservableWorker(Worker, Protocol):
    """A worker that can be asked how it is."""

    @property
    def pid(self) -> int:
        """Its process's number, where it runs."""
        ...

    async def ping(self) -> None:
        """Wait until the process says that it is there, which it does whatever else it is doing.

        Raises:
            WorkerDiedError: it ended first.
        """
        ...

    def memory(self) -> int:
        """Resident memory of the process, in bytes; 0 if it has ended. Blocks."""
        ...


class ObservablePlacement(Protocol):
    """A placement of such workers."""

    async def start(self, label: str, kind: Kind) -> ObservableWorker:
        """See `Placement`."""
        ...


class WatchedWorker:
    """A worker, and what is known of it."""

    def __init__(self, worker: ObservableWorker, label: str, kind: Kind, metrics: Metrics) -> None:
        self.label = label
        self.kind = kind
        self._worker = worker
        self._metrics = metrics
        self._ended = False
        self._heard: float | None = None
        self._ping: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """See `Worker`."""
        return self._worker.alive

    @property
    def pid(self) -> int:
        """See `ObservableWorker`."""
        return self._worker.pid

    def memory(self) -> int:
        """See `ObservableWorker`."""
        return self._worker.memory()

    def tell(self, word: str) -> None:
        """See `Worker`."""
        self._worker.tell(word)

    async def call(self, call: Call, listen: Listener | None = None) -> dict[str, Any]:
        """See `Worker`."""
        began = time.monotonic()
        try:
            reply = await self._worker.call(call, listen)
        except WorkerDiedError:
            self.has_ended()
            raise
        except SegserveError:
            self._heard = time.monotonic()
            raise
        self._heard = time.monotonic()
        self._count(call.verb, reply, self._heard - began)
        return reply

    async def stop(self) -> None:
        """See `Worker`."""
        self.has_ended()
        self._ended = True
        await self._worker.stop()

    def has_ended(self) -> bool:
        """Whether it is gone; a death is counted when it is first seen."""
        if not self._ended and not self._worker.alive:
            self._ended = True
            self._metrics.worker_deaths.labels(self.kind).inc()
        return self._ended

    async def answers(self, seconds: float) -> bool:
        """Whether a process that holds a model has answered lately, or does so within `seconds`.

        One that is still loading, or has ended, owes no answer.
        """
        if self._heard is None or time.monotonic() - self._heard < RECENT_SECONDS:
            return True
        if self._ping is None or self._ping.done():
            self._ping = asyncio.ensure_future(self._hear())
        await asyncio.wait([self._ping], timeout=seconds)
        return self._ping.done() or self.has_ended()

    async def _hear(self) -> None:
        try:
            await self._worker.ping()
        except WorkerDiedError:
            self.has_ended()
        else:
            self._heard = time.monotonic()

    def _count(self, verb: str, reply: dict[str, Any], seconds: float) -> None:
        metrics = self._metrics
        if self.kind != "training":
            metrics.call_seconds.labels(self.kind, verb).observe(seconds)
        if verb == "segment":
            metrics.volumes.inc()
            metrics.volume_seconds.observe(reply["seconds"])
            for stage, spent in reply["stages"].items():
                metrics.stage_seconds.labels(stage).inc(spent)
            metrics.patches.labels("computed").inc(reply["patches"] - reply["skipped"])
            metrics.patches.labels("skipped").inc(reply["skipped"])
        elif verb == "classify":
            metrics.tiles.inc(len(reply["shapes"]))


class WatchedPlacement:
    """Starts watched workers."""

    def __init__(self, placement: ObservablePlacement, metrics: Metrics) -> None:
        self._placement = placement
        self._metrics = metrics
        self._workers: list[WatchedWorker] = []
        self._start_failed: float | None = None
        for counter in (metrics.worker_starts, metrics.worker_start_failures, metrics.worker_deaths):
            for kind in get_args(Kind):
                counter.labels(kind)  # there from the start, as 0: a rise from nothing would go unnoticed

    @property
    def workers(self) -> list[WatchedWorker]:
        """Those that have not ended."""
        self._workers = [worker for worker in self._workers if not worker.has_ended()]
        return list(self._workers)

    @property
    def start_failed(self) -> bool:
        """Whether the last start failed, not long ago."""
        return self._start_failed is not None and time.monotonic() - self._start_failed < START_FAILURE_SECONDS

    async def start(self, label: str, kind: Kind) -> WatchedWorker:
        """Start a worker; see `Placement`."""
        try:
            worker = await self._placement.start(label, kind)
        except OSError:
            self._start_failed = time.monotonic()
            self._metrics.worker_start_failures.labels(kind).inc()
            raise
        self._start_failed = None
        self._metrics.worker_starts.labels(kind).inc()
        watched = WatchedWorker(worker, label, kind, self._metrics)
        self._workers = [*self.workers, watched]
        return watched

    async def silent(self, seconds: float) -> list[WatchedWorker]:
        """Those that hold a model and do not say within `seconds` that they are there."""
        asked = [worker for worker in self.workers if worker.kind in HOLD_MODELS]
        answers = await asyncio.gather(*(worker.answers(seconds) for worker in asked))
        return [worker for worker, answered in zip(asked, answers, strict=True) if not answered]
