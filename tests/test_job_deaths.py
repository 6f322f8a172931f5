"""What a job survives: deaths of its process and of its server, a disk that is full, a clock that jumps."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from segserve.jobs.folder import JobFolder
from segserve.jobs.record import Job, State
from segserve.jobs.store import SqlJobStore
from segserve.training.progress import KEPT
from segserve.training.train import Order, train
from segserve.workers.placement import WorkerDiedError
from tests.scripted_jobs import (
    FINISHED,
    Process,
    Script,
    dies,
    hangs,
    kept,
    recorded,
    running,
    saves_and_hangs,
    spec,
    until,
    waits_for_pause,
)


@pytest.fixture(autouse=True)
def _stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLOSE_SECONDS", "CHECKPOINT_SECONDS"):
        monkeypatch.setattr(f"segserve.jobs.runner.{name}", 0.2)


async def talks_and_dies(process: Process) -> dict[str, Any]:
    for number in range(9):
        process.say("log", line=f"12:00 INFO epoch {number}: the loss is high")
    raise WorkerDiedError("its process crashed (SIGSEGV)", began=True)


async def resumes_at_three(process: Process) -> dict[str, Any]:
    for number in (1, 2, 3):
        process.say("past epoch", epoch={"epoch": number, "val_loss": float(number)})
    process.finish_epoch(4)
    await asyncio.Event().wait()
    return FINISHED


async def has_only_to_export(process: Process) -> dict[str, Any]:
    for number in (1, 2, 3):
        process.say("past epoch", epoch={"epoch": number, "val_loss": float(number)})
    process.say("stage", stage="export")
    return FINISHED


def killed_after(root: Path, script: Script, *, submit: bool = False) -> tuple[Path, Job]:
    """Let a server run until its only training is at work, and return what a kill at that moment leaves.

    What lies on the disk then is copied: the server of this process cannot be killed.
    """
    left = root.with_name(root.name + "+")

    async def story() -> Job:
        async with running(root, script) as (runner, book, _processes):
            if submit:
                await runner.submit(spec(), [])
            (job,) = book.jobs.values()
            if job.state == "training":
                await until(lambda: job.stage == "training")
            await until(lambda: kept(root)[job.id] == job)
            await book.in_thread(shutil.copytree, root, left)
            return job.model_copy(deep=True)

    job = asyncio.run(story())
    return left, job


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


def test_a_training_that_takes_its_server_along_each_time_leaves_it_time_to_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is never given up, but from the third time on only begun when the server has been there for a while."""
    root, job = killed_after(tmp_path / "life", hangs, submit=True)
    for _ in range(2):
        root, job = killed_after(root, hangs)
        assert (job.state, job.warnings) == ("training", [])

    async def story() -> None:
        async with running(root, hangs) as (runner, book, processes):
            suspect = book.get(job.id)
            assert suspect.state == "queued"
            (warning,) = suspect.warnings
            assert "3 times" in warning
            assert "batch_size" in warning
            other = await runner.submit(spec(), [])
            await until(lambda: other.state == "training")
            await runner.cancel(other.id)
            await until(lambda: not processes.started[0][1].alive)
            assert suspect.state == "queued"
            await runner.pause(job.id)
            await runner.resume(job.id, spec())  # who asks for it by name has it begun at once
            await until(lambda: suspect.state == "training")

    asyncio.run(story())


def test_a_training_that_waited_after_the_servers_start_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segserve.jobs.runner.SUSPECT_SECONDS", 0.05)
    recorded(tmp_path, Job(id="aaaaaaaa", spec=spec(), state="training", stage="training", outages=2))

    async def story() -> None:
        async with running(tmp_path, saves_and_hangs) as (_, book, _processes):
            job = book.get("aaaaaaaa")
            assert (job.state, job.outages) == ("queued", 3)
            await until(lambda: job.has_checkpoint)
            assert job.outages == 0

    asyncio.run(story())


def test_a_server_that_cannot_even_start_its_trainings_blames_none(tmp_path: Path) -> None:
    recorded(tmp_path, Job(id="aaaaaaaa", spec=spec(), state="training", stage="starting", outages=2))

    async def story() -> None:
        async with running(tmp_path, hangs) as (_, book, _processes):
            assert (book.get("aaaaaaaa").state, book.get("aaaaaaaa").outages) == ("training", 2)

    asyncio.run(story())


def test_a_checkpoint_between_forgives_the_deaths_of_the_server(tmp_path: Path) -> None:
    root, _ = killed_after(tmp_path / "life", hangs, submit=True)
    for _ in range(5):
        root, job = killed_after(root, saves_and_hangs)
        assert (job.state, job.outages) == ("training", 0)


def test_a_checkpoint_that_the_killed_server_had_not_heard_of_counts(tmp_path: Path) -> None:
    root = tmp_path / "life"
    folder = recorded(root, Job(id="aaaaaaaa", spec=spec(), state="training", outages=2))
    folder.root.mkdir()
    folder.checkpoint.write_text("weights")

    async def story() -> None:
        async with running(root, hangs) as (_, _book, processes):
            await until(lambda: processes.started and processes.started[0][1].call_made)
            call = processes.started[0][1].call_made
            assert call
            assert call.body["resume"] is True

    asyncio.run(story())


async def saves_unheard_and_dies(process: Process) -> dict[str, Any]:
    process.save(heard=False)
    raise WorkerDiedError("its process was killed", began=True)


def test_a_checkpoint_counts_whose_process_died_before_it_told(tmp_path: Path) -> None:
    """Once: the same one does not forgive the next death."""

    async def story() -> None:
        async with running(tmp_path, dies, saves_unheard_and_dies, dies) as (runner, _, processes):
            job = await runner.submit(spec(), [])
            await until(lambda: job.state == "failed")
            calls = [process.call_made for _, process in processes.started]
            assert [call.body["resume"] for call in calls if call] == [False, False, True]
            assert job.resumable

    asyncio.run(story())


def test_a_later_checkpoint_that_the_killed_server_had_not_heard_of_counts(tmp_path: Path) -> None:
    root, _ = killed_after(tmp_path / "life", saves_and_hangs, submit=True)
    root, job = killed_after(root, hangs)
    assert job.outages == 1
    JobFolder(root / "state" / "jobs", job.id).checkpoint.write_text("newer weights")
    root, job = killed_after(root, hangs)
    assert job.outages == 1
    root, job = killed_after(root, hangs)
    assert job.outages == 2


def test_a_server_killed_as_a_training_starts_takes_its_old_checkpoint_for_no_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a resume with another batch size an epoch must not go on in the middle."""
    prepare, may_go_on = JobFolder.prepare, threading.Event()

    def prepare_late(folder: JobFolder) -> None:
        may_go_on.wait(10)
        prepare(folder)

    async def killed() -> JobFolder:
        async with running(tmp_path / "life", waits_for_pause, hangs) as (runner, _, _processes):
            job = await runner.submit(spec(batch_size=8), [])
            await until(lambda: job.stage == "training")
            await runner.pause(job.id)
            await until(lambda: job.state == "paused" and not runner.folder(job.id).model.exists())
            monkeypatch.setattr(JobFolder, "prepare", prepare_late)
            await runner.resume(job.id, spec(batch_size=4))
            await until(lambda: kept(tmp_path / "life")[job.id].state == "training")
            folder = recorded(tmp_path / "next", kept(tmp_path / "life")[job.id])
            shutil.copytree(runner.folder(job.id).root, folder.root)
            may_go_on.set()
            return folder

    async def next_life() -> None:
        async with running(tmp_path / "next", hangs) as (_, _book, processes):
            await until(lambda: processes.started and processes.started[0][1].call_made)
            call = processes.started[0][1].call_made
            assert call
            assert (call.body["resume"], call.body["same_batches"]) == (True, False)

    assert asyncio.run(killed()).checkpoint.exists()
    asyncio.run(next_life())


def test_a_server_that_stops_cleanly_is_no_death(tmp_path: Path) -> None:
    """However often: not even where the training cannot write a checkpoint in time."""

    async def life() -> Job:
        async with running(tmp_path, hangs) as (runner, book, processes):
            if not book.jobs:
                await runner.submit(spec(), [])
            await until(lambda: processes.started and processes.started[0][1].call_made)
            return next(iter(book.jobs.values()))

    for _ in range(5):
        job = asyncio.run(life())
        assert (job.state, job.outages, job.deaths) == ("queued", 0, 0)


def test_the_death_that_ended_a_pausing_training_pauses_it(tmp_path: Path) -> None:
    recorded(tmp_path, Job(id="aaaaaaaa", spec=spec(), state="training", outages=9, pause_asked=True))

    async def story() -> None:
        async with running(tmp_path, hangs) as (_, book, _processes):
            assert book.get("aaaaaaaa").state == "paused"

    asyncio.run(story())


@pytest.mark.parametrize("state", ["training", "paused", "cancelled", "failed"])
def test_what_a_killed_training_was_writing_is_removed(tmp_path: Path, state: State) -> None:
    """A checkpoint stays only where it may still be asked for."""
    folder = recorded(tmp_path, Job(id="aaaaaaaa", spec=spec(), state=state, pause_asked=state == "training"))
    folder.model.mkdir(parents=True)
    (folder.model / "model.pt").write_bytes(b"half")
    folder.checkpoint.write_text("weights")
    folder.checkpoint.with_name("checkpoint.pt.4711").write_text("wei")
    folder.history_file.with_name(".history.json.4711").write_text("[")

    async def story() -> None:
        async with running(tmp_path, hangs):
            pass

    asyncio.run(story())
    left = {path.name for path in folder.root.iterdir()}
    assert left == (set() if state in {"cancelled", "failed"} else {"checkpoint.pt"})


def test_what_was_cleared_from_memory_is_on_disk_when_it_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = SqlJobStore.save

    def save_slowly(store: SqlJobStore, job: Job) -> None:
        time.sleep(0.1)
        save(store, job)

    monkeypatch.setattr(SqlJobStore, "save", save_slowly)

    async def story() -> None:
        async with running(tmp_path, saves_and_hangs) as (runner, _, _processes):
            first, second = [await runner.submit(spec(), []) for _ in range(2)]
            await until(lambda: first.has_checkpoint)
            await runner.clear()
            found = kept(tmp_path)
            assert (found[first.id].state, found[second.id].state) == ("cancelled", "paused")

    asyncio.run(story())


def test_a_resumed_training_computes_with_as_many_threads_as_before(tmp_path: Path) -> None:
    """Sums depend on how many threads share them: on a machine with other cores the weights would differ."""
    order = Order(
        spec=spec(),
        model_folder=tmp_path,
        scratch=tmp_path,
        device="cpu",
        weights_dir=None,
        data_memory=0,
        checkpoint={**dict.fromkeys(KEPT), "threads": 3},
        same_batches=True,
        pause_asked=lambda: False,
    )
    before, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        next(iter(train(order)))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(strict)


def test_the_history_has_the_epochs_that_a_killed_server_never_heard_of(tmp_path: Path) -> None:
    recorded(tmp_path, Job(id="aaaaaaaa", spec=spec(), state="training", has_checkpoint=True))

    async def story() -> None:
        async with running(tmp_path, resumes_at_three) as (runner, book, _processes):
            await until(lambda: book.get("aaaaaaaa").epoch == 4)
            history = await book.in_thread(runner.folder("aaaaaaaa").history)
            assert [(entry["epoch"], entry["val_loss"]) for entry in history] == [
                (1, 1.0),
                (2, 2.0),
                (3, 3.0),
                (4, 1.0),
            ]

    asyncio.run(story())


@pytest.mark.parametrize("told", [2, 5])
def test_an_epoch_is_finished_once_a_checkpoint_has_it(tmp_path: Path, told: int) -> None:
    """The last server was killed before it heard of the last epoch's checkpoint, or after epochs that were lost."""
    epochs = [{"epoch": number + 1, "val_loss": 9.0} for number in range(told)]
    job = Job(id="aaaaaaaa", spec=spec(), state="training", has_checkpoint=True, latest=epochs[-1])
    recorded(tmp_path, job).write_history(epochs)

    async def story() -> None:
        async with running(tmp_path, has_only_to_export) as (runner, book, _processes):
            job = book.get("aaaaaaaa")
            await until(lambda: job.state == "completed")
            assert job.epoch == 3
            history = await book.in_thread(runner.folder(job.id).history)
            assert [entry["epoch"] for entry in history] == [1, 2, 3]

    asyncio.run(story())
