"""PyTorch networks that answer with more than one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch


class OneOutput(torch.nn.Module):
    """A network of whose outputs one is used: the first that is as large as the input.

    Networks trained with deep supervision give a list, the full resolution first or last.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Run the network.

        Args:
            batch: (N, C, ...).

        Returns:
            (N, K, ...), or the network's first tensor where none has the size of the input.
        """
        outputs = list(_tensors(self.network(batch)))
        if not outputs:
            raise TypeError("it gives no tensor")
        return next((one for one in outputs if one.shape[2:] == batch.shape[2:]), outputs[0])


def _tensors(output: Any) -> Iterator[torch.Tensor]:  # noqa: ANN401  # whatever a network gives
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)
