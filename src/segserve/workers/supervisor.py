"""The loaded models of this server, by name."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from segserve.errors import MissingError, SegserveError, UnavailableError
from segserve.logs import one_line
from segserve.models.request import LoadRequest
from segserve.models.told import below, ways
from segserve.settings import Settings
from segserve.workers.loaded import LoadedModel
from segserve.workers.placement import Placement
from segserve.workers.starter import LoadOrder, Started, Starter

log = logging.getLogger(__name__)

LONGEST_SHOWN = 255
UNLOAD_SECONDS = 1.5


class Supervisor:
    """Loads, replaces and ends models, each in a process of its own."""

    def __init__(self, placement: Placement, settings: Settings) -> None:
        self._settings = settings
        self._starter = Starter(placement, settings)
        self._ways = ways(settings.model_dir)
        self._trusted = [str(folder) for folder in settings.trusted]
        self._models: dict[str, LoadedModel] = {}
        # A name's lock lasts as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._ending: set[asyncio.Future[None]] = set()

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
            SegserveError: the file cannot be loaded, and why.
            UnavailableError: another load of the same name takes too long, or the model was unloaded meanwhile.
        """
        async with self._turn(request.name) as seconds:
            model, replaced = self._put(request, await self._started(request, seconds))
            if replaced:
                await replaced.end()
                model.refuse_if_ended()
            return model

    async def load_over(self, request: LoadRequest, expected: LoadedModel | None) -> LoadedModel | None:
        """Load a model as `load` does, unless another than the expected one has its name by then.

        The expected one answers what it computes, and ends after that; whoever waits for it is answered by the new one.

        Args:
            request: how to load it.
            expected: what is loaded under the name; None if nothing is.

        Returns:
            None if the name was found taken, or free where it was not expected to be; then nothing has changed.

        Raises:
            SegserveError: see `load`.
        """
        async with self._turn(request.name) as seconds:
            if self._models.get(request.name) is not expected:
                return None
            started = await self._started(request, seconds)
            if self._models.get(request.name) is not expected:
                await started.worker.stop()
                return None
            model, replaced = self._put(request, started)
            if replaced:
                model.succeed(replaced)
            return model

    async def unload(self, name: str) -> None:
        """End a model's process; its running request is told so.

        Raises:
            MissingError: there is none of that name.
        """
        model = self._models.pop(name, None)
        if model is None:
            raise MissingError(f"Model not found: {name}")
        # A process that held much memory takes its time to die; whoever unloads it need not wait for that.
        ending = asyncio.ensure_future(model.end())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        await asyncio.wait([ending], timeout=UNLOAD_SECONDS)
        log.info("model %s is unloaded", name)

    async def rest(self) -> None:
        """End every process, but keep the models listed: the next request to one starts its process again."""
        await asyncio.gather(*(model.rest() for model in self._models.values()))

    async def close(self) -> None:
        """End every process, those that are still loading included."""
        models = list(self._models.values())
        self._models.clear()
        await asyncio.gather(self._starter.close(), *self._ending, *(model.end() for model in models))

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[float]:
        """Wait until nobody else loads a model of this name; the seconds that are left for it then."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._settings.load_timeout
        lock = self._locks.setdefault(name, asyncio.Lock())
        try:
            await asyncio.wait_for(lock.acquire(), self._settings.load_timeout)
        except TimeoutError:
            raise UnavailableError(f"The model {name} is being loaded by another request.") from None
        try:
            yield deadline - clock()
        finally:
            lock.release()

    def _put(self, request: LoadRequest, started: Started) -> tuple[LoadedModel, LoadedModel | None]:
        """List a model; itself, and the one of the same name that was listed."""
        model = LoadedModel(
            request,
            started,
            self._restart,
            max_waiting=self._settings.max_waiting,
            idle_seconds=self._settings.model_idle,
        )
        replaced = self._models.pop(request.name, None)
        self._models[request.name] = model
        log.info("model %s is loaded from %s", request.name, request.model_path)
        return model, replaced

    async def _restart(self, request: LoadRequest) -> Started:
        return await self._started(request, self._settings.load_timeout)

    async def _started(self, request: LoadRequest, seconds: float) -> Started:
        body = {
            "request": request.model_dump(exclude_none=True),
            "default_patch": self._settings.default_patch,
            "trusted": self._trusted,
        }
        order = LoadOrder(request.name, "volume", request.model_path, body)
        try:
            return await self._starter.start(order, seconds)
        except SegserveError as error:
            told = {**error.to_wire(), "message": request.told(below(error.message, self._ways))}
            if told["message"] != error.message:  # the paths that clients may not read, the log's readers need
                log.info("model %s: %s", request.name, error.message)
            raise SegserveError.from_wire(told) from None
