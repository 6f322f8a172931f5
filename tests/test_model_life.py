"""Processes of named models come and go; the models stay until they are unloaded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from fastapi import FastAPI

from segserve.api.build import create_app
from segserve.api.slicer.door import Door
from segserve.errors import BadInputError
from segserve.settings import Settings
from segserve.state import StateDir
from segserve.workers.placement import Call, Kind, Listener, WorkerDiedError
from segserve.workers.supervisor import Supervisor
from tests.serving import start_server, wait_until
from tests.small_networks import assert_labels, save_volume, threshold_network

IMAGE = {"image": ("image.nii.gz", b"a volume")}


class FakeWorker:
    """Computes on a GPU unless the load says otherwise."""

    def __init__(self, placement: FakePlacement) -> None:
        self.device = ""
        self._alive = True
        self._loading: asyncio.Future[None] | None = None
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
        call.outputs["labels"].write_bytes(self.device.encode())
        numbers = {"patches": 2, "skipped": 0, "seconds": 3.0, "warnings": []}
        return {**numbers, "engine": "fake", "device": self.device, "precision": "float32"}

    def tell(self, word: str) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        self._alive = False
        if self._loading:
            self._loading.cancel()

    async def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        self.device = request["inference_config"].get("forward_device", "cuda")
        if self.device == "cpu":
            self._loading = asyncio.ensure_future(self._placement.before_cpu())
            await asyncio.wait([self._loading])
            if self._loading.cancelled():
                raise WorkerDiedError("it has ended", began=True)
            self._loading.result()
        computed = {"engine": "fake", "device": self.device, "precision": "float32"}
        verdicts = [{**computed, "seconds": 1.0, "error": None, "refused": None}]
        return {"card": {**computed, "batch": 2, "engines": verdicts}, "fingerprint": "same"}


async def at_once() -> None:
    """A load on the processor that takes no time."""


@dataclass
class FakePlacement:
    """A machine with a GPU."""

    workers: list[FakeWorker] = field(default_factory=list)
    before_cpu: Callable[[], Coroutine[Any, Any, None]] = at_once

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


@pytest.fixture
def house(tmp_path: Path) -> House:
    return make_house(tmp_path)


def make_house(folder: Path, **settings: Any) -> House:
    chosen = Settings(state_dir=folder / "state", **settings)
    chosen.state_dir.mkdir()
    app, placement = create_app(chosen, StateDir(chosen.state_dir)), FakePlacement()
    app.state.supervisor = Supervisor(placement, chosen)
    app.state.door = Door(app.state.supervisor)
    (folder / "a.onnx").write_bytes(b"a network")
    return House(app, placement, folder / "a.onnx")


async def infer(client: httpx.AsyncClient, force_cpu: str) -> httpx.Response:
    return await client.post("/api/infer", data={"model_name": "a", "force_cpu": force_cpu}, files=IMAGE)


async def device_of(client: httpx.AsyncClient, force_cpu: str) -> str:
    answer = await infer(client, force_cpu)
    assert answer.status_code == 200, answer.text
    device = answer.headers["X-Segserve-Device"]
    assert answer.content == device.encode()
    return device


def test_force_cpu_is_a_second_process_beside_the_first(house: House) -> None:
    async def story() -> None:
        async with house.client() as client:
            await house.load(client)
            assert await device_of(client, "false") == "cuda"
            assert house.placement.alive() == ["cuda"]
            devices = await asyncio.gather(*(device_of(client, "true") for _ in range(3)))
            assert devices == ["cpu"] * 3
            assert await device_of(client, "") == "cuda"
            assert house.placement.alive() == ["cpu", "cuda"]
            models = (await client.get("/api/info")).json()["models"]
            assert {name: model["device"] for name, model in models.items()} == {"a": "cuda"}
            assert models["a"]["inference_config"] == {}
            assert models["a"]["seconds_per_patch"] == 1.5
            await house.load(client)
            assert house.placement.alive() == ["cuda"]

    asyncio.run(story())


def test_force_cpu_changes_nothing_for_a_model_on_the_processor(house: House) -> None:
    async def story() -> None:
        async with house.client() as client:
            await house.load(client, forward_device="cpu")
            assert await device_of(client, "true") == "cpu"
            assert len(house.placement.workers) == 1

    asyncio.run(story())


def test_the_second_process_ends_with_the_model(house: House) -> None:
    async def story() -> None:
        async with house.client() as client:
            await house.load(client)
            assert await device_of(client, "true") == "cpu"
            assert (await client.delete("/api/models/a")).status_code == 200
            assert house.placement.alive() == []

    asyncio.run(story())


def test_clearing_ends_both_and_either_comes_back_alone(house: House) -> None:
    async def story() -> None:
        async with house.client() as client:
            await house.load(client)
            assert await device_of(client, "true") == "cpu"
            await house.app.state.supervisor.rest()
            assert house.placement.alive() == []
            assert await device_of(client, "true") == "cpu"
            assert house.placement.alive() == ["cpu"]
            assert await device_of(client, "false") == "cuda"
            assert house.placement.alive() == ["cpu", "cuda"]

    asyncio.run(story())


def test_both_end_when_idle_and_come_back(tmp_path: Path) -> None:
    house = make_house(tmp_path, model_idle=0.3)

    async def story() -> None:
        async with house.client() as client:
            await house.load(client)
            assert await device_of(client, "true") == "cpu"
            await asyncio.sleep(0.2)
            assert await device_of(client, "true") == "cpu"
            await asyncio.sleep(0.2)
            assert house.placement.alive() == ["cpu"]
            await asyncio.sleep(0.4)
            assert house.placement.alive() == []
            assert list((await client.get("/api/info")).json()["models"]) == ["a"]
            assert await device_of(client, "true") == "cpu"
            assert await device_of(client, "false") == "cuda"

    asyncio.run(story())


def test_a_load_on_the_processor_that_fails_is_told_and_tried_again(house: House) -> None:
    async def refuse() -> None:
        raise BadInputError("The network is too large.")

    async def story() -> None:
        async with house.client() as client:
            await house.load(client)
            house.placement.before_cpu = refuse
            answer = await infer(client, "true")
            assert answer.status_code == 503
            assert "The network is too large." in answer.json()["error"]
            assert house.placement.alive() == ["cuda"]
            house.placement.before_cpu = at_once
            assert await device_of(client, "true") == "cpu"

    asyncio.run(story())


@pytest.mark.parametrize(("clears", "word"), [(False, "unloaded"), (True, "cleared")])
def test_a_load_on_the_processor_ends_with_the_model(house: House, *, clears: bool, word: str) -> None:
    async def story() -> None:
        began = asyncio.Event()

        async def wait_for_ever() -> None:
            began.set()
            await asyncio.Event().wait()

        async with house.client() as client:
            await house.load(client)
            house.placement.before_cpu = wait_for_ever
            waiting = asyncio.create_task(infer(client, "true"))
            await began.wait()
            if clears:
                await house.app.state.supervisor.rest()
            else:
                assert (await client.delete("/api/models/a")).status_code == 200
            answer = await waiting
            assert answer.status_code == 503
            assert word in answer.json()["error"]
            assert house.placement.alive() == []

    asyncio.run(story())


def test_an_idle_models_process_ends_and_the_next_request_starts_another(tmp_path: Path) -> None:
    idle = 1.5
    served = start_server(tmp_path / "state", "--model-idle", str(idle))
    try:
        served.load("a", threshold_network(tmp_path / "a.onnx", 100))
        voxels = save_volume(tmp_path / "image.nii.gz")
        (first,) = served.workers()
        wait_until(lambda: not served.workers(), 10 * idle, "the idle process did not end")
        assert not psutil.pid_exists(first.pid)
        assert served.get("/api/info").json()["models"]["a"]["loaded"] is True
        assert_labels(served.infer(tmp_path / "image.nii.gz"), voxels > 100)
        assert served.workers()
        assert served.post("/api/v1/gpu/clear").status_code == 200
        assert not served.workers()
    finally:
        served.stop()
