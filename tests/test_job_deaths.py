"""What a job survives: deaths of its process and of its server, a disk that is full, a clock that jumps."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from segserve.errors import BadInputError, DiskFullError
from segserve.jobs.book import Book
from segserve.jobs.folder import JobFolder
from segserve.jobs.journal import journal_mode
from segserve.jobs.record import Job
from segserve.jobs.runner import Runner
from segserve.jobs.store import SqlJobStore
from segserve.models.classifiers import ClassifierStore
from segserve.state import StateDir
from segserve.workers.placement import WorkerDiedError
from tests.scripted_jobs import (
    FINISHED,
    Process,
    Processes,
    Script,
    completes,
    dies,
    fails,
    hangs,
    kept,
    running,
    spec,
    until,
    waits_for_pause,
)

Life = Callable[[Runner, Book], Awaitable[None]]


async def talks_and_dies(process: Process) -> dict[str, Any]:
    for number in range(9):
        process.say("log", line=f"12:00 INFO epoch {number}: the loss is high")
    raise WorkerDiedError("its process crashed (SIGSEGV)", began=True)


async def saves_and_hangs(process: Process) -> dict[str, Any]:
    process.say("stage", stage="training")
    process.finish_epoch(1)
    process.save()
    await asyncio.Event().wait()
    return FINISHED


async def finds_no_room(process: Process) -> dict[str, Any]:
    raise DiskFullError


async def killed_server(root: Path, script: Script, life: Life) -> None:
    """A server's life that ends without a word: only what is on disk by then is left."""
    state = StateDir(root / "state")
    for folder in (state.jobs, state.models):
        folder.mkdir(parents=True, exist_ok=True)
    book = Book(lambda: SqlJobStore(state.job_records))
    classifiers = ClassifierStore(state.models, root / "foreign")
    runner = Runner(Processes(script), book, classifiers, state, devices=["cpu"], options={})
    await runner.start()
    await life(runner, book)
    await until(lambda: not book._unwritten and not book._something.is_set())
    await book.in_thread(lambda: None)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    book._save = None  # type: ignore[method-assign, assignment]  # a dead server writes nothing more


def recorded(root: Path, job: Job) -> None:
    store = SqlJobStore(root / "state" / "jobs.sqlite")
    store.save(job)
    store.close()


def test_a_training_that_died_twice_tells_the_end_of_its_log(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path, talks_and_dies) as (runner, _, processes):
            job = await runner.submit(spec(), [])
            await until(lambda: job.state == "failed")
            assert len(processes.started) == 2
            assert "twice" in job.error
            assert "SIGSEGV" in job.error
            assert "epoch 8: the loss is high" in job.error
            assert "epoch 0" not in job.error
            assert "\n" not in job.error

    asyncio.run(story())
