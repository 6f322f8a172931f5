"""One life of a training process: what it is told, what it tells, how it ends."""

from __future__ import annotations

import asyncio
import errno
import logging
from dataclasses import dataclass
from typing import Any, Literal

from segserve.errors import SegserveError, disk_trouble
from segserve.jobs.book import Book
from segserve.jobs.folder import JobFolder
from segserve.jobs.record import Job
from segserve.workers.placement import Call, Placement, Worker, WorkerDiedError

log = logging.getLogger(__name__)

PAUSE = "pause"
# They can take minutes, and look out for no pause.
BEFORE_BATCHES = frozenset({"starting", "weights", "data"})
MACHINE_TROUBLE = frozenset({503, 507})
# Too many processes, open files or too little memory just now: nothing is wrong with the training or its folder.
MOMENTARY = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


@dataclass(frozen=True)
class End:
    """How it ended: `how`, and what the process replied or why it did not; `paused` also if the server ended it.

    Attributes:
        log_end: of one that died.
        blameless: it failed for something that is wrong with the machine, not with the training.
    """

    how: Literal["finished", "paused", "failed", "died", "not started"]
    reply: dict[str, Any]
    reason: str = ""
    log_end: str = ""
    blameless: bool = False


class Run:
    """A job while a process trains it."""

    def __init__(self, job: Job, folder: JobFolder, device: str, book: Book) -> None:
        self.job = job
        self.folder = folder
        self.device = device
        self._book = book
        self._worker: Worker | None = None
        self._stopped = asyncio.Event()
        self._history: list[dict[str, Any]] = []
        self._working = False

    async def to_end(self, placement: Placement, body: dict[str, Any]) -> End:
        """Start the process and wait for its end, writing down what it tells."""
        try:
            await self._book.in_thread(self.folder.prepare)
        except OSError as error:
            return _not_prepared(error)
        self.job.began_with = await self._book.in_thread(self.folder.checkpoint_version)
        self._book.changed(self.job)
        try:
            self._worker = await placement.start(f"training {self.job.id}", "training")
        except OSError as error:
            return _not_started(error)
        return await self._life(self._worker, body)

    async def _life(self, worker: Worker, body: dict[str, Any]) -> End:
        outputs = {"model": self.folder.model, "checkpoint": self.folder.checkpoint}
        try:
            if self._stopped.is_set():
                await worker.stop()
            reply = await worker.call(Call("train", body, outputs=outputs, scratch=self.folder.scratch), self._hear)
        except SegserveError as error:
            return End("failed", {}, error.message, blameless=error.status in MACHINE_TROUBLE)
        except WorkerDiedError as error:
            version = await self._book.in_thread(self.folder.checkpoint_version)
            if self.job.state == "training":  # not cancelled
                self.job.look_back(version)
            if self._stopped.is_set():
                return End("paused", {})
            return await self._death(str(error))
        finally:
            self.job.trouble = ""
            await asyncio.shield(worker.stop())
        return End("paused" if reply["outcome"] == "paused" else "finished", reply)

    async def pause(self) -> None:
        """Ask for a checkpoint and an end, after the batch at hand; before the first there is nothing to keep."""
        if self.job.stage in BEFORE_BATCHES:
            await self.stop()
        elif self._worker:
            self._worker.tell(PAUSE)

    async def stop(self) -> None:
        """End the process now."""
        self._stopped.set()
        if self._worker:
            await self._worker.stop()

    async def stopped_within(self, seconds: float) -> bool:
        """Whether its end is or comes to be asked for; waits so long for that."""
        try:
            await asyncio.wait_for(self._stopped.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def _death(self, reason: str) -> End:
        return End("died", {}, reason, log_end=await self._book.in_thread(self.folder.log_end))

    def _hear(self, event: dict[str, Any]) -> None:
        """Take in one event of the process."""
        job, kind = self.job, event["kind"]
        if job.state != "training":
            return  # cancelled meanwhile
        if kind == "log":
            self._book.in_background(self.folder.append, [event["line"]])
            return
        if kind == "past epoch":
            self._history.append(event["epoch"])
            return
        if not self._working:
            self._begin()
        if kind == "batch":
            job.batch, job.batches, job.batch_loss = event["batch"], event["batches"], event["loss"]
            self._book.glimpsed(job)
            return
        self._note(event)
        self._book.changed(job)

    def _note(self, event: dict[str, Any]) -> None:
        """Take in an event that changes the record."""
        job, kind = self.job, event["kind"]
        if kind == "epoch":
            job.latest, job.batch = event["epoch"], 0
            self._history.append(event["epoch"])
            self._book.in_background(self.folder.write_history, list(self._history))
        elif kind == "stage":
            job.stage = event["stage"]
        elif kind == "started":
            job.device, job.device_info = event["device"], event["info"]
            for warning in event["warnings"]:
                job.warn(warning)
        elif kind == "checkpoint":
            job.note_checkpoint()
        elif kind == "trouble":
            job.trouble = event["text"]

    def _begin(self) -> None:
        """Take over what its checkpoint knows, before its first own news.

        An earlier life may have told of epochs after that, which are done again, or not have been heard to its end.
        """
        self._working = True
        self.job.latest = self._history[-1] if self._history else None
        self._book.in_background(self.folder.write_history, list(self._history))


def _not_started(error: OSError) -> End:
    why = error.strerror or error
    reason = f"The server could not start this training's process when its turn came ({why}), and waited to try again."
    return End("not started", {}, reason)


def _not_prepared(error: OSError) -> End:
    if error.errno in MOMENTARY:
        return _not_started(error)
    trouble = disk_trouble(error)
    reason = trouble.message if trouble else f"The training's files cannot be written: {error.strerror}."
    return End("failed", {}, reason, blameless=True)
