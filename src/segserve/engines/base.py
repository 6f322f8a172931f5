"""The seam between Segserve and whatever computes a network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segserve.errors import BadInputError

ABSOLUTE_PATH = re.compile(r"""(?<!http:)(?<!https:)(?<![\w./])(?:[A-Za-z]:)?[\\/][^\s'"]+""")


class EngineError(BadInputError):
    """The engine cannot read or run this network."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a network; a free axis is None. Networks may know a tensor by several names."""

    names: tuple[str, ...]
    dtype: str
    shape: tuple[int | None, ...]

    @property
    def name(self) -> str:
        """The name to show."""
        return self.names[0] if self.names else ""

    def __str__(self) -> str:
        axes = ", ".join("any" if axis is None else str(axis) for axis in self.shape)
        return f"{self.dtype} ({axes})"


@dataclass(frozen=True)
class OnnxNetwork:
    """An ONNX network on disk and what of it is used: its one input, and one of its outputs.

    Attributes:
        path: the .onnx file.
        dtype: of the input; engines are fed float32 and convert.
        output: the place of the output among the network's.
        changing: whether the shape of batches will change often, so that an engine should not prepare for each.
    """

    path: Path
    dtype: np.dtype[np.floating]
    output: int = 0
    changing: bool = False


@dataclass(frozen=True)
class TorchNetwork:
    """A PyTorch network in memory.

    Attributes:
        module: a `torch.nn.Module` in evaluation mode, float32, on the processor: takes (N, C, ...), gives one
            tensor (N, K, ...). Engines that move or change it do so to a copy.
    """

    module: Any


Network = OnnxNetwork | TorchNetwork


class Engine(Protocol):
    """A network loaded on one device, in one precision."""

    name: str
    device: str
    precision: str

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network.

        Args:
            batch: float32 (N, C, ...), C-contiguous, of a shape that the network accepts; the first batch of a
                shape takes longer.

        Returns:
            float32 (N, K, ...) of the network's chosen output. The buffer may be the engine's own: it holds
            until the next call.

        Raises:
            EngineError: the network failed on this batch.
        """
        ...


def without_paths(text: str) -> str:
    """A library's message as it may leave the server."""
    return ABSOLUTE_PATH.sub("(a path)", text.strip().rstrip("."))
