"""The queue of trainings: one at a time on a device, in order, through pauses, deaths and restarts."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from typing import Any

from segserve import logs
from segserve.errors import SegserveError, UnavailableError, disk_trouble
from segserve.jobs.book import Book
from segserve.jobs.folder import JobFolder
from segserve.jobs.record import ENDED, Job
from segserve.jobs.run import MOMENTARY, End, Run
from segserve.jobs.upkeep import Upkeep
from segserve.models.classifiers import Classifier, ClassifierStore
from segserve.state import StateDir
from segserve.training.spec import TrainingSpec
from segserve.workers.placement import Placement

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 20.0  # to write a checkpoint when everything is cleared
CLOSE_SECONDS = 8.0  # and when the server stops
START_AGAIN_SECONDS = 10.0  # after a process could not be started
PUBLISH_AGAIN_SECONDS = 5.0  # after a finished model could not be stored
# A training that takes the machine's memory, and the server with it, is not begun sooner after the server's start: it
# has to be in reach of who wants to pause or cancel it, whom starting it at once would shut out for ever.
SUSPECT_SECONDS = 30.0
TURN_SECONDS = 0.001


class Runner:
    """Runs trainings and alone changes their records and folders."""

    def __init__(
        self,
        placement: Placement,
        book: Book,
        classifiers: ClassifierStore,
        state: StateDir,
        *,
        devices: Sequence[str],
        options: dict[str, Any],
    ) -> None:
        """Run trainings.

        Args:
            placement: where their processes run.
            book: their records.
            classifiers: gets the finished models.
            state: has their folders.
            devices: `cuda:N`, `mps` or `cpu`; each trains one job at a time.
            options: settings that every training process needs, as JSON.
        """
        self._placement = placement
        self._book = book
        self._classifiers = classifiers
        self._upkeep = Upkeep(book, classifiers, state)
        self._free = list(devices)
        self._options = options
        self._runs: dict[str, Run] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._cleared: set[str] = set()
        self._closing = False
        self._just_started = True
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the records; what ran or waited when the last server ended is queued again."""
        await self._book.open()
        await self._upkeep.recover()
        self._sweeper = asyncio.create_task(self._upkeep.sweep())
        asyncio.get_running_loop().call_later(SUSPECT_SECONDS, self._begin_suspects)
        self._serve_queue()

    async def close(self) -> None:
        """Give running trainings a moment to write a checkpoint, then end them; the next server resumes them."""
        if self._closing:
            return
        self._closing = True
        if self._sweeper:
            self._sweeper.cancel()
        await self._end_runs(CLOSE_SECONDS)
        await self._book.close()

    async def submit(self, spec: TrainingSpec, warnings: Sequence[str]) -> Job:
        """Take a training; its folder and its record are on disk when this returns.

        Raises:
            UnavailableError, DiskFullError, ReadOnlyError: it cannot be written down now.
        """
        self._refuse_when_closing()
        job = Job(id=self._new_id(), spec=spec, warnings=list(warnings), enqueued=self._turn())
        folder = self.folder(job.id).root
        try:
            await self._book.in_thread(folder.mkdir, parents=True, exist_ok=True)
        except OSError as error:
            log.warning("the folder of a training cannot be made: %s", error)
            raise disk_trouble(error) or UnavailableError(
                f"The server cannot write its folder of trainings at the moment ({error.strerror}): try again."
            ) from None
        try:
            await self._book.add(job)
        except SegserveError:
            self._book.in_background(folder.rmdir)
            raise
        self._serve_queue()
        return job

    async def cancel(self, identity: str) -> Job:
        """End a job for good and free its room; one that has ended already stays as it is."""
        job = self._book.get(identity)
        self._refuse_when_closing()
        if job.state not in ENDED:
            job.has_checkpoint = False  # before anything is waited for: from now on nobody can resume it
            job.end("cancelled")
            if run := self._runs.get(identity):
                await run.stop()
            # A record that still says otherwise would be believed by the next server.
            await self._book.settled(job, after=self.folder(identity).remove_checkpoint)
        return job

    async def pause(self, identity: str) -> Job:
        """Stop a job so that it can go on later.

        Raises:
            BadInputError: it has ended.
        """
        job = self._book.get(identity)
        self._refuse_when_closing()
        job.pause()
        if job.pause_asked and (run := self._runs.get(identity)):
            await run.pause()
        await self._book.settled(job)
        return job

    def check_resumable(self, identity: str) -> Job:
        """A job that can be resumed.

        Raises:
            BadInputError: this one cannot.
        """
        job = self._book.get(identity)
        job.check_resumable(running=identity in self._runs)
        return job

    async def resume(self, identity: str, spec: TrainingSpec) -> Job:
        """Queue a job again, perhaps changed; it goes on where its checkpoint is.

        Raises:
            BadInputError: its state does not allow it.
        """
        job = self.check_resumable(identity)
        self._refuse_when_closing()
        job.resume(spec, self._turn())
        await self._book.settled(job)
        self._serve_queue()
        return job

    async def clear(self) -> list[str]:
        """Cancel what runs, keeping its checkpoint, and pause what waits; both are on disk when this returns.

        Returns:
            The ids of those that ran and were cancelled, not of any that came to its own end meanwhile.
        """
        waiting = [job for job in self._book.jobs.values() if job.state == "queued"]
        for job in waiting:
            job.pause()
        running = [run.job for run in self._runs.values()]
        self._cleared |= {job.id for job in running}
        await self._end_runs(CHECKPOINT_SECONDS)
        await asyncio.gather(*(self._book.settled(job) for job in [*waiting, *running]))
        return [job.id for job in running if job.state == "cancelled"]

    def folder(self, identity: str) -> JobFolder:
        """The folder of a job."""
        return self._upkeep.folder(identity)

    async def _end_runs(self, seconds: float) -> None:
        """Ask every run that trains for a checkpoint, then end those that have not ended by themselves."""
        runs, tasks = list(self._runs.values()), list(self._tasks.values())
        training = [self._tasks[run.job.id] for run in runs if run.job.stage == "training"]
        await asyncio.gather(*(run.pause() for run in runs))
        if training:
            await asyncio.wait(training, timeout=seconds)
        await asyncio.gather(*(run.stop() for run in runs))
        await asyncio.gather(*tasks)

    def _begin_suspects(self) -> None:
        self._just_started = False
        self._serve_queue()

    def _refuse_when_closing(self) -> None:
        if self._closing:
            raise UnavailableError("The server is shutting down.")

    def _serve_queue(self) -> None:
        """Start what waits, as long as there are free devices."""
        waiting = [job for job in self._book.jobs.values() if job.state == "queued"]
        ready = [job for job in waiting if not (job.suspect and self._just_started)]
        for job in sorted(ready, key=lambda j: j.enqueued):
            if not self._free or self._closing:
                return
            job.start()
            run = Run(job, self.folder(job.id), self._free.pop(0), self._book)
            self._runs[job.id] = run
            self._tasks[job.id] = asyncio.create_task(self._train(run))
            self._book.changed(job)

    async def _train(self, run: Run) -> None:
        job = run.job
        logs.about_job(job.id)
        rest = 0.0
        try:
            end = await run.to_end(
                self._placement,
                {
                    "spec": job.spec.model_dump(mode="json"),
                    "device": run.device,
                    "resume": job.has_checkpoint,
                    "same_batches": job.same_batches,
                    **self._options,
                },
            )
            rest = START_AGAIN_SECONDS if end.how == "not started" else 0.0
            await self._conclude(run, end)
        except Exception:
            log.exception("job %s", job.id)
            if job.state not in ENDED:
                job.fail("An unexpected failure; the server's log tells more.")
        finally:
            self._runs.pop(job.id, None)
            self._tasks.pop(job.id, None)
            self._cleared.discard(job.id)
            self._book.in_background(run.folder.clear_work)
            self._book.changed(job)
            if rest:
                asyncio.get_running_loop().call_later(rest, self._give_back, run.device)
            else:
                self._give_back(run.device)

    def _give_back(self, device: str) -> None:
        self._free.append(device)
        self._serve_queue()

    async def _conclude(self, run: Run, end: End) -> None:
        job = run.job
        if job.state == "cancelled":
            return
        if end.how == "finished" and await self._publish(run, end.reply):
            return
        if end.how == "failed":
            job.fail(end.reason, blameless=end.blameless)
            self._book.in_background(run.folder.append, [f"failed: {end.reason}"])
        elif job.id in self._cleared:
            job.blameless = True
            job.end("cancelled")
        elif end.how in {"paused", "finished"} or self._closing:
            job.stop("queued")  # unless a pause was asked for, it was the server's end: the next one goes on
        elif end.how == "not started":
            log.warning("job %s: %s", job.id, end.reason)
            job.warn(end.reason)
            job.stop("queued")
        else:
            job.count_death(end.reason, end.log_end)
            self._book.in_background(run.folder.append, [f"the training's process ended: {end.reason}"])

    async def _publish(self, run: Run, reply: dict[str, Any]) -> bool:
        """Make a model of a finished training; False if the server ended it while that was not possible."""
        job = run.job
        try:
            model = await self._stored(run, reply["metadata"])
        except OSError as error:
            log.exception("the model of job %s cannot be published", job.id)
            trouble = disk_trouble(error)
            why = trouble.message if trouble else f"{error.strerror}."
            job.fail(f"The finished model could not be stored: {why}", blameless=True)
            return True
        if job.state == "cancelled":  # meanwhile
            if model:
                await self._book.in_thread(self._classifiers.delete, model.id)
            return True
        if model is None:
            return False
        for warning in reply["warnings"]:
            job.warn(warning)
        self._upkeep.complete(job, model)
        log.info("job %s is completed: model %s", job.id, model.id)
        return True

    async def _stored(self, run: Run, described: dict[str, Any]) -> Classifier | None:
        """The model of a finished training; waits out what lasts a moment, and is None if the run is stopped then.

        Raises:
            OSError: it cannot be stored.
        """
        job = run.job
        kind, metadata = job.spec.architecture.type, {**described, "job_id": job.id}
        while True:
            try:
                return await self._book.in_thread(self._classifiers.publish, run.folder.model, kind, metadata)
            except OSError as error:
                if error.errno not in MOMENTARY:
                    raise
                log.warning("the model of job %s cannot be published yet: %s", job.id, error.strerror)
            if await run.stopped_within(PUBLISH_AGAIN_SECONDS):
                return None

    def _turn(self) -> float:
        """A moment later than all at which others were queued, even if the clock was set back since."""
        return max([time.time(), *(job.enqueued + TURN_SECONDS for job in self._book.jobs.values())])

    def _new_id(self) -> str:
        while (identity := secrets.token_hex(4)) in self._book.jobs:
            pass
        return identity
