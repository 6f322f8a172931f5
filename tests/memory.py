"""How much memory a server's processes hold, and the most they held while something ran."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Self

import psutil

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERVAL_SECONDS = 0.003


def held(processes: Sequence[psutil.Process]) -> int:
    """Resident bytes of all the processes that still live."""
    total = 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


class Peak:
    """`with Peak(processes) as peak:` leaves the largest sum of resident bytes in `peak.size`."""

    def __init__(self, processes: Sequence[psutil.Process]) -> None:
        self.processes = processes
        self.size = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self.size = held(self.processes)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL_SECONDS):
            self.size = max(self.size, held(self.processes))
