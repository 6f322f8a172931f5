"""How much memory a training will take, before, and has taken, while it runs. All figures in bytes."""

from __future__ import annotations

import logging

import psutil
import torch
from torch import Tensor, nn

from segserve.training.device import Place

log = logging.getLogger(__name__)

FLOAT = 4
# Weights, gradients and the two moments of Adam.
COPIES_OF_WEIGHTS = 4


def estimate(network: nn.Module, shape: tuple[int, int, int, int], place: Place) -> int:
    """Weights with everything that goes with them, and every module's output kept for the way back.

    Args:
        network: on any device; a copy of its structure is run on the meta device.
        shape: (N, C, H, W) of a batch.
        place: whose precision halves what is kept.
    """
    kept = 0

    def count(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal kept
        if isinstance(output, Tensor):
            kept += output.numel()

    leaves = [module for module in network.modules() if not list(module.children())]
    was_training = network.training
    network.eval()
    hooks = [leaf.register_forward_hook(count) for leaf in leaves]
    try:
        with torch.no_grad():
            on_meta = {name: tensor.to("meta") for name, tensor in network.state_dict().items()}
            torch.func.functional_call(network, on_meta, torch.empty(shape, device="meta"))
    except Exception:  # an estimate is not worth a training
        log.debug("the memory of the activations cannot be estimated", exc_info=True)
        kept = 0
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    weights = sum(parameter.numel() for parameter in network.parameters()) * FLOAT
    return weights * COPIES_OF_WEIGHTS + kept * (FLOAT if place.precision == "32-true" else FLOAT // 2)


class Peak:
    """The most memory seen: the device's own count on CUDA, else this process's resident set at each look."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._process = psutil.Process()
        self._seen = 0

    def look(self) -> None:
        """Notice how much is taken now."""
        if self._place.kind != "cuda":
            self._seen = max(self._seen, int(self._process.memory_info().rss))

    def take(self) -> int:
        """The most since the last call."""
        if self._place.kind == "cuda":
            seen = int(torch.cuda.max_memory_allocated(self._place.device))
            torch.cuda.reset_peak_memory_stats(self._place.device)
            return seen
        self.look()
        seen, self._seen = self._seen, 0
        return seen
