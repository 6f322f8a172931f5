"""The line before the inspector, without a process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from segserve.errors import UnavailableError
from segserve.workers.inspector import Inspector
from segserve.workers.placement import Call, Kind, Listener


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
