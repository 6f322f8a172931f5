"""One tile network's process, from its start to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from segserve.errors import SegserveError
from segserve.models.tile_files import TileFile
from segserve.workers.placement import Call, WorkerDiedError
from segserve.workers.starter import LoadOrder, Started, Starter


class TileProcess:
    """A process that loads a network and then classifies tiles for many requests at once.

    Attributes:
        file: the network it was started for.
        successor: the process that will take its place once it has loaded a changed file.
        busy: requests it has not answered.
        used: when it was last asked, on the monotonic clock.
        missing_since: when its file was first seen to be away.
    """

    def __init__(
        self,
        starter: Starter,
        file: TileFile,
        shown: str,
        wish: dict[str, Any],
        seconds: float,
        room: asyncio.Semaphore | None = None,
    ) -> None:
        """Start it, as soon as there is room; one that will take another's place needs none of its own."""
        self.file = file
        self.successor: TileProcess | None = None
        self.busy = 0
        self.used = time.monotonic()
        self.missing_since: float | None = None
        self._free = asyncio.Event()
        self._free.set()
        self._room: asyncio.Semaphore | None = None
        order = LoadOrder(file.path.parent.name, "tiles", shown, {"path": str(file.path), "wish": wish})
        self._started = asyncio.ensure_future(self._start(starter, order, seconds, room))

    @property
    def loaded(self) -> bool:
        """Whether it has finished loading."""
        return self._started.done()

    @property
    def alive(self) -> bool:
        """Whether it is loading, or can be asked."""
        if not self._started.done():
            return True
        if self._started.cancelled() or self._started.exception():
            return False
        return self._started.result().worker.alive

    @property
    def failed_by_chance(self) -> bool:
        """Whether it could not load for a reason that is not the file's, such as being killed."""
        if not self._started.done() or self._started.cancelled():
            return False
        error = self._started.exception()
        return isinstance(error, WorkerDiedError) or (isinstance(error, SegserveError) and error.status >= 500)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Counts as busy meanwhile."""
        self.busy += 1
        self._free.clear()
        try:
            yield
        finally:
            self.busy -= 1
            self.used = time.monotonic()
            if not self.busy:
                self._free.set()

    def idle_for(self) -> float:
        """Seconds since it was last asked."""
        return time.monotonic() - self.used

    def missing_for(self) -> float:
        """Seconds since its file was first seen to be away, which is now at the latest."""
        now = time.monotonic()
        self.missing_since = self.missing_since or now
        return now - self.missing_since

    async def ready(self) -> Started:
        """Wait until the network is loaded.

        Raises:
            SegserveError: it cannot be.
            WorkerDiedError: it was ended meanwhile.
        """
        try:
            return await asyncio.shield(self._started)
        except asyncio.CancelledError:
            if self._started.cancelled():  # ended while it was loading, by another request
                raise WorkerDiedError("it was unloaded while it was being loaded", began=False, killed=True) from None
            raise

    async def ask(self, call: Call) -> dict[str, Any]:
        """Ask it, once it has loaded.

        Raises:
            SegserveError: it cannot load, or what it found wrong.
            WorkerDiedError: it died first.
        """
        return await (await self.ready()).worker.call(call)

    async def stop_when_free(self) -> None:
        """End it once it has answered what it was asked."""
        await self._free.wait()
        await self.stop()

    async def stop(self) -> None:
        """End it, whatever it is doing."""
        self._started.cancel()
        with suppress(asyncio.CancelledError, SegserveError, WorkerDiedError):
            started = await self._started
            await started.worker.stop()
        self._leave_room()
        if self.successor:
            await self.successor.stop()

    def take_the_place_of(self, other: TileProcess) -> None:
        """Have the room that another has; who waits for room goes on waiting when that one ends."""
        self._room, other._room = other._room, None

    async def _start(
        self, starter: Starter, order: LoadOrder, seconds: float, room: asyncio.Semaphore | None
    ) -> Started:
        if room:
            await room.acquire()
            self._room = room
        try:
            return await starter.start(order, seconds)
        except BaseException:
            self._leave_room()
            raise

    def _leave_room(self) -> None:
        if self._room:
            self._room.release()
            self._room = None
