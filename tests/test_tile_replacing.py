"""A pixel classifier whose file changes again and again: every process that was started for it ends but the last."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segserve.models.classifiers import ClassifierStore
from segserve.settings import Settings
from segserve.workers.placement import Call, Kind, Listener, WorkerDiedError
from segserve.workers.tile_models import TileModels, TileWish
from tests.scripted_jobs import until


def read(path: str) -> bytes:
    return Path(path).read_bytes()


@dataclass(eq=False)
class Slow:
    """A process that loads its network when the test says so, and answers with what the file held when it began."""

    content: bytes = b""
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
            raise WorkerDiedError("it has ended", began=True)
        return {"card": {}, "fingerprint": "", "content": self.content}

    def tell(self, word: str) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        self.ended.set()


@dataclass
class Machine:
    """Keeps every process that was started."""

    started: list[Slow] = field(default_factory=list)

    async def start(self, label: str, kind: Kind) -> Slow:
        del label, kind
        self.started.append(Slow())
        return self.started[-1]


async def until_started(machine: Machine, count: int) -> None:
    await until(lambda: len(machine.started) == count and all(one.content for one in machine.started))


def test_a_file_that_changes_while_its_successor_loads_leaves_one_process(tmp_path: Path) -> None:
    network = tmp_path / "model.onnx"
    network.write_bytes(b"first")

    async def story() -> None:
        machine = Machine()
        models = TileModels(machine, Settings(state_dir=tmp_path), ClassifierStore(tmp_path / "own", tmp_path / "no"))

        def ask() -> asyncio.Task[dict[str, Any]]:
            return asyncio.create_task(models.classify(str(network), TileWish(), Call("classify", {}), size=1))

        first = ask()
        await until_started(machine, 1)
        machine.started[0].may_load.set()
        assert (await first)["content"] == b"first"
        network.write_bytes(b"the second")
        second = ask()
        await until_started(machine, 2)
        network.write_bytes(b"and the third")
        third = ask()
        await until_started(machine, 3)
        assert (await second)["content"] == b"first", "until a new one has loaded, the old one answers"
        machine.started[2].may_load.set()
        assert (await third)["content"] == b"and the third"
        async with asyncio.timeout(10):
            await asyncio.gather(*(process.ended.wait() for process in machine.started[:2]))
        assert machine.started[2].alive
        assert (await ask())["content"] == b"and the third"
        assert len(machine.started) == 3
        await models.close()
        assert not any(process.alive for process in machine.started)

    asyncio.run(story())
