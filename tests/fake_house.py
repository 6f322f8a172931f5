"""The server's application on a machine that computes nothing: what becomes of processes can be told exactly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from segserve.api.build import create_app
from segserve.api.slicer.door import Door
from segserve.settings import Settings
from segserve.state import StateDir
from segserve.workers.offers import Offers
from segserve.workers.placement import Call, Kind, Listener, WorkerDiedError
from segserve.workers.supervisor import Supervisor

IMAGE = {"image": ("image.nii.gz", b"a volume")}


class FakeWorker:
    """Computes on a GPU unless the load says otherwise."""

    def __init__(self, placement: FakePlacement) -> None:
        self.device = ""
        self.answers = 0
        self._alive = True
        self._doing: asyncio.Future[None] | None = None
        self._placement = placement

    @property
    def alive(self) -> bool:
        return self._alive

    async def call(self, call: Call, listen: Listener | None = None) -> dict[str, Any]:
        del listen
        if call.verb == "load":
            return await self._load(call.body["request"])
        if not self._alive:
            raise WorkerDiedError("it has ended", began=False)
        await self._do(self._placement.before_answer)
        self.answers += 1
        call.outputs["labels"].write_bytes(self.device.encode())
        numbers = {"patches": 2, "skipped": 0, "seconds": 3.0, "warnings": []}
        return {**numbers, "engine": "fake", "device": self.device, "precision": "float32"}

    def tell(self, word: str) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        self._alive = False
        if self._doing:
            self._doing.cancel()
        await self._placement.before_gone()

    async def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        self.device = request["inference_config"].get("forward_device", "cuda")
        if self.device == "cpu":
            await self._do(self._placement.before_cpu)
        computed = {"engine": "fake", "device": self.device, "precision": "float32"}
        verdicts = [{**computed, "seconds": 1.0, "error": None, "refused": None}]
        return {"card": {**computed, "batch": 2, "engines": verdicts}, "fingerprint": "same"}

    async def _do(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._doing = asyncio.ensure_future(work())
        await asyncio.wait([self._doing])
        if self._doing.cancelled():
            raise WorkerDiedError("it has ended", began=True)
        self._doing.result()


async def at_once() -> None:
    """A load on the processor, an answer, or an end, that takes no time."""


@dataclass
class FakePlacement:
    """A machine with a GPU."""

    workers: list[FakeWorker] = field(default_factory=list)
    before_cpu: Callable[[], Coroutine[Any, Any, None]] = at_once
    before_answer: Callable[[], Coroutine[Any, Any, None]] = at_once
    before_gone: Callable[[], Coroutine[Any, Any, None]] = at_once

    async def start(self, label: str, kind: Kind) -> FakeWorker:
        del label, kind
        self.workers.append(FakeWorker(self))
        return self.workers[-1]

    def alive(self) -> list[str]:
        return sorted(worker.device for worker in self.workers if worker.alive)


@dataclass
class House:
    """The server's application on such a machine."""

    app: FastAPI
    placement: FakePlacement
    path: Path

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, client=("127.0.0.1", 1))
        return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000")

    async def load(self, client: httpx.AsyncClient, **config: Any) -> None:
        body = {"name": "a", "backend_type": "onnx", "model_path": str(self.path), "inference_config": config}
        answer = await client.post("/api/models", json=body)
        assert answer.status_code == 200, answer.text


def make_house(folder: Path, **settings: Any) -> House:
    chosen = Settings(state_dir=folder / "state", **settings)
    chosen.state_dir.mkdir()
    app, placement = create_app(chosen, StateDir(chosen.state_dir)), FakePlacement()
    app.state.supervisor = Supervisor(placement, chosen)
    app.state.door = Door(app.state.supervisor, Offers(app.state.supervisor, chosen))
    (folder / "a.onnx").write_bytes(b"a network")
    return House(app, placement, folder / "a.onnx")
