"""How far a request is, told while it runs; and what a model says of its speed."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, closing
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from segserve.api import progress
from segserve.api.delivery import FileAnswer, Wanted
from segserve.api.slicer.early import GZIP_HEADER, EarlyAnswer
from tests.serving import Served, wait_until
from tests.small_networks import error_of, save_volume, threshold_network

FINE = {"patch_size": 4, "patch_stride": 1}
Event = tuple[str, dict[str, Any]]


@pytest.fixture(scope="module")
def fine(server: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The server with a model that does a lot of work on little data."""
    path = threshold_network(tmp_path_factory.mktemp("progress") / "fine.onnx", 100)
    server.load("progress", path, inference_config=FINE)
    yield server
    server.delete("/api/models/progress")


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By how long they take: a moment, seconds, minutes."""
    folder = tmp_path_factory.mktemp("volumes")
    for name, edge in [("short", 8), ("long", 30), ("endless", 104)]:
        save_volume(folder / f"{name}.nii.gz", (edge,) * 3, dtype=np.uint8)
    return {path.name.partition(".")[0]: path for path in folder.iterdir()}


def infer(served: Served, image: Path, identity: str, **kwargs: Any) -> requests.Response:
    with image.open("rb") as stream:
        return served.post(
            "/api/infer",
            data={"model_name": "progress"},
            files={"image": stream},
            headers={"X-Request-ID": identity},
            **kwargs,
        )


def listen(served: Served, identity: str) -> Iterator[tuple[float, Event]]:
    """The events of a request with the time at which each came."""
    kind = ""
    with closing(served.get(f"/api/progress/{identity}", stream=True, timeout=30)) as answer:
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        for line in answer.iter_lines(chunk_size=1, decode_unicode=True):
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield time.monotonic(), (kind, json.loads(line.removeprefix("data: ")))


def events(served: Served, identity: str) -> list[Event]:
    return [event for _, event in listen(served, identity)]


def stages(told: list[Event]) -> list[str]:
    return list(dict.fromkeys(data["stage"] for _, data in told))


def test_a_watcher_who_comes_first_hears_every_stage_in_order(fine: Served, volumes: dict[str, Path]) -> None:
    with ThreadPoolExecutor() as pool:
        watcher = pool.submit(lambda: list(listen(fine, "watched-1")))
        time.sleep(0.3)
        answer = infer(fine, volumes["long"], "watched-1")
        assert answer.status_code == 200, answer.text
        timed = watcher.result(20)
    told = [event for _, event in timed]
    assert stages(told) == ["received", "patches", "writing", "done"]
    assert [kind for kind, _ in told] == ["progress"] * (len(told) - 1) + ["done"]
    assert all(set(data) == {"stage", "done", "total", "seconds"} for _, data in told)
    size, patches = volumes["long"].stat().st_size, int(answer.headers["X-Segserve-Patches"])
    assert (told[0][1]["done"], told[0][1]["total"]) == (size, size)
    steps = [data for _, data in told if data["stage"] == "patches"]
    assert len(steps) > 1
    assert {data["total"] for data in steps} == {patches}
    assert all(first["done"] < second["done"] <= patches for first, second in pairwise(steps))
    assert all(first["seconds"] <= second["seconds"] for (_, first), (_, second) in pairwise(told))
    times = [when for when, (kind, _) in timed if kind == "progress"]
    assert all(later - earlier > 0.6 for earlier, later in zip(times, times[4:], strict=False))


def test_a_request_that_has_ended_can_still_be_read(fine: Served, volumes: dict[str, Path]) -> None:
    assert infer(fine, volumes["short"], "watched-2").status_code == 200
    assert stages(events(fine, "watched-2")) == ["received", "patches", "writing", "done"]
    assert events(fine, "watched-2")[-1][0] == "done"


def test_a_refused_request_fails_with_its_sentence(fine: Served, tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"not a volume")
    sentence = error_of(infer(fine, tmp_path / "a.nii.gz", "watched-3"), 400)
    kind, data = events(fine, "watched-3")[-1]
    assert (kind, data["error"], data["stage"]) == ("failed", sentence, "received")


def test_a_request_without_image_fails_before_any_stage(fine: Served) -> None:
    answer = fine.post("/api/infer", data={"model_name": "progress"}, headers={"X-Request-ID": "watched-4"})
    assert [kind for kind, _ in events(fine, "watched-4")] == ["failed"]
    assert events(fine, "watched-4")[0][1]["error"] == error_of(answer, 400)


def test_an_id_in_flight_is_refused_and_a_hang_up_is_told(fine: Served, volumes: dict[str, Path]) -> None:
    def give_up() -> None:
        with pytest.raises(requests.ReadTimeout):
            infer(fine, volumes["endless"], "watched-5", timeout=2)

    running = threading.Thread(target=give_up)
    running.start()
    watcher = listen(fine, "watched-5")
    wait_until(lambda: next(watcher)[1][1]["stage"] == "patches", 5)
    sentence = error_of(infer(fine, volumes["short"], "watched-5"), 409)
    assert "watched-5" in sentence
    *_, (_, last) = watcher
    running.join()
    assert last[0] == "cancelled"
    assert last[1]["stage"] == "patches"
    assert 0 < last[1]["done"] < last[1]["total"]
    # The id is free again.
    assert infer(fine, volumes["short"], "watched-5").status_code == 200
    assert events(fine, "watched-5")[-1][0] == "done"


def test_what_never_comes_and_what_ended_long_ago_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "WAIT_SECONDS", 0.2)
    monkeypatch.setattr(progress, "KEPT_SECONDS", 0.2)

    async def watched(book: progress.Progress) -> list[str | None]:
        return [event.event async for event in book.watch("a")]

    async def story() -> None:
        book = progress.Progress()
        assert await watched(book) == ["failed"]
        with book.track("a"):
            pass
        assert await watched(book) == ["done"]
        await asyncio.sleep(0.3)
        assert await watched(book) == ["failed"]
        with book.track("a"):
            watcher = asyncio.create_task(watched(book))
            await asyncio.sleep(0.3)
        assert await watcher == ["done"]

    asyncio.run(story())


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(("stays", "end"), [(True, "done"), (False, "cancelled")])
def test_who_leaves_while_the_file_is_sent_has_not_got_it(tmp_path: Path, stays: bool, end: str, early: bool) -> None:
    labels, scope = tmp_path / "labels", {"type": "http", "method": "POST", "headers": []}
    labels.write_bytes(GZIP_HEADER + bytes(2**18 - len(GZIP_HEADER)))
    sent: list[Message] = []
    left = asyncio.Event()

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) == 2 and not stays:
            left.set()

    async def receive() -> Message:
        await left.wait()
        return {"type": "http.disconnect"}

    async def story() -> None:
        book = progress.Progress()
        stack = AsyncExitStack()
        stack.enter_context(book.track("a"))
        answer: Response = FileAnswer(labels, {}, stack)
        if early:
            wanted: Wanted[Any] = Wanted(Request(scope, receive), asyncio.sleep(0, {"warnings": []}))
            stack.push_async_callback(wanted.aclose)
            answer = EarlyAnswer(wanted, labels, {}, stack, pulse=60)
        await answer(scope, receive, send)
        assert [event.event async for event in book.watch("a")] == [end]

    asyncio.run(story())
    assert sum(len(message.get("body", b"")) for message in sent) == 2**18 or not stays


def test_the_head_of_a_stream_keeps_nobody_waiting(server: Served) -> None:
    address = urlsplit(server.url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=20)
    with closing(connection):
        for method, path in [("HEAD", "/api/progress/nobody-s"), ("GET", "/healthz")]:
            connection.request(method, path)
            answer = connection.getresponse()
            assert answer.status == 200
            answer.read()


@pytest.mark.parametrize("identity", ["a" * 65, "a%20b", "b%C3%A4r", "a:b"])
def test_what_can_be_no_id_is_refused(server: Served, identity: str) -> None:
    assert "X-Request-ID" in error_of(server.get(f"/api/progress/{identity}"), 400)


def test_the_speed_is_the_trials_and_then_the_last_volumes(fine: Served, volumes: dict[str, Path]) -> None:
    path = fine.get("/api/info").json()["models"]["progress"]["model_path"]
    model = fine.load("speed", Path(path), inference_config=FINE)
    (chosen,) = (
        verdict
        for verdict in model["engines"]
        if all(verdict[key] == model[key] for key in ("engine", "device", "precision"))
    )
    assert model["seconds_per_patch"] == pytest.approx(chosen["seconds"] / model["batch"], abs=1e-6)
    with volumes["short"].open("rb") as stream:
        answer = fine.post("/api/infer", data={"model_name": "speed"}, files={"image": stream})
    seconds, patches = (float(answer.headers[f"X-Segserve-{name}"]) for name in ("Seconds", "Patches"))
    told = fine.get("/api/info").json()["models"]["speed"]["seconds_per_patch"]
    fine.delete("/api/models/speed")
    assert told == pytest.approx(seconds / patches, abs=1e-6)
    assert told > 0
