"""Memory for tiles: how much one needs, and how much those in hand may take together."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from segserve.devices import available_memory
from segserve.errors import TooLargeError, human_bytes
from segserve.tiles.header import Header

FLOAT_BYTES = 4


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
    def taken(self, need: int, most: int, name: str) -> Iterator[None]:
        """Hold `need` bytes of `most`, all of it if that is not enough; blocks until they are there.

        Raises:
            TooLargeError: the machine has not as much for tile `name`.
        """
        with self._turn, self._changed:  # one waits for room, the others behind it: large tiles come to their turn
            self._changed.wait_for(lambda: not self._taken or self._taken + need <= most)
            self._taken += need
        try:
            _check_memory(need, name)
            yield
        finally:
            with self._changed:
                self._taken -= need
                self._changed.notify()


def _check_memory(need: int, name: str) -> None:
    room = available_memory()
    if need > room:
        raise TooLargeError(
            f"Tile {name} needs {human_bytes(need)} of memory or more and {human_bytes(room)} are free: choose a "
            "smaller tile size."
        )
