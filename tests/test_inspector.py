"""The line before the inspector, without a process, and a process that cannot be watched."""

from __future__ import annotations

import asyncio
import asyncio.subprocess
from pathlib import Path
from typing import Any, NoReturn

import pytest

from segserve.errors import UnavailableError
from segserve.workers.inspector import Inspector
from segserve.workers.placement import Call, Kind, Listener
from segserve.workers.placement.local import LocalPlacement


class Slow:
    """A process that answers when it is told to."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.alive = True

    async def call(self, call: Call, listen: Listener | None = None) -> dict[str, Any]:
        del call, listen
        await self.may_answer.wait()
        return {}

    def tell(self, word: str) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        self.alive = False

    async def start(self, label: str, kind: Kind) -> Slow:
        """This one process for everybody."""
        del label, kind
        return self


def test_one_question_too_many_is_refused_at_once(tmp_path: Path) -> None:
    async def story() -> None:
        process = Slow()
        inspector = Inspector(process, tmp_path, max_waiting=2)
        asked = [asyncio.create_task(inspector.ask("network", {})) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match=r"2 requests wait already .*max_waiting"):
            await inspector.ask("network", {})
        process.may_answer.set()
        assert await asyncio.gather(*asked) == [{}, {}, {}]
        assert await inspector.ask("network", {}) == {}
        await inspector.close()

    asyncio.run(story())


def test_a_process_that_python_cannot_watch_is_ended_and_its_question_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a thread watches it, and the machine has a process left but no thread; it was started by then."""
    start, started = asyncio.create_subprocess_exec, list[asyncio.subprocess.Process]()

    async def start_unwatched(*command: str, **options: Any) -> NoReturn:
        started.append(await start(*command, **options))
        raise RuntimeError("can't start new thread")

    async def story() -> None:
        monkeypatch.setattr(asyncio, "create_subprocess_exec", start_unwatched)
        inspector = Inspector(LocalPlacement(tmp_path), tmp_path, max_waiting=2)
        with pytest.raises(UnavailableError, match="No process could be started: can't start new thread"):
            await inspector.ask("network", {})
        assert await asyncio.wait_for(started[0].wait(), 10) != 0
        await inspector.close()

    asyncio.run(story())
