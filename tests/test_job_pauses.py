"""Pauses and clearings by the stage of the training that they meet."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.scripted_jobs import Process, Script, completes, running, spec, until


def stays_in(stage: str) -> Script:
    async def script(process: Process) -> dict[str, Any]:
        process.say("stage", stage=stage)
        await asyncio.Event().wait()
        raise AssertionError

    return script


async def completes_when_told_to_pause(process: Process) -> dict[str, Any]:
    process.say("stage", stage="training")
    await process.told.wait()
    process.say("stage", stage="export")
    return await completes(process)


@pytest.mark.parametrize("stage", ["starting", "weights", "data"])
def test_a_training_without_batches_yet_is_paused_at_once_and_begins_anew(tmp_path: Path, stage: str) -> None:
    """A download or the decoding of its data can take minutes, in which it hears of no pause."""

    async def story() -> None:
        async with running(tmp_path, stays_in(stage), stays_in(stage), completes) as (runner, _, processes):
            job = await runner.submit(spec(), [])
            for _ in range(2):  # twice: nor is it a death
                await until(lambda: processes.started and processes.started[-1][1].call_made)
                await runner.pause(job.id)
                await until(lambda: job.state == "paused")
                assert not processes.started.pop()[1].alive
                await runner.resume(job.id, spec())
            await until(lambda: job.state == "completed")
            assert job.deaths == 0

    asyncio.run(story())


def test_a_pause_that_meets_the_export_comes_too_late(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path, completes_when_told_to_pause) as (runner, _, _processes):
            job = await runner.submit(spec(), [])
            await until(lambda: job.stage == "training")
            await runner.pause(job.id)
            await until(lambda: job.state == "completed")

    asyncio.run(story())


def test_a_training_that_completes_as_everything_is_cleared_is_not_told_as_cancelled(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path, completes_when_told_to_pause) as (runner, _, _processes):
            job = await runner.submit(spec(), [])
            await until(lambda: job.stage == "training")
            assert await runner.clear() == []
            assert job.state == "completed"

    asyncio.run(story())
