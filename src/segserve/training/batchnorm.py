"""Batch-norm statistics as the network at hand has them, instead of a memory of the networks it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from segserve.training.network.freeze import Frozen


@contextmanager
def remeasured(network: nn.Module, frozen: Frozen | None) -> Iterator[bool]:
    """What runs through the network meanwhile gives its batch-norm layers, frozen ones apart, new statistics.

    Running averages lag behind the weights by tens of steps. On a few dozen patches, where an epoch has ten, that makes
    validation jump and picks the wrong epoch as the best. See Wu and Johnson 2021, "Rethinking Batch in BatchNorm".

    Yields:
        Whether there is any such layer. All else is in evaluation mode, as it will be when the statistics are used.
    """
    network.train()
    if frozen:
        frozen.hold()
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.training]
    network.eval()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average over all batches
        layer.training = True
    try:
        yield bool(layers)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.training = False
