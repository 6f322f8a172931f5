"""The loaded models of this server, by name."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from segserve.errors import MissingError, UnavailableError
from segserve.logs import one_line
from segserve.models.request import LoadRequest
from segserve.settings import Settings
from segserve.workers.loaded import LoadedModel
from segserve.workers.placement import Placement
from segserve.workers.starter import LoadOrder, Started, Starter

log = logging.getLogger(__name__)

LONGEST_SHOWN = 255


class Supervisor:
    """Loads, replaces and ends models, each in a process of its own."""

    def __init__(self, placement: Placement, settings: Settings) -> None:
        self._settings = settings
        self._starter = Starter(placement, settings)
        self._models: dict[str, LoadedModel] = {}
        self._locks: dict[str, asyncio.Lock] = {}

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
            raise MissingError(f"Model not loaded: {one_line(name[:LONGEST_SHOWN])}") from None

    async def load(self, request: LoadRequest) -> LoadedModel:
        """Load a model, then end the one of the same name, if any. A failure leaves everything as it was.

        Raises:
            BadInputError: the file cannot be loaded, and why.
            UnavailableError: another load of the same name takes too long.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._settings.load_timeout
        lock = self._locks.setdefault(request.name, asyncio.Lock())
        try:
            await asyncio.wait_for(lock.acquire(), self._settings.load_timeout)
        except TimeoutError:
            raise UnavailableError(f"The model {request.name} is being loaded by another request.") from None
        try:
            started = await self._starter.start(self._order(request), deadline - clock())
            model = LoadedModel(
                request,
                started,
                self._restart,
                max_waiting=self._settings.max_waiting,
                idle_seconds=self._settings.model_idle,
            )
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

    async def rest(self) -> None:
        """End every process, but keep the models listed: the next request to one starts its process again."""
        await asyncio.gather(*(model.rest() for model in self._models.values()))

    async def close(self) -> None:
        """End every process, those that are still loading included."""
        models = list(self._models.values())
        self._models.clear()
        await asyncio.gather(self._starter.close(), *(model.end() for model in models))

    async def _restart(self, request: LoadRequest) -> Started:
        return await self._starter.start(self._order(request), self._settings.load_timeout)

    def _order(self, request: LoadRequest) -> LoadOrder:
        body = {"request": request.model_dump(exclude_none=True), "default_patch": self._settings.default_patch}
        return LoadOrder(request.name, "volume", request.model_path, body)
