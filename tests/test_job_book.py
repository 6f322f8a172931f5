"""Records that cannot be written for a while: what waits for them, and how long."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from sqlalchemy.exc import OperationalError

from segserve.jobs.book import Book
from segserve.jobs.record import Job
from segserve.jobs.store import SqlJobStore
from tests.scripted_jobs import kept, running, saves_and_hangs, spec, until


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """The records, held by another program."""
    lock = sqlite3.connect(root / "state" / "jobs.sqlite", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    yield
    lock.execute("ROLLBACK")
    lock.close()


def test_a_cancelled_jobs_checkpoint_stays_until_its_record_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is killed before would leave a record of a training that goes on from there."""
    monkeypatch.setattr("segserve.jobs.store.BUSY_MILLISECONDS", 20)

    async def story() -> None:
        async with running(tmp_path, saves_and_hangs) as (runner, book, _):
            job = await runner.submit(spec(), [])
            checkpoint = runner.folder(job.id).checkpoint
            await until(lambda: kept(tmp_path)[job.id].has_checkpoint)
            with locked(tmp_path):
                assert (await runner.cancel(job.id)).state == "cancelled"
                assert await book.in_thread(checkpoint.exists)
            await until(lambda: not checkpoint.exists())
            assert kept(tmp_path)[job.id].state == "cancelled"

    asyncio.run(story())


def test_a_cancelled_jobs_checkpoint_makes_room_for_its_record_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = SqlJobStore.save

    async def story() -> None:
        async with running(tmp_path, saves_and_hangs) as (runner, _, _processes):
            job = await runner.submit(spec(), [])
            checkpoint = runner.folder(job.id).checkpoint
            await until(lambda: kept(tmp_path)[job.id].has_checkpoint)

            def save_if_there_is_room(store: SqlJobStore, job: Job) -> None:
                if checkpoint.exists():
                    raise OperationalError(None, None, sqlite3.OperationalError("database or disk is full"))
                save(store, job)

            monkeypatch.setattr(SqlJobStore, "save", save_if_there_is_room)
            assert (await runner.cancel(job.id)).state == "cancelled"
            await until(lambda: kept(tmp_path)[job.id].state == "cancelled")
            assert not checkpoint.exists()

    asyncio.run(story())


def test_a_server_that_stops_waits_for_its_records_once_not_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of another program holds each of them up for as long as SQLite waits."""
    monkeypatch.setattr("segserve.jobs.book.SETTLE_SECONDS", 0.05)
    tried: list[str] = []

    async def story() -> None:
        book = Book(lambda: SqlJobStore(tmp_path / "jobs.sqlite"))
        await book.open()
        jobs = [Job(id=f"{number:08x}", spec=spec()) for number in range(9)]
        for job in jobs:
            await book.add(job)
        loop = asyncio.get_running_loop()

        def wait_in_vain(_: SqlJobStore, job: Job) -> NoReturn:
            tried.append(job.id)
            loop.call_soon_threadsafe(book.changed, jobs[0])  # news, as everything ends
            time.sleep(0.2)
            raise OperationalError(None, None, sqlite3.OperationalError("database is locked"))

        monkeypatch.setattr(SqlJobStore, "save", wait_in_vain)
        for job in jobs[1:]:
            book.changed(job)
        await book.close()

    asyncio.run(story())
    assert 0 < len(tried) < 8
