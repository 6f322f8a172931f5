"""Log lines as JSON, and the requests and jobs they belong to."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from segserve import logs
from segserve.errors import BadInputError, SegserveError
from segserve.jobs.book import Book
from segserve.jobs.runner import Runner
from segserve.jobs.store import SqlJobStore
from segserve.models.classifiers import ClassifierStore
from segserve.state import StateDir
from segserve.training.spec import ArchitectureChoice, Hyperparameters, InputConfig, TrainingSpec
from segserve.workers.placement import Call, Kind, Worker
from segserve.workers.placement.local import LocalPlacement
from tests.networks import threshold_network
from tests.scripted_jobs import Process
from tests.serving import start_server, wait_until
from tests.volumes import write
from tests.watching import json_lines, linux_only


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write(tmp_path / "image.nii.gz", np.arange(20 * 18 * 16, dtype=np.int16).reshape(20, 18, 16))


@linux_only
def test_a_json_log_is_json_line_by_line_tracebacks_and_dying_words_included(tmp_path: Path, image: Path) -> None:
    served = start_server(
        tmp_path / "state", "--log-format", "json", env={"PYTHONFAULTHANDLER": "1", "TZ": "Asia/Kolkata"}
    )
    try:
        model = threshold_network(tmp_path / "a.onnx", 1)
        served.load("loud", model, inference_config={"patch_size": 16})
        (worker,) = served.workers()
        worker.rlimit(psutil.RLIMIT_FSIZE, (100, 100))
        with image.open("rb") as stream:
            asked = served.post("/api/infer", files={"image": stream}, headers={"X-Request-ID": "loud-1"})
        assert asked.status_code == 500
        assert "loud-1" in asked.text
        served.get("/api/v1/train/nobody/status", headers={"X-Request-ID": "polite"})
        for _ in range(3):
            served.get("/api/v1/health", headers={"X-Request-ID": "poll"})
        worker.send_signal(signal.SIGABRT)
        wait_until(lambda: any("Aborted" in line["message"] for line in json_lines(served)), 20)
    finally:
        served.stop()
    lines = json_lines(served)
    for line in lines:
        assert {"time", "level", "logger", "message", "pid"} <= line.keys(), line
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert abs(datetime.fromisoformat(line["time"]) - datetime.now(UTC)) < timedelta(minutes=5)
    (failure,) = [line for line in lines if "exception" in line]
    assert failure["exception"].startswith("Traceback")
    assert (failure["request_id"], failure["pid"], failure["level"]) == ("loud-1", worker.pid, "ERROR")
    (ended,) = [line for line in lines if line.get("route") == "/api/infer"]
    assert (ended["request_id"], ended["method"], ended["status"]) == ("loud-1", "POST", 500)
    assert ended["bytes"] == len(asked.content)
    assert ended["seconds"] > 0
    assert ended["pid"] == served.process.pid
    (missing,) = [line for line in lines if line.get("route") == "/api/v1/train/{job_id}/status"]
    assert (missing["request_id"], missing["status"]) == ("polite", 404)
    assert not [line for line in lines if line.get("request_id") == "poll"]
    assert {line["logger"] for line in lines if line["pid"] == worker.pid} >= {"segserve.worker.stderr"}
    assert "uvicorn.error" in {line["logger"] for line in lines}


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_workers_lines_carry_the_job_they_are_for(
    form: logs.LogFormat, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail() -> str:
        logs.about_job("1f0c9a3e")
        worker = await LocalPlacement(tmp_path, log_format=form).start("job", "volume")
        try:
            await worker.call(Call("segment", {}))
        except SegserveError as error:
            return error.message
        finally:
            await worker.stop()
        raise AssertionError("segmenting without a model is a bug, and must be told as one")

    assert "(job 1f0c9a3e)" in asyncio.run(fail())
    lines = capsys.readouterr().err.splitlines()
    if form == "text":
        assert [line for line in lines if "[job 1f0c9a3e] segserve.worker: unexpected failure" in line]
        return
    (line,) = map(json.loads, lines)
    assert line["job_id"] == "1f0c9a3e"
    assert "request_id" not in line
    assert "RuntimeError" in line["exception"]


def test_the_runner_tells_its_processes_which_job_they_are_for(tmp_path: Path) -> None:
    told: list[tuple[str, str, str]] = []

    async def refuse(process: Process) -> dict[str, Any]:
        del process
        raise BadInputError("no data")

    class Refusing:
        async def start(self, label: str, kind: Kind) -> Worker:
            told.append((label, logs.job_id.get(), logs.request_id.get()))
            return Process(refuse)

    async def two_jobs() -> list[str]:
        state = StateDir(tmp_path)
        for folder in (state.jobs, state.models):
            folder.mkdir()
        book = Book(lambda: SqlJobStore(state.job_records))
        store = ClassifierStore(state.models, tmp_path / "none")
        runner = Runner(Refusing(), book, store, state, devices=["cpu"], options={})
        await runner.start()
        logs.request_id.set("who-sent-it")
        jobs = [await runner.submit(_spec(), []) for _ in range(2)]
        for job in jobs:
            async for seen in book.watch(job.id):
                if seen.state == "failed":
                    break
        await runner.close()
        return [job.id for job in jobs]

    first, second = asyncio.run(two_jobs())
    assert set(told) == {(f"training {one}", one, "-") for one in (first, second)}


def _spec() -> TrainingSpec:
    return TrainingSpec(
        architecture=ArchitectureChoice(type="unet"),
        input_config=InputConfig(num_channels=3),
        training=Hyperparameters(),
        classes=["a", "b"],
        data_path="/data",
    )
