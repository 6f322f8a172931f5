"""The queue of trainings, with processes that do as they are told: order, deaths, pauses, restarts, locked records."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest

from segserve.errors import BadInputError, SegserveError
from segserve.jobs.record import Job
from segserve.jobs.store import SqlJobStore
from segserve.models.classifiers import Classifier, ClassifierStore
from segserve.workers.placement import Kind
from tests.scripted_jobs import (
    METADATA,
    Script,
    completes,
    dies,
    fails,
    hangs,
    kept,
    recorded,
    running,
    saves_and_dies,
    spec,
    until,
    waits_for_pause,
)


@pytest.fixture(autouse=True)
def _stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segserve.jobs.runner.CLOSE_SECONDS", 0.5)


def test_trainings_run_one_at_a_time_in_the_order_they_came(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path, completes) as (runner, book, processes):
            jobs = [await runner.submit(spec(), []) for _ in range(4)]
            await until(lambda: all(job.state == "completed" for job in jobs))
            assert [identity for identity, _ in processes.started] == [job.id for job in jobs]
            assert len({job.model_id for job in jobs}) == 4
            assert (jobs[0].final_loss, jobs[0].final_accuracy) == (0.5, 0.75)
            assert list(book.jobs) == [job.id for job in jobs]

    asyncio.run(story())


def test_each_device_has_a_training_of_its_own(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path, hangs, devices=("cuda:0", "cuda:1")) as (runner, _, processes):
            jobs = [await runner.submit(spec(), []) for _ in range(3)]
            await until(lambda: len(processes.started) == 2)
            assert [job.state for job in jobs] == ["training", "training", "queued"]
            await until(lambda: all(process.call_made for _, process in processes.started))
            assert [p.call_made.body["device"] for _, p in processes.started if p.call_made] == ["cuda:0", "cuda:1"]

    asyncio.run(story())


def test_a_dead_process_is_replaced_once_and_again_after_each_checkpoint(tmp_path: Path) -> None:
    async def story() -> None:
        scripts = (dies, saves_and_dies, saves_and_dies, dies, dies)
        async with running(tmp_path, *scripts) as (runner, _, processes):
            job = await runner.submit(spec(), [])
            await until(lambda: job.state == "failed")
            # One death, then a checkpoint and a death, twice; then a second death without a new checkpoint.
            assert len(processes.started) == 4
            assert "stopped twice without getting further" in job.error
            assert "killed" in runner.folder(job.id).log.read_text()
            assert job.resumable

    asyncio.run(story())


def test_a_moment_without_processes_costs_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a moment lasts seconds, and two failures in a row milliseconds: the whole queue would be lost to it."""
    monkeypatch.setattr("segserve.jobs.runner.START_AGAIN_SECONDS", 0.02)

    async def story() -> None:
        async with running(tmp_path, completes) as (runner, _, processes):
            start, refused = processes.start, 0

            async def refuse(_label: str, _kind: Kind) -> NoReturn:
                nonlocal refused
                refused += 1
                raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

            monkeypatch.setattr(processes, "start", refuse)
            jobs = [await runner.submit(spec(), []) for _ in range(4)]
            await until(lambda: refused >= 6)
            await runner.pause(jobs[0].id)
            await runner.cancel(jobs[1].id)
            await until(lambda: "temporarily unavailable" in " ".join(jobs[2].warnings))
            monkeypatch.setattr(processes, "start", start)
            await until(lambda: all(job.state == "completed" for job in jobs[2:]))
            assert [identity for identity, _ in processes.started] == [job.id for job in jobs[2:]]
            assert [job.state for job in jobs[:2]] == ["paused", "cancelled"]
            assert not any(job.deaths for job in jobs)

    asyncio.run(story())


def test_a_failure_is_told_and_its_checkpoint_kept(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path, fails, waits_for_pause) as (runner, book, _):
            job = await runner.submit(spec(), [])
            await until(lambda: job.state == "failed")
            assert job.error == "The training diverged."
            with pytest.raises(BadInputError, match="Cannot resume job in state failed"):
                await runner.resume(job.id, job.spec)
            other = await runner.submit(spec(), [])
            await until(lambda: other.stage == "training")
            await runner.pause(other.id)
            await until(lambda: other.state == "paused")
            assert other.has_checkpoint
            assert book.get(other.id).epoch == 1

    asyncio.run(story())


def test_a_pause_a_resume_and_what_the_process_is_told_of_them(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path, waits_for_pause, completes) as (runner, _, processes):
            job = await runner.submit(spec(), [])
            await until(lambda: job.stage == "training")
            await runner.pause(job.id)
            await until(lambda: job.state == "paused")
            await runner.resume(job.id, spec(batch_size=3))
            await until(lambda: job.state == "completed")
            calls = [process.call_made for _, process in processes.started]
            assert calls[0] is not None
            assert calls[1] is not None
            assert (calls[0].body["resume"], calls[1].body["resume"]) == (False, True)
            assert calls[1].body["same_batches"] is False
            assert calls[1].body["spec"]["training"]["batch_size"] == 3
            await until(lambda: not runner.folder(job.id).checkpoint.exists())  # in the folders' own thread

    asyncio.run(story())


def test_a_waiting_job_is_paused_and_cancelled_without_ever_running(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path, hangs) as (runner, _, processes):
            first, second, third = [await runner.submit(spec(), []) for _ in range(3)]
            await runner.pause(second.id)
            await runner.cancel(third.id)
            await runner.cancel(first.id)
            assert [job.state for job in (first, second, third)] == ["cancelled", "paused", "cancelled"]
            await asyncio.sleep(0.1)
            assert len(processes.started) <= 1
            for ended in (first, third):
                with pytest.raises(BadInputError, match="Cannot pause job in state cancelled"):
                    await runner.pause(ended.id)
                with pytest.raises(BadInputError, match="Cannot resume job in state cancelled"):
                    await runner.resume(ended.id, ended.spec)

    asyncio.run(story())


@pytest.mark.parametrize("verb", ["cancel", "pause"])
def test_what_was_answered_survives_a_kill(tmp_path: Path, verb: str) -> None:
    """The record is read while the server still runs: that is what a killed one leaves."""

    async def story() -> None:
        async with running(tmp_path, hangs) as (runner, _, _processes):
            jobs = [await runner.submit(spec(), []) for _ in range(2)]
            for job in jobs:
                await getattr(runner, verb)(job.id)
            found = kept(tmp_path)
            if verb == "cancel":
                assert {job.state for job in found.values()} == {"cancelled"}
            else:
                assert found[jobs[0].id].pause_asked or found[jobs[0].id].state == "paused"
                assert found[jobs[1].id].state == "paused"

    asyncio.run(story())


def test_the_next_server_goes_on_where_this_one_was_stopped(tmp_path: Path) -> None:
    async def first() -> list[str]:
        async with running(tmp_path, waits_for_pause) as (runner, _, processes):
            jobs = [await runner.submit(spec(), []) for _ in range(2)]
            await until(lambda: processes.started and processes.started[0][1].call_made)
            return [job.id for job in jobs]

    async def second(identities: list[str]) -> None:
        async with running(tmp_path, completes) as (_, book, processes):
            await until(lambda: all(book.get(identity).state == "completed" for identity in identities))
            assert [identity for identity, _ in processes.started] == identities
            resumed = processes.started[0][1].call_made
            assert resumed is not None
            assert resumed.body["resume"] is True

    asyncio.run(second(asyncio.run(first())))


def test_a_pause_that_a_killed_server_had_promised_holds(tmp_path: Path) -> None:
    store_path = tmp_path / "state" / "jobs.sqlite"
    store_path.parent.mkdir()
    store = SqlJobStore(store_path)
    store.save(Job(id="aaaaaaaa", spec=spec(), state="training", pause_asked=True))
    store.save(Job(id="bbbbbbbb", spec=spec(), state="training"))
    store.close()

    async def story() -> None:
        async with running(tmp_path, hangs) as (_, book, _processes):
            assert book.get("aaaaaaaa").state == "paused"
            assert book.get("bbbbbbbb").state == "training"

    asyncio.run(story())


def publish(folder: Path, metadata: Mapping[str, Any]) -> Classifier:
    """A classifier in a folder of them."""
    made = folder.parent / "made"
    made.mkdir(parents=True)
    (made / "model.pt").write_bytes(b"weights")
    return ClassifierStore(folder).publish(made, "unet", metadata)


def test_a_model_that_was_published_before_its_record_is_not_made_twice(tmp_path: Path) -> None:
    recorded(tmp_path, Job(id="aaaaaaaa", spec=spec(), state="training", has_checkpoint=True))
    model = publish(tmp_path / "state" / "models", {**METADATA, "job_id": "aaaaaaaa"})

    async def story() -> None:
        async with running(tmp_path, hangs) as (_, book, processes):
            job = book.get("aaaaaaaa")
            assert (job.state, job.model_id, job.final_accuracy) == ("completed", model.id, 0.75)
            assert not processes.started

    asyncio.run(story())


def test_no_other_servers_model_completes_a_job(tmp_path: Path) -> None:
    recorded(tmp_path, Job(id="aaaaaaaa", spec=spec(), state="training"))
    publish(tmp_path / "foreign", {**METADATA, "job_id": "aaaaaaaa"})

    async def story() -> None:
        async with running(tmp_path, hangs) as (_, book, _processes):
            assert book.get("aaaaaaaa").state == "training"

    asyncio.run(story())


@pytest.mark.parametrize("metadata", [{"job_id": ["aaaaaaaa"]}, {"job_id": "aaaaaaaa"}], ids=str)
def test_metadata_that_make_no_sense_keep_neither_the_server_nor_other_jobs_from_starting(
    tmp_path: Path, metadata: dict[str, Any]
) -> None:
    for identity in ("aaaaaaaa", "bbbbbbbb"):
        recorded(tmp_path, Job(id=identity, spec=spec(), state="training"))
    publish(tmp_path / "state" / "models", metadata)

    async def story() -> None:
        async with running(tmp_path, hangs, completes) as (runner, book, _):
            first, second = book.get("aaaaaaaa"), book.get("bbbbbbbb")
            if metadata["job_id"] == first.id:
                assert (first.state, "its log tells more" in first.error) == ("failed", True)
            else:
                assert first.state == "training"
                await runner.cancel(first.id)
            await until(lambda: second.state != "queued")
            assert second.state in {"training", "completed"}

    asyncio.run(story())


@pytest.mark.parametrize("cleared", [False, True])
def test_a_job_that_was_cancelled_as_its_model_appeared_leaves_none(tmp_path: Path, cleared: bool) -> None:
    """One that may go on keeps it: its record may be older than its model."""
    recorded(tmp_path, Job(id="aaaaaaaa", spec=spec(), state="cancelled", blameless=cleared))
    model = publish(tmp_path / "state" / "models", {**METADATA, "job_id": "aaaaaaaa"})

    async def story() -> None:
        async with running(tmp_path, hangs):
            assert model.path.exists() == cleared

    asyncio.run(story())


@pytest.mark.parametrize("script", [waits_for_pause, hangs], ids=["in time", "not in time"])
def test_clearing_cancels_what_runs_pauses_what_waits_and_both_can_go_on(
    tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segserve.jobs.runner.CHECKPOINT_SECONDS", 0.3)

    async def story() -> None:
        async with running(tmp_path, script, completes) as (runner, _, processes):
            first, second = [await runner.submit(spec(), []) for _ in range(2)]
            await until(lambda: processes.started and processes.started[0][1].call_made)
            assert await runner.clear() == [first.id]
            assert (first.state, second.state) == ("cancelled", "paused")
            assert not processes.started[0][1].alive
            assert first.has_checkpoint == (script is waits_for_pause)
            await runner.resume(first.id, first.spec)
            await runner.resume(second.id, second.spec)
            await until(lambda: first.state == second.state == "completed")

    asyncio.run(story())


def test_a_locked_database_neither_shows_nor_loses_anything(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path, completes) as (runner, book, _):
            lock = sqlite3.connect(tmp_path / "state" / "jobs.sqlite", isolation_level=None)
            job = await runner.submit(spec(), [])
            lock.execute("BEGIN IMMEDIATE")
            await until(lambda: job.state == "completed")
            assert book.get(job.id).model_id
            assert kept(tmp_path)[job.id].state != "completed"
            lock.execute("ROLLBACK")
            lock.close()
        assert kept(tmp_path)[job.id].state == "completed"

    asyncio.run(story())


def test_a_job_that_cannot_be_written_down_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segserve.jobs.store.BUSY_MILLISECONDS", 50)

    async def story() -> None:
        async with running(tmp_path, completes) as (runner, book, _):
            lock = sqlite3.connect(tmp_path / "state" / "jobs.sqlite", isolation_level=None)
            lock.execute("BEGIN IMMEDIATE")
            with pytest.raises(SegserveError, match="cannot write the training down") as refused:
                await runner.submit(spec(), [])
            assert refused.value.status == 503
            assert not book.jobs
            assert await book.in_thread(lambda: list((tmp_path / "state" / "jobs").iterdir())) == []
            lock.execute("ROLLBACK")
            lock.close()
            assert (await runner.submit(spec(), [])).id in book.jobs

    asyncio.run(story())


def test_a_job_has_its_folder_when_it_is_answered(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path, hangs) as (runner, book, _):
            await runner.submit(spec(), [])
            waiting = await runner.submit(spec(), [])
            assert runner.folder(waiting.id).root.is_dir()
            jobs = tmp_path / "state" / "jobs"
            jobs.rename(tmp_path / "elsewhere")
            jobs.write_text("in the way")
            with pytest.raises(SegserveError, match="folder of trainings") as refused:
                await runner.submit(spec(), [])
            assert refused.value.status == 503
            assert len(book.jobs) == len(kept(tmp_path)) == 2

    asyncio.run(story())


@pytest.mark.parametrize("part", ["everything", "later pages"])
def test_damaged_records_are_put_aside(tmp_path: Path, part: str) -> None:
    for number in range(20):
        recorded(tmp_path, Job(id=f"{number:08x}", spec=spec()))
    records = tmp_path / "state" / "jobs.sqlite"
    whole = records.read_bytes()
    intact = 4096 if part == "later pages" else 0
    records.write_bytes(whole[:intact] + b"\xaa" * (len(whole) - intact))

    async def story() -> None:
        async with running(tmp_path, completes) as (runner, book, _):
            assert not book.jobs
            job = await runner.submit(spec(), [])
            await until(lambda: job.state == "completed")

    asyncio.run(story())
    assert list(records.parent.glob("jobs.sqlite.damaged-*"))


def test_a_record_whose_text_is_damaged_keeps_no_other_from_being_read(tmp_path: Path) -> None:
    for identity in ("aaaaaaaa", "bbbbbbbb"):
        recorded(tmp_path, Job(id=identity, spec=spec(), state="completed"))
    records = tmp_path / "state" / "jobs.sqlite"
    records.write_bytes(records.read_bytes().replace(b'{"id":"aaaaaaaa"', b'{"id":\xff\xffaaaaaaa"', 1))

    async def story() -> None:
        async with running(tmp_path, completes) as (_, book, _processes):
            assert set(book.jobs) == {"bbbbbbbb"}

    asyncio.run(story())


def test_watchers_hear_of_every_end(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path, completes) as (runner, book, _):
            job = await runner.submit(spec(), [])
            seen = []
            async for now in book.watch(job.id):
                seen.append(now.state)
                if now.state == "completed":
                    break
            assert seen[-1] == "completed"

    asyncio.run(story())
