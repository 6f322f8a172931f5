"""Clients that hang up while others wait for the same process."""

from __future__ import annotations

import asyncio
import sys
import threading
from asyncio.subprocess import PIPE
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segserve.engines.verdict import Choice
from segserve.errors import SegserveError
from segserve.tiles.batch import Limits
from segserve.tiles.model import TileModel
from segserve.workers.placement import Call, local
from segserve.workers.verbs import Cancelled, Request
from segserve.workers.verbs.tiles import TILES_AT_ONCE, TileVerbs
from tests.serving import wait_until
from tests.tile_recipes import needs

SECONDS = 30.0
EDGE = 4
Values = NDArray[np.float32]

# Begins one call at a time, and ends one when it is told to go on.
ONE_BY_ONE = """
import json, sys

def say(**message):
    print(json.dumps(message), flush=True)

calls = []
for line in sys.stdin:
    message = json.loads(line)
    if "id" in message:
        calls.append(message["id"])
        begins = len(calls) == 1
    elif "tell" in message:
        say(id=calls.pop(0), reply={})
        begins = bool(calls)
    else:
        continue
    if begins:
        say(id=calls[0], began=True)
        say(id=calls[0], event={})
"""


@dataclass
class Held:
    """An engine that computes when the test says so, and keeps what it was fed."""

    name: str = "held"
    device: str = "cpu"
    precision: str = "float32"
    fed: list[int] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)
    may_end: threading.Event = field(default_factory=threading.Event)

    def __call__(self, batch: Values) -> Values:
        self.fed += [round(255 * float(tile.max())) for tile in batch]
        self.begun.set()
        assert self.may_end.wait(SECONDS)
        return batch


def request(body: dict[str, Any], inputs: dict[str, Path], cancelled: Callable[[], bool]) -> Request:
    return Request(body, inputs, {}, None, cancelled, lambda _: False, lambda _: None)


@dataclass
class Client:
    """A request for tiles of one value, its end, and the threads that have asked whether it has come."""

    verbs: TileVerbs
    folder: Path
    value: int
    gone: threading.Event = field(default_factory=threading.Event)
    asked_by: set[str] = field(default_factory=set)

    def ask(self, pool: ThreadPoolExecutor, count: int = 1) -> Future[dict[str, Any]]:
        blob = self.folder / f"{self.value}.raw"
        blob.write_bytes(bytes([self.value]) * (count * 3 * EDGE * EDGE))
        body = {
            "want": "means",
            "max_pixels": 1000,
            "max_bytes": 2**20,
            "blob": {
                "ids": [str(number) for number in range(count)],
                "height": EDGE,
                "width": EDGE,
                "channels": 3,
                "dtype": "uint8",
            },
            "input_config": {"normalization": {"strategy": "fixed_range"}},
        }
        return pool.submit(self.verbs.classify, request(body, {"blob": blob}, self.is_gone))

    def is_gone(self) -> bool:
        self.asked_by.add(threading.current_thread().name)
        return self.gone.is_set()


@pytest.fixture
def engine() -> Held:
    return Held()


@pytest.fixture
def client(engine: Held, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Client]:
    """Clients of one process, which computes with `engine`."""
    model = TileModel(Choice(engine, True, (1, 3, EDGE, EDGE)), needs(3), {}, Limits(64, 2**20))
    monkeypatch.setattr(TileModel, "load", lambda *_, **__: model)
    verbs = TileVerbs(tmp_path)
    verbs.load(request({"path": "model.onnx", "wish": {}}, {}, lambda: False))
    return lambda value: Client(verbs, tmp_path, value)


@pytest.fixture
def pool(engine: Held) -> Iterator[ThreadPoolExecutor]:
    threads = ThreadPoolExecutor(4)
    yield threads
    engine.may_end.set()
    threads.shutdown()


def test_a_client_that_hangs_up_is_let_go_while_the_engine_computes(
    engine: Held, client: Callable[[int], Client], pool: ThreadPoolExecutor
) -> None:
    first, second, third = client(10), client(20), client(30)
    computed = first.ask(pool)
    assert engine.begun.wait(SECONDS)
    waiting, other = second.ask(pool), third.ask(pool)
    for hung_up, answer in [(first, computed), (second, waiting)]:
        hung_up.gone.set()
        with pytest.raises(Cancelled):
            answer.result(SECONDS)
    assert not other.done()
    engine.may_end.set()
    assert other.result(SECONDS)["means"] == [[pytest.approx(1 / 3)] * 3]
    assert engine.fed == [10, 30]


def test_a_client_whose_tile_is_not_even_read_yet_is_let_go(
    engine: Held, client: Callable[[int], Client], pool: ThreadPoolExecutor
) -> None:
    large, small = client(10), client(20)
    computed = large.ask(pool, 2 * TILES_AT_ONCE)
    wait_until(
        lambda: sum(name.startswith("tile_") for name in large.asked_by) == TILES_AT_ONCE,
        SECONDS,
        "not every thread has a tile",
    )
    waiting = small.ask(pool)
    small.gone.set()
    with pytest.raises(Cancelled):
        waiting.result(SECONDS)
    engine.may_end.set()
    assert len(computed.result(SECONDS)["means"]) == 2 * TILES_AT_ONCE
    assert engine.fed == [10] * 2 * TILES_AT_ONCE


async def one_by_one() -> local.LocalWorker:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ONE_BY_ONE, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    return local.LocalWorker(process, "text")


async def begun(worker: local.LocalWorker) -> asyncio.Task[dict[str, Any]]:
    """A call that the worker has begun."""
    heard = asyncio.Event()
    task = asyncio.create_task(worker.call(Call("classify", {}), lambda _: heard.set()))
    await asyncio.wait_for(heard.wait(), SECONDS)
    return task


async def cancelled(task: asyncio.Task[dict[str, Any]]) -> bool:
    with suppress(asyncio.CancelledError, SegserveError):
        await asyncio.wait_for(task, SECONDS)
    return task.cancelled()


def test_a_call_that_waits_behind_anothers_costs_that_one_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "CANCEL_SECONDS", 0.05)

    async def story() -> None:
        worker = await one_by_one()
        served = await begun(worker)
        waiting = asyncio.create_task(worker.call(Call("classify", {})))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0.5)
        assert worker.alive
        assert not waiting.done(), "its files are let go while the process may still begin it"
        monkeypatch.setattr(local, "CANCEL_SECONDS", SECONDS)
        await asyncio.sleep(0.2)
        worker.tell("go on")
        worker.tell("go on")
        assert await asyncio.wait_for(served, SECONDS) == {}
        assert await cancelled(waiting)
        assert worker.alive
        await worker.stop()

    asyncio.run(story())


def test_a_call_that_does_not_end_when_it_is_cancelled_ends_with_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "CANCEL_SECONDS", 0.05)

    async def story() -> None:
        worker = await one_by_one()
        served = await begun(worker)
        served.cancel()
        assert await cancelled(served)
        assert not worker.alive

    asyncio.run(story())
