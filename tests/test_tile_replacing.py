"""Processes of pixel classifiers whose files change, that are too many, or that end while they load."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from segserve.errors import MissingError
from segserve.models.classifiers import ClassifierStore
from segserve.settings import Settings
from segserve.workers import tile_models
from segserve.workers.placement import Call, Kind, Listener, WorkerDiedError
from segserve.workers.tile_models import TileModels, TileWish
from tests.scripted_jobs import until


def read(path: str) -> bytes:
    return Path(path).read_bytes()


@dataclass(eq=False)
class Slow:
    """A process that loads its network when the test says so, and answers with what the file held when it began."""

    content: bytes = b""
    killed: bool = False
    may_load: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def alive(self) -> bool:
        return not self.ended.is_set()

    async def call(self, call: Call, listen: Listener | None = None) -> dict[str, Any]:
        del listen
        if call.verb == "load":
            self.content = read(call.body["path"])
            both = [asyncio.ensure_future(event.wait()) for event in (self.may_load, self.ended)]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not self.alive:
            raise WorkerDiedError("it has ended", began=True, killed=self.killed)
        return {"card": {}, "fingerprint": "", "content": self.content}

    def tell(self, word: str) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        self.ended.set()


@dataclass
class Machine:
    """Keeps every process that was started, and how many there were at once at most."""

    started: list[Slow] = field(default_factory=list)
    most: int = 0

    async def start(self, label: str, kind: Kind) -> Slow:
        del label, kind
        self.started.append(Slow())
        self.most = max(self.most, sum(process.alive for process in self.started))
        return self.started[-1]


@dataclass
class House:
    """Classifiers with files in a folder, their processes scripted."""

    folder: Path
    most: int = 4
    machine: Machine = field(default_factory=Machine)

    def __post_init__(self) -> None:
        store = ClassifierStore(self.folder / "own", self.folder / "no")
        self.models = TileModels(self.machine, Settings(state_dir=self.folder, max_tile_models=self.most), store)

    def write(self, content: bytes, name: str = "model") -> Path:
        path = self.folder / name / "model.onnx"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path

    def ask(self, name: str = "model") -> asyncio.Task[dict[str, Any]]:
        call = self.models.classify(str(self.folder / name), TileWish(), Call("classify", {}), size=1)
        return asyncio.create_task(call)

    async def serve_first(self) -> Path:
        """Have the network of the first process written, loaded and used once."""
        network = self.write(b"first")
        first = self.ask()
        (await self.process(0)).may_load.set()
        assert (await first)["content"] == b"first"
        return network

    async def process(self, number: int) -> Slow:
        """The process that is the so many-th, once it has read its network."""
        started = self.machine.started
        await until(lambda: len(started) > number and all(one.content for one in started))
        return started[number]


def test_a_file_that_changes_while_its_successor_loads_leaves_one_process(tmp_path: Path) -> None:
    async def story() -> None:
        house = House(tmp_path)
        await house.serve_first()
        house.write(b"the second")
        second = house.ask()
        await house.process(1)
        house.write(b"and the third")
        third = house.ask()
        last = await house.process(2)
        assert (await second)["content"] == b"first", "until a new one has loaded, the old one answers"
        last.may_load.set()
        assert (await third)["content"] == b"and the third"
        async with asyncio.timeout(10):
            await asyncio.gather(*(process.ended.wait() for process in house.machine.started[:2]))
        assert last.alive
        assert (await house.ask())["content"] == b"and the third"
        assert len(house.machine.started) == 3
        await house.models.close()
        assert not any(process.alive for process in house.machine.started)

    asyncio.run(story())


def test_a_successor_that_was_killed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        house = House(tmp_path)
        await house.serve_first()
        house.write(b"the second")
        second = house.ask()
        killed = await house.process(1)
        killed.killed = True
        await killed.stop()
        assert (await second)["content"] == b"first"
        assert (await house.ask())["content"] == b"first", "not at once: it may die again"
        monkeypatch.setattr(tile_models, "RETRY_SECONDS", 0.0)
        third = house.ask()
        (await house.process(2)).may_load.set()
        assert (await third)["content"] == b"the second"
        await house.models.close()

    asyncio.run(story())


def test_a_successor_that_its_file_has_ended_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tile_models, "RETRY_SECONDS", 0.0)

    async def story() -> None:
        house = House(tmp_path)
        await house.serve_first()
        house.write(b"harmful")
        second = house.ask()
        await (await house.process(1)).stop()
        assert (await second)["content"] == b"first"
        assert (await house.ask())["content"] == b"first"
        assert len(house.machine.started) == 2
        await house.models.close()

    asyncio.run(story())


def test_no_more_processes_are_started_than_may_be(tmp_path: Path) -> None:
    async def story() -> None:
        house = House(tmp_path, most=2)
        names = ["a", "b", "c", "d", "e"]
        for name in names:
            house.write(name.encode(), name)
        asked = [house.ask(name) for name in names]
        for number in range(len(names)):
            (await house.process(number)).may_load.set()
        answers = await asyncio.gather(*asked)
        assert [answer["content"].decode() for answer in answers] == names
        assert house.machine.most == 2
        house.write(b"another d", "d")
        changed = house.ask("d")
        (await house.process(len(names))).may_load.set()
        assert (await changed)["content"] == b"another d"
        last = house.ask("a")
        (await house.process(len(names) + 1)).may_load.set()
        await last
        await until(lambda: sum(process.alive for process in house.machine.started) == 2)
        await house.models.close()

    asyncio.run(story())


def test_a_classifier_that_was_deleted_answers_no_more(tmp_path: Path) -> None:
    async def story() -> None:
        house = House(tmp_path)
        network = await house.serve_first()
        network.unlink()
        assert (await house.ask())["content"] == b"first", "it may be being replaced"
        house.models.forget(network.parent)
        with pytest.raises(MissingError):
            await house.ask()
        await until(lambda: not house.machine.started[0].alive)
        await house.models.close()

    asyncio.run(story())


def test_tiles_whose_process_is_cleared_while_it_loads_are_computed_by_another(tmp_path: Path) -> None:
    async def story() -> None:
        house = House(tmp_path)
        house.write(b"first")
        asked = house.ask()
        await house.process(0)
        await house.models.rest()
        (await house.process(1)).may_load.set()
        assert (await asked)["content"] == b"first"
        await house.models.close()

    asyncio.run(story())
