"""The OpenVINO engine: ONNX and PyTorch networks on the processor."""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segserve.devices import compute_threads
from segserve.engines.base import EngineError, Network, OnnxNetwork, TensorSpec, TorchNetwork, without_paths

# OpenVINO reports its use to Google Analytics, from a forked process, and writes to the user's home for that. Without
# this package, which it can do without, it does not.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None forbids the import

import openvino as ov  # noqa: E402
from openvino.frontend import FrontEndManager  # noqa: E402

# Stated always: on machines with AMX, OpenVINO's own default is bfloat16.
PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
CAPABILITIES = {"bfloat16": "BF16", "float16": "FP16"}
DTYPES = {"f32": "float32", "f16": "float16", "f64": "float64", "boolean": "bool"}


class OpenVINOEngine:
    """A network compiled by OpenVINO, once for every shape it is fed."""

    name = "openvino"
    device = "cpu"

    def __init__(self, network: Network, precision: str = "float32", shape: tuple[int, ...] | None = None) -> None:
        """Read the network; one of PyTorch is converted when the shape of its batches is known.

        Args:
            network: the file and what of it to use, or the module.
            precision: a key of `PRECISIONS`.
            shape: of the batches to come, if it is known.

        Raises:
            EngineError: OpenVINO cannot read the file, or the network does not take that shape.
        """
        self.precision = precision
        onnx = network if isinstance(network, OnnxNetwork) else None
        self._dtype = onnx.dtype if onnx else np.dtype(np.float32)
        self._changing = onnx is not None and onnx.changing
        self._model: Any = _only_output(read_model(onnx.path), onnx.output) if onnx else None
        self._network = network
        self._shape: tuple[int, ...] = ()
        self._request: Any = None
        if shape:
            self._compile(shape)

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network; see `Engine`."""
        if self._request is None or (batch.shape != self._shape and not self._changing):
            self._compile(batch.shape)
        try:
            self._request.infer([batch.astype(self._dtype, copy=False)], share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            # What is compiled remembers shapes from before the failure: it fails again, or gives its last answer again.
            self._request = None
            raise EngineError(f"The network failed while running: {reason_of(error)}") from error
        output: NDArray[np.floating] = self._request.get_output_tensor(0).data
        if self._changing and output.shape[2:] != batch.shape[2:]:
            # On one core it can fail without saying so, and leaves the answer before in place.
            output = output.copy()
            self._request = None
        return output.astype(np.float32, copy=False)

    def _compile(self, shape: tuple[int, ...]) -> None:
        options = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": compute_threads(),
        }
        self._shape, self._request = (), None  # the memory of the last shape is free before that of the next is taken
        model = self._model
        if isinstance(self._network, TorchNetwork):
            model = _converted(self._network, shape)
        try:
            if not self._changing:
                model.reshape(list(shape))
            self._request = ov.Core().compile_model(model, "CPU", options).create_infer_request()
        except RuntimeError as error:
            raise EngineError(f"The network does not accept an input of shape {shape}: {reason_of(error)}") from error
        self._shape = shape


def reduced_precisions() -> list[str]:
    """The precisions below float32 that this processor computes in."""
    known = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return [precision for precision, capability in CAPABILITIES.items() if capability in known]


def read_onnx(path: Path) -> tuple[list[TensorSpec], list[TensorSpec], dict[str, str]]:
    """The required inputs, the outputs and the metadata of an ONNX file.

    Raises:
        EngineError: the file is not a network that OpenVINO can read.
    """
    model = read_model(path)
    return [_spec(port) for port in model.inputs], [_spec(port) for port in model.outputs], _metadata(model)


def read_model(path: Path) -> ov.Model:
    """The network as OpenVINO has it.

    Raises:
        EngineError: the file is not a network that OpenVINO can read.
    """
    # The front end is named: `Core.read_model` would try every format it knows on a file that some client named.
    front_end = FrontEndManager().load_by_framework("onnx")
    try:
        return front_end.convert(front_end.load(str(path)))
    except Exception as error:  # its own exception types are not exported, and a damaged file raises any of them
        raise EngineError(f"The file is not an ONNX network that can be read: {reason_of(error)}") from error


@lru_cache(maxsize=1)  # the candidates of a contest differ in precision, of which this knows nothing
def _converted(network: TorchNetwork, shape: tuple[int, ...]) -> ov.Model:
    """A PyTorch network for batches of one shape; it shares the weights."""
    from segserve.engines.torch import recorded

    operations = recorded(network, shape)
    try:
        return ov.convert_model(operations, input=[(list(shape), np.float32)])
    except Exception as error:  # its own exception types are not exported, and operations can fail in any way
        raise EngineError(f"OpenVINO cannot convert the network: {reason_of(error)}") from error


def _only_output(model: ov.Model, output: int) -> ov.Model:
    """The network without what only its other outputs need."""
    if len(model.outputs) == 1:
        return model
    if not model.outputs:
        raise EngineError("The file is not an ONNX network that can be read: it has no output.")
    return ov.Model([model.get_results()[output]], model.get_parameters())


def _spec(port: Any) -> TensorSpec:  # noqa: ANN401  # an untyped library object
    shape = port.partial_shape
    if shape.rank.is_dynamic:
        axes: tuple[int | None, ...] = ()
    else:
        axes = tuple(None if axis.is_dynamic else int(axis.get_length()) for axis in shape)
    dtype = port.element_type.get_type_name()
    return TensorSpec(tuple(sorted(port.names)), DTYPES.get(dtype, dtype), axes)


def _metadata(model: ov.Model) -> dict[str, str]:
    if not model.has_rt_info(["framework"]):
        return {}
    texts: dict[str, str] = {}
    for key, value in model.rt_info["framework"].items():
        try:
            texts[key] = value.astype(str)
        except (RuntimeError, ValueError):
            texts[key] = ""  # not text: whoever knows the key will find that it makes no sense
    return texts


def reason_of(error: BaseException) -> str:
    """The last telling line of an OpenVINO message, without its source files and the server's paths."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [
        line
        for line in lines
        if line
        and ".cpp" not in line
        and ".hpp" not in line
        and not line.startswith(("Exception from", "While validating"))
    ]
    return without_paths(telling[-1]) if telling else type(error).__name__
