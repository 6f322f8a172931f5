"""Records that cannot be written for a while: what waits for them, and how long."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

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
