"""One loaded model: its process, the requests that wait for it, its end, and the one that takes its place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from segserve.errors import SegserveError, UnavailableError
from segserve.models.request import LoadRequest
from segserve.workers.placement import Call, Listener, Worker, WorkerDiedError
from segserve.workers.starter import Started

log = logging.getLogger(__name__)

Restart = Callable[[LoadRequest], Coroutine[Any, Any, Started]]
Heir = Callable[[], Coroutine[Any, Any, "LoadedModel"]]


class _GaveWayError(Exception):
    """Another model has taken this one's place, and nothing of the request was begun: the heir can do all of it."""

    def __init__(self, heir: Heir) -> None:
        super().__init__()
        self.heir = heir


class LoadedModel:
    """A model that is listed as loaded. Its process may die, or end when idle; the next request starts another.

    Attributes:
        request: how it was loaded, and is loaded again.
        card: what is in force.
        seconds_per_patch: of the last volume; before the first, of the network alone when it was tried out.
    """

    def __init__(
        self, request: LoadRequest, started: Started, restart: Restart, *, max_waiting: int, idle_seconds: float
    ) -> None:
        """Take over a process that holds the model.

        Args:
            request: see the class.
            started: the process.
            restart: gives another such process.
            max_waiting: requests that may wait while one is served.
            idle_seconds: after which the process ends when nobody asks.
        """
        self.request = request
        self.card = started.card
        self.seconds_per_patch = _trial_seconds(started.card)
        self._fingerprint = started.fingerprint
        self._worker = started.worker
        self._restarting: asyncio.Future[Started] | None = None
        self._restart = restart
        self._max_waiting = max_waiting
        self._idle_seconds = idle_seconds
        self._idle: asyncio.TimerHandle | None = None
        self._resting: asyncio.Task[None] | None = None
        self._twin: asyncio.Task[LoadedModel] | None = None
        self._turn = asyncio.Lock()
        self._line: list[asyncio.Task[bool]] = []
        self._ended = False
        self._heir: Heir | None = None
        self._previous: LoadedModel | None = None
        self._succession: asyncio.Task[None] | None = None
        self._rest_when_idle()

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._line)

    @property
    def busy(self) -> bool:
        """Whether it serves a request now."""
        return self._turn.locked()

    @property
    def family(self) -> list[LoadedModel]:
        """The model, its twin on the processor, and the model whose place it takes; each has a line of its own."""
        return [self, *(one for part in self._parts for one in part.family)]

    async def on_cpu(self) -> LoadedModel:
        """The model on the processor: itself if it is there, else a twin that ends with it.

        Raises:
            UnavailableError: the twin cannot be loaded, or the model was unloaded.
        """
        if self.card["device"] == "cpu":
            return self
        try:
            return await self._living_twin()
        except _GaveWayError as error:
            heir = await error.heir()
        return await heir.on_cpu()

    async def call(self, call: Call, listen: Listener | None = None) -> dict[str, Any]:
        """Ask the model's process, after the requests that came before.

        Args:
            call: what is asked.
            listen: hears how far it is.

        Raises:
            UnavailableError: too many wait, the process died, or the model was unloaded.
            SegserveError: what the process found wrong.
        """
        if self.busy and self.waiting >= self._max_waiting:
            raise UnavailableError(
                f"The model {self.request.name} is busy and {self.waiting} requests wait for it (max_waiting): "
                f"send this one again later.",
                retry_after=10,
            )
        return await self.call_at_last(call, listen)

    async def call_at_last(self, call: Call, listen: Listener | None = None) -> dict[str, Any]:
        """Do what `call` does, however many wait.

        Raises:
            SegserveError: see `call`.
        """
        try:
            return await self._call_in_turn(call, listen)
        except _GaveWayError as error:
            heir = await error.heir()
        return await heir.call_at_last(call, listen)

    async def end(self) -> None:
        """End the process for good. Whoever runs or waits is told that the model was unloaded."""
        self._ended = True
        self._forget_idleness()
        if self._succession:
            self._succession.cancel()
        await self._stop_loading()
        await asyncio.gather(*(part.end() for part in self._parts), self._worker.stop())

    async def rest(self) -> None:
        """End the process, not the model: what runs is told to come again, and a later request starts another."""
        await self._stop_loading()
        await asyncio.gather(*(part.rest() for part in self._parts), self._worker.stop())

    def succeed(self, previous: LoadedModel) -> None:
        """Take the place of a model, which ends once it has answered what it computes, or else with this one."""
        self._previous = previous
        self._succession = asyncio.ensure_future(self._take_over(previous))

    async def give_way(self, heir: Heir) -> None:
        """End once what it computes is answered; whoever waits, or still comes, asks the heir instead."""
        self._heir = heir
        self._forget_idleness()
        for turn in self._line:
            turn.cancel()
        await self._stop_loading()
        endings: list[Awaitable[None]] = [self._end_when_free()]
        if self._loaded_twin:
            endings.append(self._loaded_twin.give_way(self.on_cpu))
        if self._succession:
            endings.append(self._succession)
        await asyncio.gather(*endings)

    async def _take_over(self, previous: LoadedModel) -> None:
        await previous.give_way(self._itself)
        self._previous = None

    async def _itself(self) -> LoadedModel:
        return self

    async def _end_when_free(self) -> None:
        async with self._turn:
            await self._worker.stop()

    @property
    def _parts(self) -> list[LoadedModel]:
        """What ends and rests with this model."""
        return [part for part in (self._loaded_twin, self._previous) if part]

    async def _stop_loading(self) -> None:
        for task in (self._restarting, self._twin):
            if task and not task.done():
                task.cancel()
                await asyncio.wait([task])

    @property
    def _loaded_twin(self) -> LoadedModel | None:
        task = self._twin
        return task.result() if task and task.done() and not task.cancelled() and not task.exception() else None

    async def _living_twin(self) -> LoadedModel:
        self._refuse_if_gone()
        if self._twin is None or (self._twin.done() and not self._loaded_twin):
            self._twin = asyncio.ensure_future(self._load_twin())
        try:
            return await asyncio.shield(self._twin)  # others may wait for it too
        except asyncio.CancelledError:
            self._refuse_if_stopped()
            raise
        except SegserveError as error:
            raise UnavailableError(
                f"The model {self.request.name} could not be loaded on the processor: {error.message}"
            ) from None

    async def _load_twin(self) -> LoadedModel:
        config = {**self.request.inference_config, "forward_device": "cpu"}
        request = self.request.model_copy(update={"inference_config": config})
        started = await self._restart(request)
        await self._refuse_if_changed(started)
        return LoadedModel(
            request, started, self._restart, max_waiting=self._max_waiting, idle_seconds=self._idle_seconds
        )

    def _rest_when_idle(self) -> None:
        self._forget_idleness()
        if not self._ended and not self._heir:
            self._idle = asyncio.get_running_loop().call_later(self._idle_seconds, self._rest_if_idle)

    def _forget_idleness(self) -> None:
        if self._idle:
            self._idle.cancel()

    def _rest_if_idle(self) -> None:
        if not self.busy and not self.waiting and self._worker.alive:
            log.info("model %s was idle for %g s: its process ends", self.request.name, self._idle_seconds)
            self._resting = asyncio.ensure_future(self._worker.stop())

    async def _call_in_turn(self, call: Call, listen: Listener | None) -> dict[str, Any]:
        await self._take_turn()
        try:
            reply = await self._ask(call, listen)
        finally:
            self._turn.release()
            self._rest_when_idle()
        self.seconds_per_patch = round(reply["seconds"] / reply["patches"], 6)
        return reply

    async def _take_turn(self) -> None:
        self._refuse_if_gone()
        if not self.busy and not self._line:
            await self._turn.acquire()  # at once
            return
        # A task of its own, so that `give_way` can send it away.
        turn = asyncio.ensure_future(self._turn.acquire())
        self._line.append(turn)
        try:
            await asyncio.shield(turn)
        except asyncio.CancelledError:
            if not turn.cancel() and not turn.cancelled():  # it came as the client left
                self._turn.release()
            self._refuse_if_stopped()
            raise
        finally:
            self._line.remove(turn)

    async def _ask(self, call: Call, listen: Listener | None) -> dict[str, Any]:
        try:
            return await self._once(call, listen)
        except WorkerDiedError as error:
            if error.began:
                raise self._died(error) from None
        # It had died before, unnoticed, and nothing was begun: a fresh process can do all of it.
        try:
            return await self._once(call, listen)
        except WorkerDiedError as error:
            raise self._died(error) from None

    async def _once(self, call: Call, listen: Listener | None) -> dict[str, Any]:
        worker = await self._living_worker()
        try:
            return await worker.call(call, listen)
        except WorkerDiedError:
            self.refuse_if_ended()
            raise

    def _died(self, error: WorkerDiedError) -> UnavailableError:
        log.warning("the process of model %s died: %s", self.request.name, error)
        return UnavailableError(
            f"The model {self.request.name} stopped while it worked on this volume: {error}. "
            f"Sending it again starts a fresh process."
        )

    async def _living_worker(self) -> Worker:
        self._refuse_if_gone()
        if self._worker.alive:
            return self._worker
        await self._worker.stop()
        self._refuse_if_gone()
        # A task of its own, so that `end` can stop it: an unload does not wait for a model to load.
        self._restarting = asyncio.ensure_future(self._restart(self.request))
        try:
            started = await self._restarting
        except asyncio.CancelledError:
            self._refuse_if_stopped()
            raise
        except SegserveError as error:
            self._refuse_if_gone()
            raise UnavailableError(
                f"The model {self.request.name} could not be started again: {error.message}"
            ) from None
        finally:
            self._restarting = None
        self._worker = started.worker
        if self._ended:  # in the moment between the process's word and now
            await self._worker.stop()
        self._refuse_if_gone()
        await self._refuse_if_changed(started)
        return self._worker

    async def _refuse_if_changed(self, started: Started) -> None:
        if started.fingerprint != self._fingerprint:
            await started.worker.stop()
            raise UnavailableError(
                f"The file of the model {self.request.name} has changed since it was loaded: load it again."
            )

    def _refuse_if_stopped(self) -> None:
        """Tell whoever waits for a load that was cancelled why, unless it was that who gave up."""
        waiter = asyncio.current_task()
        if waiter is None or not waiter.cancelling():
            self._refuse_if_gone()
            raise UnavailableError(
                f"The model {self.request.name} was cleared from memory while it was being loaded: send this again."
            )

    def _refuse_if_gone(self) -> None:
        """Stop a request of which nothing was begun, if there is an heir that it can go to, or this has ended."""
        if self._heir:
            raise _GaveWayError(self._heir)
        self.refuse_if_ended()

    def refuse_if_ended(self) -> None:
        """See that it was not unloaded.

        Raises:
            UnavailableError: it was.
        """
        if self._ended:
            raise UnavailableError(f"The model {self.request.name} was unloaded.")


def _trial_seconds(card: dict[str, Any]) -> float | None:
    """What the chosen engine took for one patch when it was tried out."""
    chosen = [card[key] for key in ("engine", "device", "precision")]
    for verdict in card["engines"]:
        if [verdict[key] for key in ("engine", "device", "precision")] == chosen and verdict["seconds"] is not None:
            return round(float(verdict["seconds"]) / int(card["batch"]), 6)
    return None
