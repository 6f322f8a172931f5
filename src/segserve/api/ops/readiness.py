"""Whether the server can do work, found out by doing a little of each kind."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time

from sqlalchemy.exc import SQLAlchemyError

from segserve.errors import DiskFullError, NoDescriptorError, ReadOnlyError, human_bytes
from segserve.jobs.book import Book
from segserve.state import StateDir
from segserve.workers.placement.watched import WatchedPlacement

log = logging.getLogger(__name__)

LEAST_FREE = 64 * 2**20
PROBE = b"x" * 4096
ANSWER_SECONDS = 5.0
GOOD_SECONDS, BAD_SECONDS = 10.0, 2.0
"""How long a finding stands: probes may come as often as they like, and a mended server is soon seen."""


class Readiness:
    """What keeps the server from working.

    Attributes:
        closing: the server is shutting down.
    """

    def __init__(self, state: StateDir, book: Book, watched: WatchedPlacement) -> None:
        self.closing = False
        self._state = state
        self._book = book
        self._watched = watched
        self._found: list[str] = []
        self._stands_until = 0.0
        self._turn = asyncio.Lock()
        self._probe: asyncio.Task[str] | None = None

    async def reasons(self) -> list[str]:
        """Why the server cannot work, in sentences that name nothing; empty if it can."""
        async with self._turn:
            if not self.closing and time.monotonic() >= self._stands_until:
                found = [
                    reason for reason in await asyncio.gather(self._disk(), self._records(), self._workers()) if reason
                ]
                if found != self._found:
                    log.warning("%s", " ".join(found) or "The server can work again.")
                self._found = found
                self._stands_until = time.monotonic() + (BAD_SECONDS if found else GOOD_SECONDS)
        return ["The server is shutting down."] if self.closing else self._found

    async def _disk(self) -> str:
        # One at a time: a network disk that hangs must not take up one thread after the other.
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(asyncio.to_thread(self._write))
        try:
            return await asyncio.wait_for(asyncio.shield(self._probe), ANSWER_SECONDS)
        except TimeoutError:
            return "The state directory does not answer."

    def _write(self) -> str:
        try:
            with self._state.scratch() as folder:
                (folder / "probe").write_bytes(PROBE)
                free = shutil.disk_usage(folder).free
        except DiskFullError:
            return "The state directory cannot be written: its disk is full."
        except ReadOnlyError:
            return "The state directory cannot be written: it is read-only."
        except NoDescriptorError:
            return "The state directory cannot be written: too many files are open."
        except OSError as error:
            return f"The state directory cannot be written: {error.strerror}."
        return f"The state directory's disk has only {human_bytes(free)} left." if free < LEAST_FREE else ""

    async def _records(self) -> str:
        try:
            await asyncio.wait_for(self._book.check(), ANSWER_SECONDS)
        except (SQLAlchemyError, OSError, TimeoutError):
            log.info("the job records cannot be written", exc_info=True)
            return "The records of trainings cannot be written."
        return ""

    async def _workers(self) -> str:
        if self._watched.start_failed:
            return "A process could not be started."
        silent = await self._watched.silent(ANSWER_SECONDS)
        for worker in silent:
            log.info("the process %d (%s, %s) does not answer", worker.pid, worker.kind, worker.label)
        return "The process of a loaded model does not answer." if silent else ""
