"""Small PyTorch networks, and the files that such networks are kept in."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.oracle import Forward

PATCH = (8, 8, 8)
FEATURES = 4


class Small(torch.nn.Module):
    """Two random convolutions with a norm between them."""

    def __init__(self, classes: int = 3, channels: int = 1, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = torch.nn.Conv3d(channels, FEATURES, 3, padding=1)
        self.norm = torch.nn.BatchNorm3d(FEATURES)
        self.last = torch.nn.Conv3d(FEATURES, classes, 3, padding=1)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.last(self.drop(torch.relu(self.norm(self.first(batch)))))
        return answer


class Bias(torch.nn.Module):
    """One class: a factor times what it is fed, plus a bias."""

    def __init__(self, bias: float, factor: float = 1.0) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.tensor(bias))
        self.factor = factor

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.factor * batch + self.bias


def scripted(module: torch.nn.Module, path: Path, texts: Mapping[str, str] | None = None) -> Path:
    """Keep a network as TorchScript."""
    with warnings.catch_warnings(action="ignore"):  # deprecated, and in use
        torch.jit.save(torch.jit.script(module.eval()), path, _extra_files=dict(texts or {}))
    return path


def exported(
    module: torch.nn.Module,
    path: Path,
    texts: Mapping[str, str] | None = None,
    *,
    shape: tuple[int, ...] = (2, 1, *PATCH),
    dtype: torch.dtype = torch.float32,
    free: bool = False,
    inputs: int = 1,
) -> Path:
    """Keep a network as torch.export has it, for batches of one shape or, if `free`, of any."""
    sizes: Any = dict.fromkeys((0, 2, 3, 4), torch.export.Dim.AUTO)
    fed = (torch.zeros(shape, dtype=dtype),) * inputs
    program = torch.export.export(module, fed, dynamic_shapes=(sizes,) if free else None)
    with path.open("wb") as stream:
        torch.export.save(program, stream, extra_files=dict(texts or {}))
    return path


def torch_forward(module: torch.nn.Module) -> Forward:
    """The network itself, called directly."""

    def forward(patch: NDArray[Any]) -> NDArray[Any]:
        with torch.no_grad():
            answer: NDArray[Any] = module(torch.tensor(patch[None, None].astype(np.float32)))[0].numpy()
        return answer

    return forward
