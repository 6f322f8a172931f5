"""Trainings whose processes follow scripts, and the queue that starts them: no torch, no time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from segserve.errors import BadInputError
from segserve.jobs.book import Book
from segserve.jobs.folder import JobFolder
from segserve.jobs.record import Job
from segserve.jobs.runner import Runner
from segserve.jobs.store import SqlJobStore
from segserve.models.classifiers import ClassifierStore
from segserve.state import StateDir
from segserve.training.spec import ArchitectureChoice, Hyperparameters, InputConfig, TrainingSpec
from segserve.workers.placement import Call, Kind, Listener, WorkerDiedError

METADATA = {"name": "made", "architecture": {"type": "unet"}, "training": {"final_loss": 0.5, "final_accuracy": 0.75}}
FINISHED = {"outcome": "finished", "metadata": METADATA, "warnings": []}
Script = Callable[["Process"], Awaitable[dict[str, Any]]]


class Process:
    """A training process that follows a script."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._task: asyncio.Task[dict[str, Any]] | None = None
        self.told = asyncio.Event()
        self.listen: Listener = lambda _: None
        self.call_made: Call | None = None
        self.alive = True

    async def call(self, call: Call, listen: Listener | None = None) -> dict[str, Any]:
        assert listen
        if not self.alive:
            raise WorkerDiedError("its process was killed", began=False)
        self.listen, self.call_made = listen, call
        self._task = asyncio.ensure_future(self._script(self))
        try:
            return await self._task
        except asyncio.CancelledError:
            raise WorkerDiedError("its process was killed", began=True) from None

    def tell(self, word: str) -> None:
        assert word == "pause"
        self.told.set()

    async def stop(self) -> None:
        self.alive = False
        if self._task and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    def say(self, kind: str, **more: Any) -> None:
        self.listen({"kind": kind, **more})

    def finish_epoch(self, number: int) -> None:
        self.say("epoch", epoch={"epoch": number, "val_loss": 1.0, "train_loss": 1.0})

    def save(self, *, heard: bool = True) -> None:
        assert self.call_made
        self.call_made.outputs["checkpoint"].write_text("weights")
        if heard:
            self.say("checkpoint")


class Processes:
    """Starts processes; each takes the next script, the last one is for all that follow."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self.started: list[tuple[str, Process]] = []

    async def start(self, label: str, kind: Kind) -> Process:
        assert kind == "training"
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        process = Process(script)
        self.started.append((label.removeprefix("training "), process))
        return process


async def completes(process: Process) -> dict[str, Any]:
    process.say("stage", stage="training")
    process.finish_epoch(1)
    assert process.call_made
    (process.call_made.outputs["model"] / "model.pt").write_bytes(b"weights")
    return FINISHED


async def dies(process: Process) -> dict[str, Any]:
    raise WorkerDiedError("its process was killed", began=True)


async def saves_and_dies(process: Process) -> dict[str, Any]:
    process.finish_epoch(1)
    process.save()
    raise WorkerDiedError("its process was killed", began=True)


async def saves_and_hangs(process: Process) -> dict[str, Any]:
    process.say("stage", stage="training")
    process.finish_epoch(1)
    process.save()
    await asyncio.Event().wait()
    return FINISHED


async def waits_for_pause(process: Process) -> dict[str, Any]:
    process.say("stage", stage="training")
    await process.told.wait()
    process.finish_epoch(1)
    process.save()
    return {"outcome": "paused"}


async def hangs(process: Process) -> dict[str, Any]:
    process.say("stage", stage="training")
    await asyncio.Event().wait()
    raise AssertionError


async def fails(process: Process) -> dict[str, Any]:
    raise BadInputError("The training diverged.")


def spec(**training: Any) -> TrainingSpec:
    return TrainingSpec(
        architecture=ArchitectureChoice(type="unet"),
        input_config=InputConfig(num_channels=3),
        training=Hyperparameters(**training),
        classes=["a", "b"],
        data_path="/data",
    )


@asynccontextmanager
async def running(
    root: Path, *scripts: Script, devices: tuple[str, ...] = ("cpu",)
) -> AsyncIterator[tuple[Runner, Book, Processes]]:
    """A server's runner on a state directory, ended as SIGTERM ends it."""
    state = StateDir(root / "state")
    for folder in (state.jobs, state.models):
        folder.mkdir(parents=True, exist_ok=True)
    processes = Processes(*scripts)
    book = Book(lambda: SqlJobStore(state.job_records))
    classifiers = ClassifierStore(state.models, root / "foreign")
    runner = Runner(processes, book, classifiers, state, devices=devices, options={})
    await runner.start()
    try:
        yield runner, book, processes
    finally:
        await runner.close()


async def until(condition: Callable[[], object]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("never")


def kept(root: Path) -> dict[str, Job]:
    """What a next server would find."""
    store = SqlJobStore(root / "state" / "jobs.sqlite")
    try:
        return {job.id: job for job in store.load()}
    finally:
        store.close()


def recorded(root: Path, job: Job) -> JobFolder:
    """A job in a state directory, as another server left it."""
    (root / "state" / "jobs").mkdir(parents=True, exist_ok=True)
    store = SqlJobStore(root / "state" / "jobs.sqlite")
    store.save(job)
    store.close()
    return JobFolder(root / "state" / "jobs", job.id)
