"""Memory for tiles: how much one needs, and how much those in hand may take together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager

from segserve.devices import available_memory
from segserve.errors import TooLargeError, human_bytes
from segserve.tiles.batch import CHECK_SECONDS
from segserve.tiles.header import Header

FLOAT_BYTES = 4
SMALL = 2**24
"""Bytes that are there in any case: asking the system takes as long as many a tile of no more."""


def tile_need(header: Header, classes: int) -> int:
    """Bytes that a tile takes at the least while it is classified: its values and its probabilities."""
    value = max(header.dtype.itemsize, FLOAT_BYTES)
    return header.height * header.width * (header.channels * value + classes * FLOAT_BYTES)


class Room:
    """Bytes for those who work at the same time; who finds too few left waits."""

    def __init__(self) -> None:
        self._taken = 0
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, need: int, most: int, name: str, abandoned: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Hold `need` bytes of `most`, all of it if that is not enough; blocks until they are there.

        Raises:
            TooLargeError: the machine has not as much for tile `name`, although no other is in hand.
            CancelledError: it was abandoned first.
        """
        with self._turn, self._changed:  # one waits for room, the others behind it: large tiles come to their turn
            while not abandoned() and not self._fits(need, most, name):
                self._changed.wait(CHECK_SECONDS)
            if abandoned():
                raise CancelledError
            self._taken += need
        try:
            yield
        finally:
            with self._changed:
                self._taken -= need
                self._changed.notify()

    def _fits(self, need: int, most: int, name: str) -> bool:
        """Whether there is room now; memory that is short while others hold some may be theirs, and is waited for.

        Raises:
            TooLargeError: it is short although nobody does.
        """
        if self._taken and self._taken + need > most:
            return False
        if need <= SMALL or need <= (free := available_memory()):
            return True
        if self._taken:
            return False
        raise TooLargeError(
            f"Tile {name} needs {human_bytes(need)} of memory or more and {human_bytes(free)} are free: choose a "
            "smaller tile size."
        )
