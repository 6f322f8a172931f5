"""The models of the model folders: seen, loaded in the background, and loaded when a request names them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from segserve.errors import SegserveError, UnavailableError
from segserve.models.shelf import Offer, Shelf
from segserve.settings import Settings
from segserve.workers.loaded import LoadedModel
from segserve.workers.supervisor import UNLOAD_SECONDS, Supervisor

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
SETTLE_SECONDS = 0.5
REST = 20
"""How many times as long as a look took to wait until the next, should that be more."""


@dataclass
class Standing:
    """An offer, and what became of it.

    Attributes:
        offer: as it was last seen.
        seen: the state of its files then.
        here: whether it was there at the last look.
        tried: the state of its files when it was last loaded, or last failed to.
        failure: of the last try.
        loading: the try that goes on.
        model: what the last try that succeeded gave; it may be unloaded, or replaced by a client's, since.
    """

    offer: Offer
    seen: str
    here: bool = True
    tried: str | None = None
    failure: SegserveError | None = None
    loading: asyncio.Task[None] | None = None
    model: LoadedModel | None = None


class Offers:
    """What lies in the model folders, by name. What a client loads under the same name goes first."""

    def __init__(self, supervisor: Supervisor, settings: Settings) -> None:
        self._supervisor = supervisor
        self._shelf = Shelf(settings.model_dir)
        self._preloaded = settings.preloaded
        self._standings: dict[str, Standing] = {}
        self._unwanted: set[str] = set()
        self._told: set[str] = set()
        self._looking = asyncio.Lock()
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def here(self) -> Mapping[str, Standing]:
        """What is offered now, by name."""
        return {name: standing for name, standing in self._standings.items() if standing.here}

    async def begin(self) -> None:
        """See what is there, then watch the folders and load in the background."""
        if not self._shelf.folders:
            return
        await self._look()
        for name in self._preloaded or []:
            if name not in self._standings:
                log.warning("the model %s is to be loaded at the start, but no model folder offers it", name)
        self._tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._load_in_turn())]

    async def close(self) -> None:
        """Watch no more, and stop what is being loaded."""
        loading = [standing.loading for standing in self._standings.values() if standing.loading]
        for task in (*self._tasks, *loading):
            task.cancel()
        await asyncio.gather(*self._tasks, *loading, return_exceptions=True)

    async def find(self, named: str) -> Offer | None:
        """The offer of a name, or of a path as it is shown to clients; the folders are looked at if it is unknown."""
        found = self._named(named)
        if found is None and self._shelf.folders:
            await self._look()
            found = self._named(named)
        return found

    async def ready(self, name: str) -> None:
        """Load what a request names, if it is offered and not loaded, or has changed and nobody else will load it.

        Raises:
            SegserveError: it cannot be loaded, and why; not if what was loaded before still serves.
        """
        loaded = name in self._supervisor.models
        if not loaded:
            await self.find(name)
        standing = self._standings.get(name)
        if standing is None or not standing.here or (loaded and not self._is_behind(standing)):
            return
        self._unwanted.discard(name)
        task = standing.loading or self._begin_to_load(standing)
        await asyncio.wait([task])
        if loaded:
            return
        if task.cancelled():
            raise UnavailableError(f"The model {name} was unloaded.")
        task.result()

    async def withdraw(self, name: str) -> bool:
        """Load an offer no more until a request names it; true if it was being loaded, or waited for that."""
        standing = self._standings.get(name)
        if standing is None:
            return False
        was_coming = standing.loading is not None or self._is_due(name, standing)
        self._unwanted.add(name)
        if standing.loading:
            standing.loading.cancel()
            await asyncio.wait([standing.loading], timeout=UNLOAD_SECONDS)
        return was_coming

    def state_of(self, name: str) -> dict[str, Any]:
        """What a client is told of an offer: `loading` while it is, and `error` if the last try failed."""
        standing = self._standings.get(name)
        if standing is None or self._is_taken(name, standing):
            return {}
        told: dict[str, Any] = {"loading": True} if standing.loading else {}
        return {**told, "error": standing.failure.message} if standing.failure else told

    def _named(self, named: str) -> Offer | None:
        for name, standing in self.here.items():
            if named in {name, standing.offer.shown_path}:
                return standing.offer
        return None

    async def _watch(self) -> None:
        clock = asyncio.get_running_loop().time
        spent = 0.0
        while True:
            await asyncio.sleep(max(LOOK_SECONDS, REST * spent))
            began = clock()
            try:
                await self._look()
            except Exception:  # whatever lies there, the next look may fare better
                log.exception("the model folders could not be looked at")
            spent = clock() - began

    async def _look(self) -> None:
        async with self._looking:
            seen = await asyncio.to_thread(self._shelf.look)
            if seen.unsettled:
                await asyncio.sleep(SETTLE_SECONDS)
                seen = await asyncio.to_thread(self._shelf.look)
        for note in seen.notes:
            if note not in self._told:
                log.warning("%s", note)
        self._told = set(seen.notes)
        self._take(seen.offers)

    def _take(self, offers: Mapping[str, Offer]) -> None:
        for name, offer in offers.items():
            standing = self._standings.setdefault(name, Standing(offer, seen=""))
            standing.here = True
            if offer.state != standing.seen:
                standing.offer, standing.seen, standing.failure = offer, offer.state, offer.failure
                if offer.failure:
                    standing.tried = offer.state
                    _tell(standing)
        for name in self._standings.keys() - offers.keys():
            standing = self._standings[name]
            standing.here = False
            if not standing.loading and not self._is_ours(standing):
                del self._standings[name]
        self._news.set()

    async def _load_in_turn(self) -> None:
        while True:
            due = next((one for name, one in self._standings.items() if self._is_due(name, one)), None)
            if due is None:
                self._news.clear()
                await self._news.wait()
            else:
                await asyncio.wait([self._begin_to_load(due)])

    def _is_due(self, name: str, standing: Standing) -> bool:
        """Whether it is to be loaded in the background."""
        wanted = name not in self._unwanted and (self._preloaded is None or name in self._preloaded)
        return wanted and self._has_changed(standing) and not self._is_taken(name, standing)

    def _is_taken(self, name: str, standing: Standing) -> bool:
        """Whether a client has loaded another model under the name."""
        return name in self._supervisor.models and not self._is_ours(standing)

    def _is_behind(self, standing: Standing) -> bool:
        """Whether what is loaded is not what lies there now, and will not be loaded in the background."""
        name = standing.offer.name
        return self._is_ours(standing) and self._has_changed(standing) and not self._is_due(name, standing)

    @staticmethod
    def _has_changed(standing: Standing) -> bool:
        return standing.here and not standing.loading and standing.tried != standing.seen

    def _is_ours(self, standing: Standing) -> bool:
        return standing.model is not None and self._supervisor.models.get(standing.offer.name) is standing.model

    def _begin_to_load(self, standing: Standing) -> asyncio.Task[None]:
        standing.tried = standing.seen
        standing.loading = asyncio.create_task(self._load(standing))
        standing.loading.add_done_callback(partial(self._ended, standing))
        return standing.loading

    async def _load(self, standing: Standing) -> None:
        expected = standing.model if self._is_ours(standing) else None
        model = await self._supervisor.load_over(standing.offer.request(), expected)
        if model:
            standing.model = model

    @staticmethod
    def _ended(standing: Standing, task: asyncio.Task[None]) -> None:
        standing.loading = None
        if task.cancelled():
            return
        error = task.exception()
        standing.failure = error if isinstance(error, SegserveError) else None
        if standing.failure:
            _tell(standing)
        elif error:
            standing.failure = SegserveError("It could not be loaded: the server's log says why.")
            log.error("the model %s could not be loaded", standing.offer.name, exc_info=error)


def _tell(standing: Standing) -> None:
    if standing.failure:
        log.warning("the model %s cannot be loaded: %s", standing.offer.name, standing.failure.message)
