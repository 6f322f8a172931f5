"""Jobs on a disk that is full or cannot be written, and under a clock that jumps."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest

from segserve.api.qupath.jobs import status
from segserve.errors import DiskFullError
from segserve.jobs import upkeep
from segserve.jobs.folder import JobFolder
from segserve.jobs.record import Job
from segserve.models.classifiers import Classifier, ClassifierStore
from tests.scripted_jobs import Process, completes, hangs, kept, recorded, running, saves_and_hangs, spec, until


async def finds_no_room(process: Process) -> dict[str, Any]:
    raise DiskFullError


def test_a_training_that_found_no_room_can_be_resumed_without_a_checkpoint(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path, finds_no_room, completes) as (runner, _, _processes):
            job = await runner.submit(spec(), [])
            await until(lambda: job.state == "failed")
            assert "disk is full" in job.error
            assert "Resume" in job.error
            await runner.resume(job.id, spec())
            await until(lambda: job.state == "completed")

    asyncio.run(story())


async def pauses_late(process: Process) -> dict[str, Any]:
    process.say("stage", stage="training")
    await process.told.wait()
    process.say("trouble", text="The training cannot pause yet.")
    await asyncio.sleep(0.05)
    process.save()
    return {"outcome": "paused"}


def test_the_trouble_of_a_checkpoint_is_a_warning_until_there_is_one(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path, pauses_late) as (runner, _, _processes):
            job = await runner.submit(spec(), ["The data are few."])
            await until(lambda: job.stage == "training")
            await runner.pause(job.id)
            await until(lambda: job.trouble)
            classifiers = ClassifierStore(tmp_path)
            told = status(job, runner, classifiers)
            assert told["status"] == "training"
            assert told["warnings"] == ["The data are few.", "The training cannot pause yet."]
            await until(lambda: job.state == "paused")
            assert status(job, runner, classifiers)["warnings"] == ["The data are few."]

    asyncio.run(story())


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "full"), (errno.EROFS, "read-only"), (errno.EACCES, "Permission denied")]
)
@pytest.mark.parametrize("place", ["folder", "model"])
def test_a_disk_that_cannot_be_written_is_told_and_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, number: int, words: str
) -> None:
    """Where the training's folder is made, and where its finished model is stored."""
    error = OSError(number, "Permission denied")

    def refuse(*_: object) -> NoReturn:
        raise error

    async def story() -> None:
        async with running(tmp_path, completes) as (runner, _, processes):
            with monkeypatch.context() as patch:
                if place == "folder":
                    patch.setattr(JobFolder, "prepare", refuse)
                else:
                    patch.setattr("segserve.models.classifiers.ClassifierStore.publish", refuse)
                job = await runner.submit(spec(), [])
                await until(lambda: job.state == "failed")
            assert words in job.error
            assert len(processes.started) == (place == "model")
            await runner.resume(job.id, spec())
            await until(lambda: job.state == "completed")

    asyncio.run(story())


@pytest.mark.parametrize("way", ["room again", "cancelled", "cleared", "server stopped"])
def test_a_finished_model_waits_while_no_file_can_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    publish, refused = ClassifierStore.publish, 0
    monkeypatch.setattr("segserve.jobs.runner.PUBLISH_AGAIN_SECONDS", 0.02 if way == "room again" else 3600.0)

    def refuse(store: ClassifierStore, *described: Any) -> Classifier:
        nonlocal refused
        refused += 1
        if refused > 2:
            return publish(store, *described)
        raise OSError(errno.EMFILE, "Too many open files")

    async def story() -> None:
        monkeypatch.setattr(ClassifierStore, "publish", refuse)
        monkeypatch.setattr("segserve.jobs.runner.CLOSE_SECONDS", 0.05)
        monkeypatch.setattr("segserve.jobs.runner.CHECKPOINT_SECONDS", 0.05)
        async with running(tmp_path, completes) as (runner, _, processes):
            job = await runner.submit(spec(), [])
            await until(lambda: refused)
            if way == "room again":
                await until(lambda: job.state == "completed")
                assert len(processes.started) == 1
            elif way == "cancelled":
                await runner.cancel(job.id)
                await until(lambda: not runner.folder(job.id).model.exists())
            elif way == "cleared":
                assert await runner.clear() == [job.id]
                assert job.resumable

    asyncio.run(story())
    (job,) = kept(tmp_path).values()
    assert job.state == {"room again": "completed", "server stopped": "queued"}.get(way, "cancelled")
    assert len(ClassifierStore(tmp_path / "state" / "models", tmp_path).all_own()) == (way == "room again")


@pytest.mark.skipif(not hasattr(os, "O_DIRECTORY"), reason="folders are not opened here")
def test_a_model_whose_folder_cannot_be_opened_is_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It will be published again, and is not to be there twice."""

    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    store, made = ClassifierStore(tmp_path / "models", tmp_path), tmp_path / "made"
    made.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("segserve.models.classifiers.os.open", refuse)
        with pytest.raises(OSError, match="Too many"):
            store.publish(made, "unet", {})
    assert store.all_own() == []
    store.publish(made, "unet", {})
    assert len(store.all_own()) == 1


def test_a_clock_that_is_set_back_does_not_change_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_800_000_000.0
    monkeypatch.setattr("time.time", lambda: now)

    async def story() -> None:
        nonlocal now
        async with running(tmp_path, saves_and_hangs, completes) as (runner, _, processes):
            jobs = [await runner.submit(spec(), []) for _ in range(3)]
            now -= 1e9
            jobs.append(await runner.submit(spec(), []))
            await runner.pause(jobs[1].id)
            await runner.resume(jobs[1].id, spec())
            await until(lambda: jobs[0].has_checkpoint)
            await runner.cancel(jobs[0].id)
            await until(lambda: all(job.state == "completed" for job in jobs[1:]))
            order = [identity for identity, _ in processes.started]
            assert order == [jobs[number].id for number in (0, 2, 3, 1)]

    asyncio.run(story())


def test_a_clock_that_is_set_right_takes_no_checkpoint_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A week is counted while the server runs: a machine that woke up in 1970 learns the date and forgets nothing."""
    monkeypatch.setattr(upkeep, "SWEEP_SECONDS", 0.02)
    ended = Job(id="aaaaaaaa", spec=spec(), state="failed", ended=0.0, has_checkpoint=True)
    folder = recorded(tmp_path, ended)
    folder.root.mkdir()
    folder.checkpoint.write_text("weights")

    async def story(runs: float) -> bool:
        async with running(tmp_path, hangs) as (_, book, _processes):
            job = book.get("aaaaaaaa")
            await until(lambda: job.kept >= runs or not job.has_checkpoint)
            return job.resumable

    assert asyncio.run(story(0.1))
    assert folder.checkpoint.exists()
    monkeypatch.setattr(upkeep, "KEEP_SECONDS", 0.2)
    assert not asyncio.run(story(9.9))
    assert not folder.checkpoint.exists()
