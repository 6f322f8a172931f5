"""A model whose file changes while requests run and wait: none of them is lost, and no process is left over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest

from segserve.workers.loaded import LoadedModel
from segserve.workers.supervisor import Supervisor
from tests.fake_house import IMAGE, make_house
from tests.scripted_jobs import until

Task = asyncio.Task[httpx.Response]


class Shelf:
    """A house whose model folder holds one network, `a`; requests wait until the test lets them be answered."""

    def __init__(self, tmp_path: Path, device: str, **settings: Any) -> None:
        self._network = tmp_path / "models" / "a.onnx"
        self._network.parent.mkdir()
        self._network.write_bytes(b"a network")
        self._network.with_suffix(".json").write_text(f'{{"inference_config": {{"forward_device": "{device}"}}}}')
        self.house = make_house(tmp_path, model_dir=[self._network.parent], **settings)
        self.may_answer = asyncio.Event()
        self.placement = self.house.placement
        self.placement.before_answer = self._wait
        self.supervisor: Supervisor = self.house.app.state.supervisor

    async def _wait(self) -> None:
        await self.may_answer.wait()

    @property
    def model(self) -> LoadedModel:
        return self.supervisor.get("a")

    async def change(self) -> None:
        """Have the server see other contents of the file, and wait until they are loaded."""
        before = self.model
        self._network.write_bytes(self._network.read_bytes() + b"!")
        await self.house.app.state.door.offers.find("models of no folder")  # looks at the folders
        await until(lambda: self.model is not before)

    def ended(self) -> list[bool]:
        """Of each process that was ever started, whether it has ended."""
        return [not worker.alive for worker in self.placement.workers]


def told(shelf: Shelf, story: Callable[[httpx.AsyncClient], Coroutine[Any, Any, None]]) -> None:
    """Have a story happen once the network is loaded; no process outlives it."""

    async def whole() -> None:
        async with shelf.house.client() as client:
            await shelf.house.app.state.door.offers.begin()
            try:
                await until(lambda: "a" in shelf.supervisor.models)
                await asyncio.wait_for(story(client), 30)
            finally:
                await shelf.house.app.state.door.offers.close()
                await shelf.supervisor.close()
        assert all(shelf.ended())

    asyncio.run(whole())


def ask(client: httpx.AsyncClient, **form: str) -> Task:
    return asyncio.create_task(client.post("/api/infer", data={"model_name": "a", **form}, files=IMAGE))


async def one_runs(shelf: Shelf, client: httpx.AsyncClient, waiting: int, **form: str) -> list[Task]:
    """Requests, the first of which is being computed while the others wait."""
    running = ask(client, **form)
    await until(lambda: shelf.model.busy)
    others = [ask(client, **form) for _ in range(waiting)]
    await until(lambda: shelf.model.waiting == waiting)
    return [running, *others]


async def statuses(requests: list[Task]) -> list[int]:
    return [answer.status_code for answer in await asyncio.gather(*requests)]


def test_the_running_request_is_answered_and_those_that_wait_go_to_the_new_process(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, "cpu", max_waiting=2)

    async def story(client: httpx.AsyncClient) -> None:
        requests = await one_runs(shelf, client, waiting=2)
        await shelf.change()
        await until(lambda: shelf.model.waiting == 1)  # one of the two runs, beside the one that ran before
        assert shelf.ended() == [False, False]
        requests.append(ask(client))
        await until(lambda: shelf.model.waiting == 2)
        shelf.may_answer.set()
        assert await statuses(requests) == [200] * 4
        await until(lambda: shelf.ended() == [True, False])
        assert [worker.answers for worker in shelf.placement.workers] == [1, 3]

    told(shelf, story)


def test_none_is_refused_because_others_wait_for_the_new_process(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, "cpu", max_waiting=2)

    async def story(client: httpx.AsyncClient) -> None:
        requests = await one_runs(shelf, client, waiting=2)
        await shelf.change()
        await until(lambda: shelf.model.waiting == 1)
        requests.append(ask(client))
        await until(lambda: shelf.model.waiting == 2)
        await shelf.change()
        await until(lambda: shelf.model.waiting == 1)
        requests.append(ask(client))
        await until(lambda: shelf.model.waiting == 2)
        assert (await ask(client)).status_code == 503
        shelf.may_answer.set()
        assert await statuses(requests) == [200] * 5
        await until(lambda: shelf.ended() == [True, True, False])

    told(shelf, story)


def test_requests_on_the_processor_go_to_the_new_models_own(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, "cuda")

    async def story(client: httpx.AsyncClient) -> None:
        running = ask(client, force_cpu="true")
        await until(lambda: len(shelf.placement.workers) == 2)
        waiting = ask(client, force_cpu="true")
        await asyncio.sleep(0.1)
        await shelf.change()
        await until(lambda: len(shelf.placement.workers) == 4)
        shelf.may_answer.set()
        answers = [await running, await waiting]
        assert [(answer.status_code, answer.content) for answer in answers] == [(200, b"cpu")] * 2
        assert [(worker.device, worker.answers) for worker in shelf.placement.workers] == [
            ("cuda", 0),
            ("cpu", 1),
            ("cuda", 0),
            ("cpu", 1),
        ]
        await until(lambda: shelf.ended() == [True, True, False, False])

    told(shelf, story)


def test_one_that_waits_for_its_model_on_the_processor_gets_the_new_one(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, "cuda")
    may_load = asyncio.Event()

    async def wait() -> None:
        await may_load.wait()

    async def story(client: httpx.AsyncClient) -> None:
        shelf.may_answer.set()
        shelf.placement.before_cpu = wait
        request = ask(client, force_cpu="true")
        await until(lambda: len(shelf.placement.workers) == 2)
        await asyncio.sleep(0.1)
        await shelf.change()
        await until(lambda: len(shelf.placement.workers) == 4)
        may_load.set()
        answer = await request
        assert (answer.status_code, answer.content) == (200, b"cpu")
        assert shelf.ended() == [True, True, False, False]

    told(shelf, story)


@pytest.mark.parametrize("how", ["unload", "client's load", "clear", "shutdown"])
def test_what_ends_the_new_process_ends_the_old_one_at_once(how: str, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, "cpu")

    async def story(client: httpx.AsyncClient) -> None:
        requests = await one_runs(shelf, client, waiting=1)
        await shelf.change()
        await shelf.change()
        assert shelf.ended() == [False, False, False]
        if how == "unload":
            assert (await client.delete("/api/models/a")).status_code == 200
        elif how == "client's load":
            await shelf.house.load(client)
        elif how == "clear":
            await shelf.supervisor.rest()
        else:
            await shelf.supervisor.close()
        assert shelf.ended()[:3] == [True, True, True]
        answers = await asyncio.gather(*requests)
        assert [answer.status_code for answer in answers] == [503, 503]
        word = "stopped while it worked" if how == "clear" else "unloaded"
        assert all(word in answer.json()["error"] for answer in answers)

    told(shelf, story)


def test_the_current_model_stays_current(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, "cpu")

    async def story(client: httpx.AsyncClient) -> None:
        shelf.may_answer.set()
        await shelf.change()
        assert (await client.get("/api/info")).json()["model"]["name"] == "a"
        answer = await client.post("/api/infer", files=IMAGE)
        assert answer.status_code == 200
        assert [worker.answers for worker in shelf.placement.workers] == [0, 1]

    told(shelf, story)
