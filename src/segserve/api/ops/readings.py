"""What takes a look at the operating system to know: memory, files, disk."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from segserve.state import StateDir
from segserve.workers.placement.watched import WatchedPlacement, WatchedWorker

FRESH_SECONDS = 3.0


@dataclass(frozen=True)
class Readings:
    """Sizes in bytes.

    Attributes:
        workers: resident memory by kind of worker.
        resident: memory of the server's own process.
        descriptors: files and sockets it has open; handles on Windows.
        spool_files, spool_bytes: what requests have on disk at the moment.
        free: room on the state directory's disk.
    """

    workers: dict[str, int]
    resident: int
    descriptors: int
    spool_files: int
    spool_bytes: int
    free: int


class Reader:
    """Takes readings, in a thread, and not more often than every few seconds."""

    def __init__(self, state: StateDir, watched: WatchedPlacement) -> None:
        self._state = state
        self._watched = watched
        self._turn = asyncio.Lock()
        self._taken = -FRESH_SECONDS
        self._readings: Readings | None = None

    async def read(self) -> Readings:
        """Readings that are at most a few seconds old."""
        async with self._turn:
            if self._readings is None or time.monotonic() - self._taken >= FRESH_SECONDS:
                self._readings = await asyncio.to_thread(_readings, self._state, self._watched.workers)
                self._taken = time.monotonic()
            return self._readings


def _readings(state: StateDir, workers: Sequence[WatchedWorker]) -> Readings:
    memory: Counter[str] = Counter()
    for worker in workers:
        memory[worker.kind] += worker.memory()
    own = psutil.Process()
    files, size = _content(state.spool)
    return Readings(
        workers=dict(memory),
        resident=own.memory_info().rss,
        descriptors=getattr(own, "num_handles" if os.name == "nt" else "num_fds")(),
        spool_files=files,
        spool_bytes=size,
        free=shutil.disk_usage(state.root).free,
    )


def _content(folder: Path) -> tuple[int, int]:
    """How many files are below a folder, and their bytes; those that vanish meanwhile do not count."""
    files = size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                size += (Path(place) / name).stat().st_size
            except OSError:
                continue
            files += 1
    return files, size
