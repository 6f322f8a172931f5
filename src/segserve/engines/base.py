"""The seam between Segserve and whatever computes a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from segserve.errors import BadInputError


class EngineError(BadInputError):
    """The engine cannot read or run this network."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a network; a free axis is None."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        axes = ", ".join("any" if axis is None else str(axis) for axis in self.shape)
        return f"{self.dtype} ({axes})"


class Engine(Protocol):
    """A network loaded for one input shape, on one device, in one precision."""

    name: str
    device: str
    precision: str
    input_shape: tuple[int, ...]

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network.

        Args:
            batch: float32, exactly `input_shape`.

        Returns:
            float32 (N, K, ...) of the network's first output. The buffer is the engine's own: it holds
            until the next call.

        Raises:
            EngineError: the network failed on this batch.
        """
        ...
