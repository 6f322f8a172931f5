"""All jobs in memory: every change is written down in order and told to whoever watches.

Questions are answered from memory, so that a slow disk or a locked database never shows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from segserve.errors import DiskFullError, ReadOnlyError, SegserveError, UnavailableError, disk_trouble
from segserve.jobs.errors import missing
from segserve.jobs.record import Job
from segserve.jobs.store import JobStore

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
SETTLE_SECONDS = 5.0
P = ParamSpec("P")
R = TypeVar("R")


class Book:
    """The jobs by id, oldest first."""

    def __init__(self, open_store: Callable[[], JobStore]) -> None:
        """Keep jobs in the store that `open_store` gives once `open` is called."""
        self.jobs: dict[str, Job] = {}
        self._open_store = open_store
        self._store: JobStore | None = None
        self._records = ThreadPoolExecutor(1, "job records")
        self._folders = ThreadPoolExecutor(1, "job folders")
        self._unwritten: set[str] = set()
        self._after: dict[str, Callable[[], object]] = {}
        self._something = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._versions: dict[str, int] = {}
        self._watchers: dict[str, asyncio.Event] = {}

    async def open(self) -> None:
        """Read what is kept."""
        loop = asyncio.get_running_loop()
        self._store = await loop.run_in_executor(self._records, self._open_store)
        self.jobs = {job.id: job for job in await loop.run_in_executor(self._records, self._store.load)}
        self._writer = asyncio.create_task(self._write_down())

    async def close(self) -> None:
        """Write down what is not yet, and let go of the store."""
        if self._writer is None or self._store is None:
            return
        self._writer.cancel()
        with suppress(asyncio.CancelledError):
            await self._writer
        await self._write_last()
        await asyncio.get_running_loop().run_in_executor(self._records, self._store.close)
        await asyncio.to_thread(self._folders.shutdown)
        self._records.shutdown()

    async def check(self) -> None:
        """Find out whether a job could be written down now.

        Raises:
            SQLAlchemyError, OSError: it could not.
        """
        assert self._store
        await asyncio.get_running_loop().run_in_executor(self._records, self._store.check)

    async def in_thread(self, work: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
        """Run blocking work on jobs' folders in the one thread that touches them: in the order of the calls."""
        return await asyncio.get_running_loop().run_in_executor(self._folders, lambda: work(*arguments, **options))

    def in_background(self, work: Callable[..., object], *arguments: Any) -> None:
        """The same, waited for by nobody; a failure is logged."""
        future = self._folders.submit(work, *arguments)
        future.add_done_callback(_log_failure)

    def get(self, identity: str) -> Job:
        """A job.

        Raises:
            MissingError: there is none of that id.
        """
        try:
            return self.jobs[identity]
        except KeyError:
            raise missing(identity) from None

    async def add(self, job: Job) -> None:
        """Take a new job; it is on disk when this returns.

        Raises:
            UnavailableError, DiskFullError, ReadOnlyError: it cannot be written down now, and is not taken.
        """
        try:
            await self._save(job)
        except (SQLAlchemyError, OSError) as error:
            log.exception("a job cannot be written down")
            if trouble := _trouble(error):
                raise trouble from None
            raise UnavailableError("The server cannot write the training down at the moment: try again.") from None
        self.jobs[job.id] = job
        self._tell(job.id)

    def changed(self, job: Job) -> None:
        """Note that a job is no longer as it was: watchers hear of it now, the store soon."""
        self._tell(job.id)
        self._unwritten.add(job.id)
        self._something.set()

    async def settled(self, job: Job, after: Callable[[], object] | None = None) -> None:
        """Note a change and wait until it is on disk, though not for ever: a locked database must not show.

        Args:
            job: what has changed.
            after: work on its folder that frees room, done as soon as the change is on disk and not before, unless
                the disk is too full for that.
        """
        self._tell(job.id)
        if after:
            self._after[job.id] = after
        try:
            await asyncio.wait_for(self._save(job), SETTLE_SECONDS)
        except Exception:
            log.warning("job %s cannot be written down at once", job.id, exc_info=True)
            self.changed(job)

    def glimpsed(self, job: Job) -> None:
        """Note a change that is not worth writing down."""
        self._tell(job.id)

    async def watch(self, identity: str) -> AsyncIterator[Job]:
        """A job as it is, and again after each change.

        Raises:
            MissingError: there is none of that id.
        """
        seen = -1
        while True:
            job, version = self.get(identity), self._versions.get(identity, 0)
            if version != seen:
                seen = version
                yield job
            else:
                await self._watchers.setdefault(identity, asyncio.Event()).wait()

    def _tell(self, identity: str) -> None:
        self._versions[identity] = self._versions.get(identity, 0) + 1
        watched = self._watchers.pop(identity, None)
        if watched:
            watched.set()

    async def _save(self, job: Job) -> None:
        """Keep a job as it is now; saves follow each other in the order of the calls."""
        assert self._store
        copy, after = job.model_copy(deep=True), self._after.pop(job.id, None)
        try:
            await asyncio.get_running_loop().run_in_executor(self._records, self._store.save, copy)
        except BaseException as error:
            if after and isinstance(_trouble(error), DiskFullError):
                self.in_background(after)  # what it frees may be all the room that there is for the record
            elif after:
                self._after.setdefault(job.id, after)
            raise
        if after:
            self.in_background(after)

    async def _write_last(self) -> None:
        """Write down what is not yet, all within the time that one may take: the server is to end."""
        saves = {asyncio.create_task(self._save(self.jobs[identity])): identity for identity in self._unwritten}
        if not saves:
            return
        _, late = await asyncio.wait(saves, timeout=SETTLE_SECONDS)
        for save in late:
            save.cancel()
        for outcome, identity in zip(await asyncio.gather(*saves, return_exceptions=True), saves.values(), strict=True):
            if isinstance(outcome, BaseException):
                log.error("job %s cannot be written down", identity, exc_info=outcome)

    async def _write_down(self) -> None:
        troubled = False
        while True:
            await self._something.wait()
            self._something.clear()
            while self._unwritten:
                identity = self._unwritten.pop()
                try:
                    await self._save(self.jobs[identity])
                    troubled = False
                except (SQLAlchemyError, OSError):
                    if not troubled:  # said once: a disk may stay full for days
                        log.exception("job %s cannot be written down; trying again until it can", identity)
                    troubled = True
                    self._unwritten.add(identity)
                    await asyncio.sleep(RETRY_SECONDS)
                except asyncio.CancelledError:
                    self._unwritten.add(identity)
                    raise
                except Exception:  # one record that cannot be written must not keep the others from it
                    log.exception("job %s cannot be written down", identity)


def _trouble(error: BaseException) -> SegserveError | None:
    """What is wrong with the disk, from the system's error or SQLite's words for it; None if something else is."""
    text = str(error)
    if "disk is full" in text:
        return DiskFullError()
    return ReadOnlyError() if "readonly database" in text else disk_trouble(error)


def _log_failure(future: Any) -> None:  # noqa: ANN401  # a future of anything
    if not future.cancelled() and future.exception():
        log.error("a job's folder cannot be written", exc_info=future.exception())
