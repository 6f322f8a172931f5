"""Processes of named models come and go; the models stay until they are unloaded."""

from __future__ import annotations

import asyncio
import gc
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
from tests.scripted_jobs import until
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


def test_what_waits_for_the_second_process_is_counted_too(house: House) -> None:
    async def story() -> None:
        async with house.client() as client:
            await house.load(client)
            may_answer = asyncio.Event()

            async def before_answer() -> None:
                await may_answer.wait()

            house.placement.before_answer = before_answer
            asked = [asyncio.create_task(infer(client, force_cpu)) for force_cpu in ("true", "true", "true", "")]
            model = house.app.state.supervisor.models["a"]
            await until(lambda: sum(one.waiting for one in model.family) == 2)
            assert sum(one.busy for one in model.family) == 2
            assert (model.waiting, model.busy) == (0, True)
            may_answer.set()
            assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}

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


class SlowEnd:
    """Processes take as long to end as the test wants."""

    def __init__(self, house: House) -> None:
        self.begun = 0
        self.may_end = asyncio.Event()
        house.placement.before_gone = self._wait

    async def _wait(self) -> None:
        self.begun += 1
        await self.may_end.wait()


def test_an_unload_before_the_process_is_started_again_starts_none(house: House) -> None:
    async def story() -> None:
        async with house.client() as client:
            await house.load(client)
            await house.app.state.supervisor.rest()
            slow = SlowEnd(house)
            request = asyncio.create_task(infer(client, "false"))
            await until(lambda: slow.begun == 1)
            unload = asyncio.create_task(client.delete("/api/models/a"))
            await until(lambda: slow.begun == 2)
            slow.may_end.set()
            assert (await unload).status_code == 200
            answer = await request
            assert (answer.status_code, answer.json()["error"]) == (503, "The model a was unloaded.")
            assert len(house.placement.workers) == 1

    asyncio.run(story())


def test_a_model_unloaded_before_its_load_is_answered_does_not_become_current(house: House) -> None:
    async def story() -> None:
        async with house.client() as client:
            await house.load(client)
            slow = SlowEnd(house)
            body = {"backend_type": "onnx", "model_path": str(house.path)}
            load = asyncio.create_task(client.post("/api/model", json=body))
            await until(lambda: slow.begun == 1)  # the new one is loaded; the old one ends
            unload = asyncio.create_task(client.delete("/api/models/a"))
            await until(lambda: slow.begun == 2)
            slow.may_end.set()
            assert (await unload).status_code == 200
            answer = await load
            assert (answer.status_code, answer.json()["error"]) == (503, "The model a was unloaded.")
            for name in ("a", "b"):
                assert (await client.post("/api/models", json={**body, "name": name})).status_code == 200
            assert (await client.get("/api/info")).json()["model"] is None

    asyncio.run(story())


def test_names_that_could_not_be_loaded_leave_nothing_behind(house: House) -> None:
    async def refuse() -> None:
        raise BadInputError("The network is too large.")

    def locks() -> int:
        gc.collect()
        return sum(type(one) is asyncio.Lock for one in gc.get_objects())

    async def story() -> None:
        house.placement.before_cpu = refuse
        body = {"backend_type": "onnx", "model_path": str(house.path), "inference_config": {"forward_device": "cpu"}}
        async with house.client() as client:
            await client.get("/api/info")
            before = locks()
            for number in range(20):
                assert (await client.post("/api/models", json={**body, "name": f"n{number}"})).status_code == 400
            assert locks() < before + 10

    asyncio.run(story())


def test_a_client_that_hangs_up_in_the_moment_of_its_turn_keeps_nobody_waiting(house: House) -> None:
    async def story(moment: int, client: httpx.AsyncClient) -> None:
        may_answer = asyncio.Event()

        async def wait() -> None:
            await may_answer.wait()

        house.placement.before_answer = wait
        model = house.app.state.supervisor.get("a")
        running = asyncio.create_task(infer(client, "false"))
        await until(lambda: model.busy)
        leaving = asyncio.create_task(infer(client, "false"))
        await until(lambda: model.waiting == 1)
        staying = asyncio.create_task(infer(client, "false"))
        await until(lambda: model.waiting == 2)
        may_answer.set()
        for _ in range(moment):
            await asyncio.sleep(0)
        leaving.cancel()
        answers = await asyncio.wait_for(asyncio.gather(running, staying), 10)
        assert [answer.status_code for answer in answers] == [200, 200]
        assert not model.busy

    async def stories() -> None:
        async with house.client() as client:
            await house.load(client)
            for moment in range(12):
                await story(moment, client)

    asyncio.run(stories())


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
