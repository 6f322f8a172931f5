"""How far each request to segment is, for whoever watches it by its id."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from fastapi.sse import ServerSentEvent
from starlette.exceptions import HTTPException

from segserve.api.delivery import HungUpError
from segserve.errors import SegserveError

WAIT_SECONDS = 60.0
"""How long a watcher who comes before its request waits for it."""
KEPT_SECONDS = 60.0
"""How long the progress of a request that has ended can be read."""
EVENT_SECONDS = 0.25

End = Literal["done", "failed", "cancelled"]


class _Bell:
    """Wakes everybody who waits for it, each time it rings."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        await self._event.wait()


class Track:
    """One request's way from its upload to its answer."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._stages: dict[str, dict[str, Any]] = {}
        self._last: ServerSentEvent | None = None
        self._bell = _Bell()

    @property
    def running(self) -> bool:
        """Whether the request has not ended."""
        return self._last is None

    def tell(self, stage: str, done: int, total: int) -> None:
        """Say how far the request is: `done` of `total` in a stage."""
        self._stages[stage] = self._data(stage, done, total)
        self._bell.ring()

    def hear(self, event: dict[str, Any]) -> None:
        """Take a worker's word for it."""
        self.tell(event["stage"], event["done"], event["total"])

    def end(self, kind: End, **more: str) -> None:
        """Say how the request ended; `more` goes into the last event."""
        reached = list(self._stages.values())[-1:] or [{"stage": "received", "done": 0, "total": 0}]
        stage = "done" if kind == "done" else reached[0]["stage"]
        data = self._data(stage, reached[0]["done"], reached[0]["total"])
        self._last = ServerSentEvent(event=kind, data={**data, **more})
        self._bell.ring()

    async def events(self) -> AsyncIterator[ServerSentEvent]:
        """Each stage at least once, its latest word only, then the end."""
        place, told = 0, None
        while True:
            stages = list(self._stages.values())
            if place < len(stages) and stages[place] is not told:
                told = stages[place]
                yield ServerSentEvent(event="progress", data=told)
                await asyncio.sleep(EVENT_SECONDS)
            elif place + 1 < len(stages):
                place += 1
            elif self._last:
                yield self._last
                return
            else:
                await self._bell.wait()

    def _data(self, stage: str, done: int, total: int) -> dict[str, Any]:
        seconds = round(time.monotonic() - self._began, 3)
        return {"stage": stage, "done": done, "total": total, "seconds": seconds}


class Progress:
    """The requests in flight, and those that ended a moment ago, by their ids."""

    def __init__(self) -> None:
        self._tracks: dict[str, Track] = {}
        self._bell = _Bell()

    @contextmanager
    def track(self, identity: str) -> Iterator[Track]:
        """Follow a request while this lasts; the exception that ends it tells how it ended.

        Raises:
            SegserveError: another one of that id is in flight (409).
        """
        known = self._tracks.get(identity)
        if known and known.running:
            raise SegserveError(
                f"A request with the id {identity} is under way: give each request its own X-Request-ID, or none.",
                status=409,
            )
        track = self._tracks[identity] = Track()
        self._bell.ring()
        try:
            yield track
        except (HungUpError, asyncio.CancelledError):
            track.end("cancelled")
            raise
        except Exception as error:
            track.end("failed", error=_sentence(error))
            raise
        else:
            track.end("done")
        finally:
            asyncio.get_running_loop().call_later(KEPT_SECONDS, self._forget, identity, track)

    async def watch(self, identity: str) -> AsyncIterator[ServerSentEvent]:
        """The events of a request, from its beginning to its end; waits for one that has not come yet."""
        async for event in (await self._found(identity)).events():
            yield event

    async def _found(self, identity: str) -> Track:
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while identity not in self._tracks:
                    await self._bell.wait()
            return self._tracks[identity]
        except TimeoutError:
            missing = Track()
            missing.end("failed", error=f"No request with the id {identity} came within {WAIT_SECONDS:.0f} s.")
            return missing

    def _forget(self, identity: str, track: Track) -> None:
        if self._tracks.get(identity) is track:
            del self._tracks[identity]


def _sentence(error: Exception) -> str:
    if isinstance(error, SegserveError):
        return error.message
    return str(error.detail) if isinstance(error, HTTPException) else "An unexpected failure; the log tells more."
