"""Questions that need torch or a network parser but no loaded model, put to one process that ends when idle."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from segserve.errors import UnavailableError
from segserve.extras import installed_version
from segserve.state import write_whole
from segserve.workers.placement import Call, Placement, Worker, WorkerDiedError

log = logging.getLogger(__name__)

IDLE_SECONDS = 120.0
ANSWER_SECONDS = 90.0
VERSIONED = ("segserve", "torch", "segmentation-models-pytorch", "timm")


class Inspector:
    """Asks its process, starting it when there is none; what only depends on library versions is asked once."""

    def __init__(self, placement: Placement, cache: Path, *, max_waiting: int) -> None:
        """Ask by way of a process.

        Args:
            placement: where it runs.
            cache: a folder for answers that stay true until a library changes.
            max_waiting: questions that may wait while one is answered.
        """
        self._placement = placement
        self._cache = cache
        self._max_waiting = max_waiting
        self._worker: Worker | None = None
        self._starting = asyncio.Lock()
        self._turn = asyncio.Lock()
        self._asking = 0
        self._idle: asyncio.TimerHandle | None = None

    async def ask(self, verb: str, body: dict[str, Any], *, inputs: dict[str, Path] | None = None) -> dict[str, Any]:
        """Ask a question, after those that came before.

        Raises:
            SegserveError: the answer is a refusal, or there is none (503), or too many wait (503).
        """
        if self._asking > self._max_waiting:
            raise UnavailableError(
                f"{self._max_waiting} requests wait already to have a network or data looked through (max_waiting): "
                f"send this one again later.",
                retry_after=10,
            )
        call = Call(verb, body, inputs=inputs or {})
        self._asking += 1
        try:
            async with self._turn:  # the time counts from when it is this question's turn
                return await asyncio.wait_for(self._once_more(call), ANSWER_SECONDS)
        except TimeoutError:
            await self._end()
            raise UnavailableError(f"This took longer than {ANSWER_SECONDS:.0f} s to find out: try again.") from None
        except WorkerDiedError as error:
            raise UnavailableError(f"This could not be found out: {error}. Try again.") from None
        finally:
            self._asking -= 1
            self._end_when_idle()

    async def ask_once(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask what only depends on library versions: from the disk if it was asked before."""
        question = json.dumps([verb, body, [installed_version(name) for name in VERSIONED]], sort_keys=True)
        path = self._cache / f"{verb}-{hashlib.sha256(question.encode()).hexdigest()[:32]}.json"
        try:
            kept: dict[str, Any] = json.loads(await asyncio.to_thread(path.read_text))
        except (OSError, ValueError):
            kept = await self.ask(verb, body)
            try:
                await asyncio.to_thread(write_whole, path, json.dumps(kept))
            except OSError:
                log.warning("an answer cannot be kept in %s", self._cache, exc_info=True)
        return kept

    async def close(self) -> None:
        """End the process."""
        if self._idle:
            self._idle.cancel()
        await self._end()

    async def _once_more(self, call: Call) -> dict[str, Any]:
        """Ask, and if the process dies over it, ask a fresh one: it may have died of something else."""
        try:
            return await (await self._living()).call(call)
        except WorkerDiedError:
            return await (await self._living()).call(call)

    async def _living(self) -> Worker:
        async with self._starting:
            if self._worker is None or not self._worker.alive:
                await self._end()
                try:
                    self._worker = await self._placement.start("inspector", "inspector")
                except OSError as error:
                    raise UnavailableError(f"No process could be started: {error.strerror}.") from None
            return self._worker

    async def _end(self) -> None:
        worker, self._worker = self._worker, None
        if worker:
            await worker.stop()

    def _end_when_idle(self) -> None:
        if self._idle:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._check_idle)

    def _check_idle(self) -> None:
        if self._asking == 0:
            self._ending = asyncio.ensure_future(self._end())
