"""The ONNX Runtime engine: ONNX networks on the processor, or on an NVIDIA GPU with the package for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from segserve.devices import compute_threads
from segserve.engines.base import EngineError, OnnxNetwork, without_paths

# TensorFloat-32 rounds like a reduced precision, and is CUDA's own default: it is stated always.
CUDA_PRECISIONS = {"float32": "0", "tfloat32": "1"}
QUIET = 4  # what goes wrong is raised, in words; the library's own log would only say it twice


class OnnxRuntimeEngine:
    """An ONNX network in an ONNX Runtime session."""

    name = "onnxruntime"

    def __init__(self, network: OnnxNetwork, device: str = "cpu", precision: str = "float32") -> None:
        """Read the network.

        Args:
            network: the file, and what of it to use.
            device: `cpu`, `cuda` or `cuda:N`.
            precision: `float32`; on CUDA also `tfloat32`.

        Raises:
            EngineError: ONNX Runtime cannot read the file, or cannot use the device.
        """
        self.device, self.precision = device, precision
        self._dtype = network.dtype
        options = onnxruntime.SessionOptions()
        options.log_severity_level = QUIET
        options.intra_op_num_threads = compute_threads()
        providers = _providers(device, precision)
        try:
            self._session = onnxruntime.InferenceSession(str(network.path), options, providers=providers)
        except Exception as error:  # its own exception types are not exported
            raise EngineError(f"The file is not an ONNX network that can be read: {_reason(error)}") from error
        if device != "cpu" and self._session.get_providers()[0] != "CUDAExecutionProvider":
            raise EngineError("ONNX Runtime cannot use the GPU here: its CUDA libraries do not load.")
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[network.output].name

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network; see `Engine`."""
        try:
            (output,) = self._session.run([self._output], {self._input: batch.astype(self._dtype, copy=False)})
        except Exception as error:  # its own exception types are not exported
            raise EngineError(f"The network failed while running: {_reason(error)}") from error
        return np.asarray(output, np.float32)


def _providers(device: str, precision: str) -> list[Any]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    number = device.partition(":")[2] or "0"
    return [
        ("CUDAExecutionProvider", {"device_id": number, "use_tf32": CUDA_PRECISIONS[precision]}),
        *_providers("cpu", ""),
    ]


def _reason(error: BaseException) -> str:
    """An ONNX Runtime message without its code and the server's paths."""
    return without_paths(str(error).splitlines()[0].rpartition(" : ")[2]) if str(error) else type(error).__name__
