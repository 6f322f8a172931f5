"""Arrays kept in memory up to a bound, the rest in one memory-mapped file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from segserve.errors import DiskFullError, is_disk_full

ALIGNMENT = 64


@dataclass(frozen=True)
class _Spilled:
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass
class ArrayStore:
    """Takes arrays one by one; `arrays` gives them back, in their order, once all are in.

    Attributes:
        path: of the file for what does not fit in memory; made only if needed.
        memory_bound: bytes that may stay in memory.
        nbytes: of all arrays.
        in_memory: bytes of those that stay in memory.
    """

    path: Path
    memory_bound: int
    nbytes: int = 0
    in_memory: int = 0
    _kept: list[NDArray[Any] | _Spilled] = field(default_factory=list)
    _file: BinaryIO | None = None

    def add(self, array: NDArray[Any]) -> None:
        """Keep one more.

        Raises:
            DiskFullError: it had to go to the file, and there is no room.
        """
        self.nbytes += array.nbytes
        if self.in_memory + array.nbytes <= self.memory_bound:
            self.in_memory += array.nbytes
            self._kept.append(array)
            return
        try:
            self._kept.append(self._spill(array))
        except OSError as error:
            if is_disk_full(error):
                raise DiskFullError from error
            raise

    def arrays(self) -> list[NDArray[Any]]:
        """All that were added; those in the file read-only."""
        if self._file is None:
            return [array for array in self._kept if isinstance(array, np.ndarray)]
        self.close()
        whole = np.asarray(np.memmap(self.path, np.uint8, "r"))
        return [array if isinstance(array, np.ndarray) else _view(whole, array) for array in self._kept]

    def close(self) -> None:
        """Close the file for writing."""
        if self._file is not None:
            self._file.close()

    def _spill(self, array: NDArray[Any]) -> _Spilled:
        if self._file is None:
            self._file = self.path.open("wb")
        offset = self._file.seek(-(-self._file.tell() // ALIGNMENT) * ALIGNMENT)
        self._file.write(np.ascontiguousarray(array).data)
        return _Spilled(offset, array.shape, array.dtype)


def _view(whole: NDArray[np.uint8], place: _Spilled) -> NDArray[Any]:
    size = math.prod(place.shape) * place.dtype.itemsize
    return whole[place.offset : place.offset + size].view(place.dtype).reshape(place.shape)
