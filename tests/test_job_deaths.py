"""What a job survives: deaths of its process and of its server, a disk that is full, a clock that jumps."""

from __future__ import annotations

import asyncio
import errno
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import psutil
import pytest

from segserve.errors import DiskFullError
from segserve.jobs import upkeep
from segserve.jobs.folder import JobFolder
from segserve.jobs.journal import journal_mode
from segserve.jobs.record import Job, State
from segserve.jobs.store import SqlJobStore
from segserve.workers.placement import WorkerDiedError
from tests.scripted_jobs import (
    FINISHED,
    Process,
    Script,
    completes,
    hangs,
    kept,
    running,
    spec,
    until,
)


@pytest.fixture(autouse=True)
def _stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLOSE_SECONDS", "CHECKPOINT_SECONDS"):
        monkeypatch.setattr(f"segserve.jobs.runner.{name}", 0.2)


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


def recorded(root: Path, job: Job) -> JobFolder:
    """A job in a state directory, as another server left it."""
    (root / "state" / "jobs").mkdir(parents=True, exist_ok=True)
    store = SqlJobStore(root / "state" / "jobs.sqlite")
    store.save(job)
    store.close()
    return JobFolder(root / "state" / "jobs", job.id)


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


def test_a_training_that_takes_its_server_along_each_time_is_not_tried_for_ever(tmp_path: Path) -> None:
    root, job = killed_after(tmp_path / "life", hangs, submit=True)
    for _ in range(2):
        root, job = killed_after(root, hangs)
        assert job.state == "training"
    root, job = killed_after(root, hangs)
    assert job.state == "failed"
    assert "server died 3 times" in job.error
    assert "batch_size" in job.error
    assert not job.resumable
    _, again = killed_after(root, hangs)
    assert again == job


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


class Mount(NamedTuple):
    mountpoint: str
    fstype: str
    opts: str = "rw"


@pytest.mark.parametrize(
    ("kind", "journal"),
    [
        *((kind, "DELETE") for kind in ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "ceph", "smbfs", "NFS")),
        *((kind, "WAL") for kind in ("ext4", "xfs", "tmpfs", "NTFS", "apfs", "fuseblk", "fuse.mergerfs", "overlay")),
    ],
)
def test_the_journal_by_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, journal: str
) -> None:
    """The nearest mount decides, and of two on one place the later; the database says itself what it uses."""
    other = "ext4" if journal == "DELETE" else "nfs"
    mounts = [
        Mount(str(tmp_path), other),
        Mount(str(tmp_path), kind),
        Mount(tmp_path.anchor, other),
        Mount(str(tmp_path) + "-beside", other),
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: mounts)
    records = tmp_path / "jobs.sqlite"
    SqlJobStore(records).close()
    connection = sqlite3.connect(records)
    assert connection.execute("PRAGMA journal_mode").fetchone() == (("wal",) if journal == "WAL" else ("delete",))
    connection.close()


def test_the_journal_of_a_share_that_windows_has_given_a_letter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: [Mount(str(tmp_path), "NTFS", "rw,remote")])
    assert journal_mode(tmp_path / "jobs.sqlite") == "DELETE"
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: [])
    assert journal_mode(tmp_path / "jobs.sqlite") == "WAL"


def test_records_of_another_journal_are_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state directory was moved to a network drive."""
    recorded(tmp_path, Job(id="aaaaaaaa", spec=spec(), state="paused"))
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: [Mount(str(tmp_path), "nfs4")])
    store = SqlJobStore(tmp_path / "state" / "jobs.sqlite")
    store.save(Job(id="bbbbbbbb", spec=spec()))
    store.close()
    assert set(kept(tmp_path)) == {"aaaaaaaa", "bbbbbbbb"}
