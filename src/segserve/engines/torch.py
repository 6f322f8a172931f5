"""The PyTorch engine, on the processor, NVIDIA's GPUs or Apple's; and what OpenVINO needs of PyTorch networks."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segserve.devices import compute_threads
from segserve.engines.base import EngineError, TorchNetwork, without_paths

GPU_PRECISIONS = {"cuda": ("float32", "tfloat32", "float16", "bfloat16"), "mps": ("float32", "float16")}
AUTOCAST = {"float16": torch.float16, "bfloat16": torch.bfloat16}
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
CONVOLUTIONS = (torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)
SCRIPT_ERROR = "RuntimeError: "  # in an error of TorchScript, what comes before it is where in its code that was


class TorchEngine:
    """A PyTorch network, run as it is."""

    name = "torch"

    def __init__(self, network: TorchNetwork, device: str = "cpu", precision: str = "float32") -> None:
        """Place the network.

        Args:
            network: stays as it is: what must be moved or changed is a copy.
            device: `cpu`, `cuda`, `cuda:N` or `mps`.
            precision: `float32`; `bfloat16` on processors that have it; those of `GPU_PRECISIONS`.

        Raises:
            EngineError: it does not fit the device, or the device cannot be used.
        """
        self.device, self.precision = device, precision
        self._network = network
        # Not for float32 on the processor, although it halves the time: there torch normalises groups of such
        # tensors with errors of 0.005 in the scores of a MedNeXt, and this is what others are compared with.
        self._channels_last = device.startswith("cuda") or (device == "cpu" and precision != "float32")
        with _in_words("The network cannot be put on the device"):
            self._module = self._placed()

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network; see `Engine`."""
        with _in_words("The network failed while running"):
            try:
                return self._run(batch)
            except Exception as error:
                if not self._channels_last or isinstance(error, torch.OutOfMemoryError):
                    raise
            # A network may look at how its tensors lie in memory, as `view` does.
            self._channels_last = False
            self._module = self._placed()
            return self._run(batch)

    def _placed(self) -> Any:  # noqa: ANN401  # a torch.nn.Module
        module = self._network.module
        if self.device == "cpu" and not self._channels_last:
            return module
        module = copy.deepcopy(module).to(self.device)
        for layer in module.modules():
            if self._channels_last and isinstance(layer, CONVOLUTIONS):
                layer.weight.data = layer.weight.data.contiguous(memory_format=LAYOUTS[layer.weight.dim()])
        return module

    def _run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        with stated(self.device, self.precision), torch.inference_mode():
            # A copy: a network may write into its input, and the batch is the caller's.
            fed = torch.tensor(batch, device=self.device)
            if self._channels_last:
                fed = fed.contiguous(memory_format=LAYOUTS[fed.dim()])
            answer: NDArray[np.float32] = self._module(fed).float().contiguous().cpu().numpy()
        return answer


@contextmanager
def stated(device: str, precision: str) -> Iterator[None]:
    """How torch computes, whatever the network's own code has set, and as it was before when this ends."""
    kind = device.partition(":")[0]
    backends: Any = torch.backends  # its modules are made when it is imported
    places = {
        "cuda": (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn),
        "cpu": (backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn),
    }
    with ExitStack() as stack:
        for place in places.get(kind, ()):
            stack.callback(setattr, place, "fp32_precision", place.fp32_precision)
            place.fp32_precision = "tf32" if precision == "tfloat32" else "ieee"
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(compute_threads())
        stack.enter_context(torch.autocast(kind, AUTOCAST.get(precision), enabled=precision in AUTOCAST))
        yield


def recorded(network: TorchNetwork, shape: tuple[int, ...]) -> Any:  # noqa: ANN401  # a torch.jit.ScriptModule
    """The operations of a network on one shape of batch, as TorchScript; weights are the network's own.

    They are recorded on zeros, while what is recorded is compared with the network on images: a network that goes
    other ways for other values is found out, unless it is TorchScript itself, whose branches stay.

    Raises:
        EngineError: the network fails, or does what cannot be recorded.
    """
    with (
        _in_words("The network cannot be recorded"),
        stated("cpu", "float32"),
        torch.no_grad(),
        warnings.catch_warnings(action="ignore"),  # of what holds for this shape only, which is all that is wanted
    ):
        return torch.jit.trace(network.module, torch.zeros(shape), strict=False, check_trace=False)


@contextmanager
def _in_words(what: str) -> Iterator[None]:
    """Torch's errors, and those of a network's own code, as sentences.

    Raises:
        EngineError: for every error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise EngineError(
            "The GPU has too little free memory for this network: send a smaller patch_size or "
            "forward_batch_windows, or force_cpu."
        ) from error
    except Exception as error:
        raise EngineError(f"{what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = str(error).rpartition(SCRIPT_ERROR)[2].strip()
    said = without_paths(text.splitlines()[0]) if text else ""
    if isinstance(error, RuntimeError) and said:
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
