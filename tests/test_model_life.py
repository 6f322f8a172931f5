"""Processes of named models come and go; the models stay until they are unloaded."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from segserve.errors import BadInputError
from tests.fake_house import IMAGE, House, at_once, make_house
from tests.serving import Served, start_server, wait_until
from tests.small_networks import assert_labels, error_of, save_volume, threshold_network


@pytest.fixture
def house(tmp_path: Path) -> House:
    return make_house(tmp_path)


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


def test_an_unload_does_not_wait_for_a_process_that_takes_its_time_to_die(house: House) -> None:
    async def story() -> None:
        gone = asyncio.Event()

        async def wait() -> None:
            await gone.wait()

        async with house.client() as client:
            await house.load(client)
            house.placement.before_gone = wait
            began = time.monotonic()
            assert (await client.delete("/api/models/a")).status_code == 200
            assert time.monotonic() - began < 2
            closing = asyncio.create_task(house.app.state.supervisor.close())
            await asyncio.sleep(0.1)
            assert not closing.done()
            gone.set()
            await asyncio.wait_for(closing, 5)

    asyncio.run(story())


@pytest.mark.skipif(sys.platform == "win32", reason="there, how a process was ended cannot be told")
@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGKILL, 503, "memory"), (signal.SIGTERM, 503, "outside"), (signal.SIGSEGV, 400, "crashed (SIGSEGV)")],
)
def test_a_process_that_ends_while_it_loads_is_told_apart(
    server: Served, tmp_path: Path, number: signal.Signals, status: int, word: str
) -> None:
    network, name = threshold_network(tmp_path / "net.onnx"), f"ended by {number.name}"
    body = {"name": name, "backend_type": "onnx", "model_path": str(network)}
    with ThreadPoolExecutor() as pool:
        loading = pool.submit(server.post, "/api/models", json=body)
        wait_until(lambda: server.pids_of(name), 10)
        for pid in server.pids_of(name):
            os.kill(pid, number)
        answer = loading.result(30)
    sentence = error_of(answer, status)
    assert str(network) in sentence
    assert word in sentence
    assert ("Retry-After" in answer.headers) == (status == 503)
    assert name not in server.get("/api/info").json()["models"]


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
