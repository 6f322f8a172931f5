"""Starting a process and loading a model into it, within a time limit, leaving nothing behind on failure."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from segserve.errors import BadInputError, SegserveError, UnavailableError
from segserve.settings import Settings
from segserve.workers.placement import Call, Kind, Placement, Worker, WorkerDiedError

RETRY_SECONDS = 5


class DiedLoadingError(SegserveError):
    """The process died while it loaded the model: most likely of it (400), or it was killed (503)."""

    status = 400


@dataclass(frozen=True)
class LoadOrder:
    """A model to be loaded into a process of its own.

    Attributes:
        label: names the process to whoever lists them.
        kind: of worker.
        path: of the model's file, as the client knows it.
        body: of the worker's `load`.
    """

    label: str
    kind: Kind
    path: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Started:
    """A process that holds a model.

    Attributes:
        card: what is in force in it.
        fingerprint: of the model's file as it was read; another one means another model.
    """

    worker: Worker
    card: dict[str, Any]
    fingerprint: str


class Starter:
    """Starts processes that hold models, and knows those that have not finished loading."""

    def __init__(self, placement: Placement, settings: Settings) -> None:
        self._placement = placement
        self._settings = settings
        self._loading: set[Worker] = set()
        self._closed = False

    async def start(self, order: LoadOrder, seconds: float) -> Started:
        """Start a process and load the model into it.

        Raises:
            BadInputError: the file cannot be loaded, or not within `seconds`.
            DiedLoadingError: the process died of it, or was killed.
            UnavailableError: no process can be started, or the server is shutting down.
        """
        if self._closed:
            raise UnavailableError("The server is shutting down.")
        try:
            worker = await self._placement.start(order.label, order.kind)
        except OSError as error:
            raise UnavailableError(f"No process could be started for the model: {error.strerror}.") from None
        self._loading.add(worker)
        try:
            reply = await self._loaded(worker, order, seconds)
        except BaseException:
            await worker.stop()
            raise
        finally:
            self._loading.discard(worker)
        return Started(worker, reply["card"], reply["fingerprint"])

    async def close(self) -> None:
        """End the processes that are loading, and start no more."""
        self._closed = True
        await asyncio.gather(*(worker.stop() for worker in self._loading))

    async def _loaded(self, worker: Worker, order: LoadOrder, seconds: float) -> dict[str, Any]:
        reply = asyncio.ensure_future(worker.call(Call("load", order.body)))
        try:
            await asyncio.wait([reply], timeout=seconds)
            if reply.done():
                return reply.result()
        except WorkerDiedError as error:
            if self._closed:
                raise UnavailableError("The server is shutting down.") from None
            sentence = f"The model file {order.path} could not be loaded: {error}."
            if error.killed:
                raise DiedLoadingError(f"{sentence} Send it again.", status=503, retry_after=RETRY_SECONDS) from None
            raise DiedLoadingError(sentence) from None
        finally:
            if not reply.done():  # too slow, or nobody waits any more; a load cannot be interrupted, only ended
                await worker.stop()
                await asyncio.gather(reply, return_exceptions=True)
        raise BadInputError(
            f"The model file {order.path} took longer than {self._settings.load_timeout:g} s to load "
            f"(load_timeout): check the file, or try a smaller patch_size."
        )
