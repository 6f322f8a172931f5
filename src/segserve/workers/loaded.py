"""One loaded model: its process, the requests that wait for it, and its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from segserve.errors import SegserveError, UnavailableError
from segserve.models.request import LoadRequest
from segserve.workers.placement import Call, Worker, WorkerDiedError
from segserve.workers.starter import Started

log = logging.getLogger(__name__)

Restart = Callable[[LoadRequest], Coroutine[Any, Any, Started]]


class LoadedModel:
    """A model that is listed as loaded. Its process may die; the next request starts another."""

    def __init__(self, request: LoadRequest, started: Started, restart: Restart, *, max_waiting: int) -> None:
        """Take over a process that holds the model.

        Args:
            request: how it was loaded, and is loaded again.
            started: the process.
            restart: gives another such process.
            max_waiting: requests that may wait while one is served.
        """
        self.request = request
        self.card = started.card
        self._fingerprint = started.fingerprint
        self._worker = started.worker
        self._restarting: asyncio.Future[Started] | None = None
        self._restart = restart
        self._max_waiting = max_waiting
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._ended = False

    async def call(self, call: Call) -> dict[str, Any]:
        """Ask the model's process, after the requests that came before.

        Raises:
            UnavailableError: too many wait, the process died, or the model was unloaded.
            SegserveError: what the process found wrong.
        """
        if self._turn.locked() and self._waiting >= self._max_waiting:
            raise UnavailableError(
                f"The model {self.request.name} is busy and {self._waiting} requests wait for it (max_waiting): "
                f"send this one again later.",
                retry_after=10,
            )
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        try:
            return await self._ask(call)
        finally:
            self._turn.release()

    async def end(self) -> None:
        """End the process for good. Whoever runs or waits is told that the model was unloaded."""
        self._ended = True
        if self._restarting:
            self._restarting.cancel()
            await asyncio.wait([self._restarting])
        await self._worker.stop()

    async def rest(self) -> None:
        """End the process, not the model: what runs is told to come again, and a later request starts another."""
        await self._worker.stop()

    async def _ask(self, call: Call) -> dict[str, Any]:
        try:
            return await self._once(call)
        except WorkerDiedError as error:
            if error.began:
                raise self._died(error) from None
        # It had died before, unnoticed, and nothing was begun: a fresh process can do all of it.
        try:
            return await self._once(call)
        except WorkerDiedError as error:
            raise self._died(error) from None

    async def _once(self, call: Call) -> dict[str, Any]:
        worker = await self._living_worker()
        try:
            return await worker.call(call)
        except WorkerDiedError:
            self._refuse_if_ended()
            raise

    def _died(self, error: WorkerDiedError) -> UnavailableError:
        log.warning("the process of model %s died: %s", self.request.name, error)
        return UnavailableError(
            f"The model {self.request.name} stopped while it worked on this volume: {error}. "
            f"Sending it again starts a fresh process."
        )

    async def _living_worker(self) -> Worker:
        self._refuse_if_ended()
        if self._worker.alive:
            return self._worker
        await self._worker.stop()
        # A task of its own, so that `end` can stop it: an unload does not wait for a model to load.
        self._restarting = asyncio.ensure_future(self._restart(self.request))
        try:
            started = await self._restarting
        except asyncio.CancelledError:
            self._refuse_if_ended()
            raise
        except SegserveError as error:
            self._refuse_if_ended()
            raise UnavailableError(
                f"The model {self.request.name} could not be started again: {error.message}"
            ) from None
        finally:
            self._restarting = None
        self._worker = started.worker
        if started.fingerprint != self._fingerprint:
            await self._worker.stop()
            raise UnavailableError(
                f"The file of the model {self.request.name} has changed since it was loaded: load it again."
            )
        return self._worker

    def _refuse_if_ended(self) -> None:
        if self._ended:
            raise UnavailableError(f"The model {self.request.name} was unloaded.")
