"""What jobs need besides their turn: completion, order after a server that was killed, and an end to what is kept."""

from __future__ import annotations

import asyncio
import logging

from segserve.jobs.book import Book
from segserve.jobs.folder import JobFolder
from segserve.jobs.record import ENDED, Job
from segserve.models.classifiers import Classifier, ClassifierStore
from segserve.state import StateDir

log = logging.getLogger(__name__)

# Of the server's running, not of the calendar: a clock that is set right must not take a checkpoint along.
KEEP_SECONDS = 7 * 24 * 3600.0
SWEEP_SECONDS = 600.0


class Upkeep:
    """Keeps records, folders and finished models in accord."""

    def __init__(self, book: Book, classifiers: ClassifierStore, state: StateDir) -> None:
        self._book = book
        self._classifiers = classifiers
        self._state = state

    def folder(self, identity: str) -> JobFolder:
        """The folder of a job."""
        return JobFolder(self._state.jobs, identity)

    async def recover(self) -> None:
        """Put in order what the last server left. One that ended by itself left nothing that still trains."""
        jobs = list(self._book.jobs.values())
        models = await asyncio.to_thread(self._classifiers.all_own)
        made = {str(model.metadata.get("job_id")): model for model in models}
        for job in jobs:
            try:
                await self._put_in_order(job, made.get(job.id))
            except Exception:  # of one job: the server and the others go on
                log.exception("job %s cannot be put in order", job.id)
                if job.state not in ENDED:
                    job.fail("An unexpected failure as the server started; its log tells more.")
                    self._book.changed(job)
        for job in jobs:
            self._book.in_background(self.folder(job.id).clear_work)
            if job.state in ENDED and not job.has_checkpoint:
                self._book.in_background(self.folder(job.id).remove_checkpoint)

    async def sweep(self) -> None:
        """Now and then: forget the checkpoints of what ended long ago. Never returns."""
        while True:
            await asyncio.to_thread(self._classifiers.sweep)
            await asyncio.sleep(SWEEP_SECONDS)
            for job in self._book.jobs.values():
                if job.state in ENDED and job.has_checkpoint:
                    job.kept += SWEEP_SECONDS
                    if job.kept > KEEP_SECONDS:
                        self._forget_checkpoint(job)
                    self._book.changed(job)

    def complete(self, job: Job, model: Classifier) -> None:
        """Note that a job has become a model."""
        figures = model.metadata["training"]
        job.model_id = model.id
        job.final_loss, job.final_accuracy = figures["final_loss"], figures["final_accuracy"]
        job.end("completed")
        self._forget_checkpoint(job)
        self._book.changed(job)

    async def _put_in_order(self, job: Job, model: Classifier | None) -> None:
        """Agree with what is on the disk; `model` is what the job has made, if anything."""
        if job.state == "training" and model:  # the end came between the model and its record
            self.complete(job, model)
        elif job.state == "training":
            await self._count_outage(job)
        elif job.state == "cancelled" and model and not job.resumable:  # between the model and its removal
            await self._book.in_thread(self._classifiers.delete, model.id)

    async def _count_outage(self, job: Job) -> None:
        folder = self.folder(job.id)
        job.look_back(await self._book.in_thread(folder.checkpoint_version))
        job.count_outage()
        if job.suspect:
            log.warning("job %s: %s", job.id, job.warnings[-1])
        self._book.changed(job)

    def _forget_checkpoint(self, job: Job) -> None:
        job.has_checkpoint = False
        self._book.in_background(self.folder(job.id).remove_checkpoint)
