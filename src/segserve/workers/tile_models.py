"""Tile networks, each in a process of its own that starts at the first request and ends when idle."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segserve.engines.base import OnnxNetwork
from segserve.engines.registry import AUTO, cuda_is_usable
from segserve.errors import MissingError, SegserveError, UnavailableError, human_bytes
from segserve.models.classifiers import ClassifierStore
from segserve.models.tile_files import TileFile, find_tile_file
from segserve.settings import Settings
from segserve.workers.placement import Call, Placement, WorkerDiedError
from segserve.workers.starter import DiedLoadingError, Starter
from segserve.workers.tile_process import TileProcess

log = logging.getLogger(__name__)

CHECK_SECONDS = 15.0
MISSING_SECONDS = 10.0
"""How long a network that is being replaced may be away before it counts as gone."""
RETRY_SECONDS = 5.0
"""How long a changed network that could not be loaded by chance is left alone."""


@dataclass(frozen=True)
class TileWish:
    """What a request says of where and how its tiles are computed.

    Attributes:
        use_gpu: false for the processor alone.
        use_amp: whether precisions below float32 are permitted; None leaves it to the server.
        engine: an engine's name, or `auto`.
    """

    use_gpu: bool = True
    use_amp: bool | None = None
    engine: str = AUTO


Key = tuple[str, bool, bool, str]


class TileModels:
    """The tile networks in use: a bounded number, the least recently used goes."""

    def __init__(self, placement: Placement, settings: Settings, store: ClassifierStore) -> None:
        self._settings = settings
        self._store = store
        self._starter = Starter(placement, settings)
        self._processes: dict[Key, TileProcess] = {}
        self._retired: set[TileProcess] = set()
        self._room = asyncio.Semaphore(settings.max_tile_models)
        self._waiting_bytes = 0
        self._idle_check: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._reduced_by_default = settings.tile_precision == "auto" or cuda_is_usable(OnnxNetwork)

    @property
    def requests(self) -> dict[str, int]:
        """Requests being answered, by the name of the classifier's folder."""
        found: dict[str, int] = {}
        for process in (*self._processes.values(), *self._retired):
            name = process.file.path.parent.name
            found[name] = found.get(name, 0) + process.busy
        return found

    @property
    def waiting_bytes(self) -> int:
        """Tiles of requests that are not answered yet, in bytes."""
        return self._waiting_bytes

    async def classify(self, model_path: str, wish: TileWish, call: Call, *, size: int) -> dict[str, Any]:
        """Classify the tiles of one request.

        A process that dies over it is replaced once.

        Args:
            model_path: a classifier's folder, an .onnx file, or a known id, as the client sent it.
            wish: where and how to compute.
            call: of the worker's `classify`.
            size: bytes that wait on disk for it.

        Raises:
            MissingError: there is no such model.
            UnavailableError: more bytes wait than may, or the process died twice.
            SegserveError: what the process found wrong.
        """
        self._take_room(size)
        try:
            try:
                return await self._once(model_path, wish, call)
            except (WorkerDiedError, DiedLoadingError) as error:
                log.warning("the process of %s died: %s", model_path, error)
                never_loaded = isinstance(error, DiedLoadingError)
            try:
                return await self._once(model_path, wish, call)
            except (WorkerDiedError, DiedLoadingError) as error:
                if never_loaded and isinstance(error, DiedLoadingError):
                    raise
                raise UnavailableError(
                    f"The classifier stopped while it worked on these tiles, twice: {error}. "
                    f"Send fewer or smaller tiles at a time."
                ) from None
        finally:
            self._waiting_bytes -= size

    def forget(self, folder: Path) -> None:
        """Use the networks of a folder no more, which is gone for good; what is being computed is answered."""
        for key, process in list(self._processes.items()):
            if process.file.path.parent.resolve() == folder.resolve():
                self._retire(key, process)

    async def rest(self) -> None:
        """End every process; the next request starts another."""
        doomed = [*self._processes.values(), *self._retired]
        self._processes.clear()
        self._retired.clear()
        await asyncio.gather(*(process.stop() for process in doomed))

    async def close(self) -> None:
        """End every process for good."""
        if self._idle_check:
            self._idle_check.cancel()
        await asyncio.gather(self._starter.close(), self.rest())

    async def _once(self, model_path: str, wish: TileWish, call: Call) -> dict[str, Any]:
        process = await self._process(model_path, wish)
        with process.in_use():
            return await process.ask(call)

    async def _process(self, model_path: str, wish: TileWish) -> TileProcess:
        """The process for a request, started or replaced if need be."""
        reduced = self._reduced_by_default if wish.use_amp is None else wish.use_amp
        key = (model_path, wish.use_gpu, reduced, wish.engine)
        file = await self._found(model_path, key)
        held = self._processes.get(key)
        if held is None or not held.alive:
            return self._begin(key, file)
        if file is None or held.file == file or not held.loaded:
            return held
        return await self._replaced(key, file, held)

    async def _found(self, model_path: str, key: Key) -> TileFile | None:
        """The network's file; None while it is away for a moment and a process still holds it."""
        try:
            file = await asyncio.to_thread(find_tile_file, model_path, self._store)
        except SegserveError:
            held = self._processes.get(key)
            if held and held.alive and held.missing_for() < MISSING_SECONDS:
                return None
            if held:
                self._retire(key, held)
            raise
        if held := self._processes.get(key):
            held.missing_since = None
        return file

    def _begin(self, key: Key, file: TileFile | None) -> TileProcess:
        if file is None:
            raise MissingError(f"Model not found: {key[0]}")
        if held := self._processes.pop(key, None):
            self._retire(key, held)
        self._make_room()
        process = self._started(key, file, self._room)
        self._processes[key] = process
        self._look_after_idle()
        return process

    async def _replaced(self, key: Key, file: TileFile, held: TileProcess) -> TileProcess:
        """A process with the network's new file; the old one as long as the new file cannot be loaded."""
        if held.successor and (held.successor.file != file or _may_be_tried_again(held.successor)):
            self._retire(key, held.successor)
            held.successor = None
        if held.successor is None:
            held.successor = self._started(key, file)
        successor = held.successor
        try:
            await successor.ready()
        except (SegserveError, WorkerDiedError) as error:
            log.warning("%s has changed and cannot be loaded; the one before is kept: %s", key[0], error)
            return held
        if self._processes.get(key) is not held:
            return successor
        if held.successor is not successor:  # the file has changed once more
            return held
        self._processes[key] = successor
        successor.take_the_place_of(held)
        held.successor = None  # it no longer ends with the one before
        self._retire(key, held)
        return successor

    def _started(self, key: Key, file: TileFile, room: asyncio.Semaphore | None = None) -> TileProcess:
        _, use_gpu, reduced, engine = key
        wish = {"engine": engine, "device": None if use_gpu else "cpu", "reduced": reduced}
        return TileProcess(self._starter, file, key[0], wish, self._settings.load_timeout, room)

    def _make_room(self) -> None:
        """Let the least recently used go, those that work last; one more waits until they have ended."""
        while len(self._processes) >= self._settings.max_tile_models:
            key, oldest = min(self._processes.items(), key=lambda item: (item[1].busy > 0, item[1].used))
            self._retire(key, oldest)

    def _retire(self, key: Key, process: TileProcess) -> None:
        """Take a process out of use; it ends when it has answered what it was asked."""
        if self._processes.get(key) is process:
            del self._processes[key]
        self._retired.add(process)
        task = asyncio.ensure_future(self._end(process))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self, process: TileProcess) -> None:
        await process.stop_when_free()
        self._retired.discard(process)

    def _take_room(self, size: int) -> None:
        limit = self._settings.max_tile_waiting
        if self._waiting_bytes and self._waiting_bytes + size > limit:
            raise UnavailableError(
                f"Tiles of {human_bytes(self._waiting_bytes)} wait already, and {human_bytes(limit)} may "
                f"(max_tile_waiting): send these again later.",
                retry_after=10,
            )
        self._waiting_bytes += size

    def _look_after_idle(self) -> None:
        if self._idle_check:
            self._idle_check.cancel()
        for key, process in list(self._processes.items()):
            if not process.busy and process.idle_for() > self._settings.tile_idle:
                self._retire(key, process)
        if self._processes:
            seconds = min(CHECK_SECONDS, self._settings.tile_idle)
            self._idle_check = asyncio.get_running_loop().call_later(seconds, self._look_after_idle)


def _may_be_tried_again(successor: TileProcess) -> bool:
    return successor.failed_by_chance and successor.idle_for() > RETRY_SECONDS
