"""How deep each parameter of an encoder sits, read from what it has influence on."""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import torch
from torch import Tensor
from torch.autograd.graph import Node

from segserve.training.network.build import build_encoder, quiet, without_memory

DEEPEST = 4
PROBE = (1, 3, 64, 96)


@lru_cache(maxsize=8)
def parameter_depths(encoder: str) -> dict[str, int]:
    """Parameter of the encoder -> depth 0..4.

    A parameter belongs to the first feature map that it has a part in: stride 2 or less is depth 0, 4 is 1, 8 is 2,
    16 is 3, 32 is 4. That is read from autograd's graph of a run without memory, which knows bare parameters, shared
    ones and attention, whatever the modules are called. The run is of the plain encoder, so dilation changes nothing.
    """
    with without_memory():
        network = build_encoder(encoder).eval()
    with torch.enable_grad(), quiet():
        maps: list[Tensor] = network(torch.empty(PROBE, device="meta"))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found: dict[str, int] = {}
    seen: set[Node] = set()
    for feature in maps:
        if not feature.shape[1] or feature.grad_fn is None:
            continue
        stride = PROBE[-2] // feature.shape[-2]
        depth = min(max(stride.bit_length() - 2, 0), DEEPEST)
        for parameter in _influences(feature.grad_fn, seen):
            found.setdefault(names[id(parameter)], depth)
    return _completed([name for name, _ in network.named_parameters()], found)


def _influences(start: Node, seen: set[Node]) -> list[Tensor]:
    """The parameters behind a node of autograd's graph that no earlier call has met."""
    waiting, parameters = [start], []
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            parameters.append(cast("Tensor", node.variable))
        waiting += [following for following, _ in node.next_functions if following is not None]
    return parameters


def _completed(names: list[str], found: dict[str, int]) -> dict[str, int]:
    """Parameters that no feature map needs, such as the rest of a classifier, go with the one before them."""
    depth, depths = 0, {}
    for name in names:
        depth = found.get(name, depth)
        depths[name] = depth
    return depths
