"""The loaded models of this server, by name."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from segserve.errors import BadInputError, MissingError, UnavailableError
from segserve.models.request import LoadRequest
from segserve.settings import Settings
from segserve.workers.loaded import LoadedModel
from segserve.workers.placement import Call, Placement, Worker, WorkerDiedError

log = logging.getLogger(__name__)


class Supervisor:
    """Starts, replaces and ends the processes that hold models."""

    def __init__(self, placement: Placement, settings: Settings) -> None:
        self._placement = placement
        self._settings = settings
        self._models: dict[str, LoadedModel] = {}
        self._loading: dict[str, asyncio.Lock] = {}
        self._starting: set[Worker] = set()
        self._closed = False

    @property
    def models(self) -> Mapping[str, LoadedModel]:
        """What is loaded, by name, in the order of loading."""
        return self._models

    def get(self, name: str) -> LoadedModel:
        """A loaded model.

        Raises:
            MissingError: there is none of that name.
        """
        try:
            return self._models[name]
        except KeyError:
            raise MissingError(f"Model not loaded: {name}") from None

    async def load(self, request: LoadRequest) -> LoadedModel:
        """Load a model, then end the one of the same name, if any. A failure leaves everything as it was.

        Raises:
            BadInputError: the file cannot be loaded, and why.
            UnavailableError: another load of the same name takes too long.
        """
        lock = self._loading.setdefault(request.name, asyncio.Lock())
        deadline = asyncio.get_running_loop().time() + self._settings.load_timeout
        try:
            await asyncio.wait_for(lock.acquire(), self._settings.load_timeout)
        except TimeoutError:
            raise UnavailableError(f"The model {request.name} is being loaded by another request.") from None
        try:
            worker, card = await self._start(request, deadline)
            model = LoadedModel(request, card, worker, self._restart, max_waiting=self._settings.max_waiting)
            replaced = self._models.pop(request.name, None)
            self._models[request.name] = model
            if replaced:
                await replaced.end()
        finally:
            lock.release()
        log.info("model %s is loaded from %s", request.name, request.model_path)
        return model

    async def unload(self, name: str) -> None:
        """End a model's process; its running request is told so.

        Raises:
            MissingError: there is none of that name.
        """
        model = self._models.pop(name, None)
        if model is None:
            raise MissingError(f"Model not found: {name}")
        await model.end()
        log.info("model %s is unloaded", name)

    async def close(self) -> None:
        """End every process, those that are still starting included."""
        self._closed = True
        models, starting = list(self._models.values()), list(self._starting)
        self._models.clear()
        await asyncio.gather(*(model.end() for model in models), *(worker.stop() for worker in starting))

    async def _restart(self, request: LoadRequest) -> Worker:
        deadline = asyncio.get_running_loop().time() + self._settings.load_timeout
        worker, _ = await self._start(request, deadline)
        return worker

    async def _start(self, request: LoadRequest, deadline: float) -> tuple[Worker, dict[str, Any]]:
        """A process that holds the model, and what is in force in it."""
        if self._closed:
            raise UnavailableError("The server is shutting down.")
        try:
            worker = await self._placement.start(request.name)
        except OSError as error:
            raise UnavailableError(f"No process could be started for the model: {error.strerror}.") from None
        self._starting.add(worker)
        loaded = False
        try:
            card = await self._loaded(worker, request, deadline)
            loaded = True
        finally:
            self._starting.discard(worker)
            if not loaded:
                await worker.stop()
        return worker, card

    async def _loaded(self, worker: Worker, request: LoadRequest, deadline: float) -> dict[str, Any]:
        body = {"request": request.model_dump(exclude_none=True), "default_patch": self._settings.default_patch}
        reply = asyncio.ensure_future(worker.call(Call("load", body)))
        await asyncio.wait([reply], timeout=deadline - asyncio.get_running_loop().time())
        if not reply.done():
            await worker.stop()
            await asyncio.gather(reply, return_exceptions=True)
            raise BadInputError(
                f"The model file {request.model_path} took longer than {self._settings.load_timeout:g} s to load "
                f"(load_timeout): check the file, or try a smaller patch_size."
            )
        try:
            return reply.result()
        except WorkerDiedError as error:
            if self._closed:
                raise UnavailableError("The server is shutting down.") from None
            raise BadInputError(f"The model file {request.model_path} could not be loaded: {error}.") from None
