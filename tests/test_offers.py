"""When models of model folders are loaded, and what becomes of them beside clients' own; nothing is computed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx

from segserve.errors import BadInputError
from tests.fake_house import IMAGE, House, make_house

Model = dict[str, Any]


def fake_models(tmp_path: Path, *names: str, **settings: Any) -> House:
    """A house whose model folder holds networks that load on the processor, as slowly as a test wants."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name in names:
        (folder / f"{name}.onnx").write_bytes(b"a network")
        (folder / f"{name}.json").write_text('{"inference_config": {"forward_device": "cpu"}}')
    return make_house(tmp_path, model_dir=[folder], **settings)


def told(house: House, story: Callable[[httpx.AsyncClient], Coroutine[Any, Any, None]]) -> None:
    """Have a story happen while the house's model folders are watched."""

    async def whole() -> None:
        async with house.client() as client:
            await house.app.state.door.offers.begin()
            try:
                await asyncio.wait_for(story(client), 30)
            finally:
                await house.app.state.door.offers.close()
                await house.app.state.supervisor.close()

    asyncio.run(whole())


async def listed(client: httpx.AsyncClient) -> dict[str, Model]:
    found: dict[str, Model] = (await client.get("/api/info")).json()["models"]
    return found


async def ask(client: httpx.AsyncClient, name: str) -> httpx.Response:
    return await client.post("/api/infer", data={"model_name": name}, files=IMAGE)


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110  # what it waits for sets no event
        await asyncio.sleep(0.01)


class Gate:
    """Loads on the processor wait at it."""

    def __init__(self, house: House) -> None:
        self.waiting = 0
        self.open = asyncio.Event()
        house.placement.before_cpu = self._wait

    async def _wait(self) -> None:
        self.waiting += 1
        try:
            await self.open.wait()
        finally:
            self.waiting -= 1

    async def reached(self) -> None:
        await until(lambda: self.waiting == 1)


def test_classifiers_in_a_model_folder_are_qupaths(tmp_path: Path) -> None:
    house = fake_models(tmp_path)
    classifier = tmp_path / "models" / "stroma"
    classifier.mkdir()
    (classifier / "model.onnx").write_bytes(b"a network")
    (classifier / "metadata.json").write_text(json.dumps({"id": "stroma_1", "name": "Stroma"}))

    async def story(client: httpx.AsyncClient) -> None:
        assert await listed(client) == {}
        models = (await client.get("/api/v1/models")).json()["models"]
        assert {model["id"]: model["name"] for model in models}["stroma_1"] == "Stroma"
        assert (await client.delete("/api/v1/models/stroma_1")).status_code == 403
        assert (classifier / "model.onnx").is_file()

    told(house, story)


def test_they_are_loaded_one_after_the_other_but_a_request_does_not_wait_in_line(tmp_path: Path) -> None:
    house = fake_models(tmp_path, "a", "b", "c")

    async def story(client: httpx.AsyncClient) -> None:
        gate = Gate(house)
        await gate.reached()
        await asyncio.sleep(0.1)
        assert gate.waiting == 1
        models = await listed(client)
        assert [(name, model.get("loading")) for name, model in models.items()] == [
            ("a", True),
            ("b", None),
            ("c", None),
        ]
        requests = [asyncio.create_task(ask(client, name)) for name in ("a", "c", "c")]
        await until(lambda: gate.waiting == 2)
        await asyncio.sleep(0.1)
        assert gate.waiting == 2
        gate.open.set()
        assert [(await request).status_code for request in requests] == [200, 200, 200]
        await until(lambda: len(house.app.state.supervisor.models) == 3)
        assert len(house.placement.workers) == 3

    told(house, story)


def test_unloading_a_model_that_is_loading_stops_it_for_good(tmp_path: Path) -> None:
    house = fake_models(tmp_path, "a", "b")

    async def story(client: httpx.AsyncClient) -> None:
        gate = Gate(house)
        await gate.reached()
        waiting = asyncio.create_task(ask(client, "a"))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        for name in ("b", "a"):  # one that waits for its turn, and the one that loads
            assert (await client.delete(f"/api/models/{name}")).status_code == 200
        assert time.monotonic() - began < 2
        answer = await waiting
        assert answer.status_code == 503
        assert "unloaded" in answer.json()["error"]
        assert house.placement.alive() == []
        await asyncio.sleep(0.1)
        assert (await listed(client))["b"] == {**(await listed(client))["a"], "name": "b", "model_path": "b.onnx"}
        assert len(house.placement.workers) == 1
        gate.open.set()
        assert (await ask(client, "b")).status_code == 200

    told(house, story)


def test_what_a_client_loads_under_the_same_name_wins(tmp_path: Path) -> None:
    house = fake_models(tmp_path, "a")
    (tmp_path / "models" / "a.onnx").rename(tmp_path / "models" / "kept")

    async def story(client: httpx.AsyncClient) -> None:
        await house.load(client)
        (tmp_path / "models" / "kept").rename(tmp_path / "models" / "a.onnx")
        assert (await ask(client, "a")).headers["X-Segserve-Device"] == "cuda"
        await house.app.state.door.offers.find("models of no folder")  # looks at the folders
        assert (await listed(client))["a"]["model_path"] == str(house.path)
        assert len(house.placement.workers) == 1
        assert (await client.delete("/api/models/a")).status_code == 200
        assert (await listed(client))["a"]["loaded"] is False
        assert (await ask(client, "a")).headers["X-Segserve-Device"] == "cpu"

    told(house, story)


def test_a_clients_load_waits_for_the_folders_and_then_replaces_it(tmp_path: Path) -> None:
    house = fake_models(tmp_path, "a")

    async def story(client: httpx.AsyncClient) -> None:
        gate = Gate(house)
        await gate.reached()
        loading = asyncio.create_task(house.load(client))
        await asyncio.sleep(0.1)
        gate.open.set()
        await loading
        assert (await listed(client))["a"]["device"] == "cuda"
        assert house.placement.alive() == ["cuda"]

    told(house, story)


def test_a_client_that_hangs_up_stops_no_load_that_others_wait_for(tmp_path: Path) -> None:
    house = fake_models(tmp_path, "a", preload="none")

    async def story(client: httpx.AsyncClient) -> None:
        gate = Gate(house)
        impatient, patient = (asyncio.create_task(ask(client, "a")) for _ in range(2))
        await gate.reached()
        impatient.cancel()
        await asyncio.sleep(0.1)
        gate.open.set()
        assert (await patient).status_code == 200
        assert len(house.placement.workers) == 1

    told(house, story)


def test_a_failed_load_is_tried_again_when_asked_for_but_not_in_the_background(tmp_path: Path) -> None:
    house = fake_models(tmp_path, "a")

    async def refuse() -> None:
        raise BadInputError("It is too large.")

    async def story(client: httpx.AsyncClient) -> None:
        house.placement.before_cpu = refuse
        await until(lambda: house.placement.workers and not house.placement.alive())
        assert (await listed(client))["a"]["error"] == "It is too large."
        await house.app.state.door.offers.find("models of no folder")  # looks at the folders
        await asyncio.sleep(0.1)
        assert len(house.placement.workers) == 1
        answer = await ask(client, "a")
        assert (answer.status_code, answer.json()["error"]) == (400, "It is too large.")
        assert len(house.placement.workers) == 2
        Gate(house).open.set()
        assert (await ask(client, "a")).status_code == 200
        assert "error" not in (await listed(client))["a"]

    told(house, story)


def test_no_answer_tells_a_path_that_only_a_card_names(tmp_path: Path) -> None:
    secret = tmp_path / "secret place" / "deeper"
    secret.mkdir(parents=True)
    (secret / "net.onnx").write_bytes(b"a network")
    house = fake_models(tmp_path, preload="none")
    config = {"forward_device": "cpu"}
    card = {"model_path": str(secret / "net.onnx"), "inference_config": config}
    (tmp_path / "models" / "folder").mkdir()
    (tmp_path / "models" / "folder" / "model.json").write_text(json.dumps(card))

    async def refuse() -> None:
        network, base = secret / "net.onnx", secret / "base.py"
        raise BadInputError(f"{network}: the folder {secret.parent}. Trust {secret}, or {base}.")

    async def story(client: httpx.AsyncClient) -> None:
        assert (await listed(client))["folder"]["model_path"] == "net.onnx"
        house.placement.before_cpu = refuse
        sentence = "net.onnx: the folder (a path). Trust (a path), or base.py."
        body = {"name": "mine", "backend_type": "onnx", "model_path": "folder", "inference_config": config}
        answer = await client.post("/api/models", json=body)
        assert (answer.status_code, answer.json()["error"]) == (400, sentence)
        assert (await ask(client, "folder")).json()["error"] == sentence
        assert (await listed(client))["folder"]["error"] == sentence
        Gate(house).open.set()
        assert (await client.post("/api/models", json=body)).json()["model"]["model_path"] == "net.onnx"
        (secret / "net.onnx").unlink()
        answer = await client.post("/api/models", json=body)
        assert (answer.status_code, answer.json()["error"]) == (400, "Model file not found: net.onnx.")

    told(house, story)
