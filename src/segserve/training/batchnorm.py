"""Batch-norm statistics as the network at hand has them, instead of a memory of the networks it was."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from segserve.training.network.freeze import Frozen


class Remeasuring:
    """Batch-norm layers while they average what runs through them with what they remember.

    Running averages lag behind the weights by tens of steps. On a few dozen patches, where an epoch has ten, that
    makes validation jump and picks the wrong epoch as the best (Wu and Johnson 2021, "Rethinking Batch in BatchNorm").
    What is remembered counts as one batch: the statistics of very few patches alone would know channels that never
    vary, and blow up where one does.
    """

    def __init__(self, network: nn.Module, frozen: Frozen) -> None:
        """Put all but the layers that are not frozen in evaluation mode, as it will be when the statistics are used."""
        network.train()
        frozen.hold()
        self.layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.training]
        network.eval()
        self._before = [{name: tensor.clone() for name, tensor in layer.named_buffers()} for layer in self.layers]
        self._momenta = [layer.momentum for layer in self.layers]
        for layer in self.layers:
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked.fill_(1)
            layer.momentum = None  # a plain average over all batches
            layer.training = True

    def end(self) -> None:
        """Put the layers in evaluation mode too, with what they have measured."""
        for layer, buffers, momentum in zip(self.layers, self._before, self._momenta, strict=True):
            layer.momentum, layer.training = momentum, False
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked.copy_(buffers["num_batches_tracked"])

    def undo(self) -> None:
        """Give the layers back the statistics they had."""
        for layer, buffers in zip(self.layers, self._before, strict=True):
            for name, tensor in layer.named_buffers():
                tensor.copy_(buffers[name])
