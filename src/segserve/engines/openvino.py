"""The OpenVINO engine: ONNX networks on the processor."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segserve.engines.base import EngineError, TensorSpec

# OpenVINO reports its use to Google Analytics, from a forked process, and writes to the user's home for that. Without
# this package, which it can do without, it does not.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None forbids the import

import openvino as ov  # noqa: E402
from openvino.frontend import FrontEndManager  # noqa: E402

# Stated always: on machines with AMX, OpenVINO's own default is bfloat16.
PRECISIONS = {"float32": "f32"}
ABSOLUTE_PATH = re.compile(r"""(?<![\w.])(?:[A-Za-z]:)?[\\/][^\s'"]+""")
DTYPES = {"f32": "float32", "f16": "float16", "f64": "float64"}


class OpenVINOEngine:
    """An ONNX network compiled by OpenVINO for one input shape."""

    name = "openvino"
    device = "cpu"

    def __init__(self, path: Path, input_name: str, input_shape: tuple[int, ...], precision: str = "float32") -> None:
        """Read and compile.

        Args:
            path: the .onnx file.
            input_name: the input to fix at `input_shape`.
            input_shape: (N, C, Z, Y, X).
            precision: a key of `PRECISIONS`.

        Raises:
            EngineError: OpenVINO cannot read the file, or the network does not accept the shape.
        """
        self.precision = precision
        self.input_shape = input_shape
        model = _read(path)
        try:
            model.reshape({input_name: list(input_shape)})
            self._compiled = ov.Core().compile_model(
                model, "CPU", {"INFERENCE_PRECISION_HINT": PRECISIONS[precision], "PERFORMANCE_HINT": "LATENCY"}
            )
        except RuntimeError as error:
            raise EngineError(
                f"The network does not accept an input of shape {input_shape}: {_reason(error)}"
            ) from error
        self._request = self._compiled.create_infer_request()

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network; see `Engine`."""
        try:
            self._request.infer([batch], share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            raise EngineError(f"The network failed while running: {_reason(error)}") from error
        output: NDArray[np.float32] = self._request.get_output_tensor(0).data
        return output.astype(np.float32, copy=False)


def read_onnx(path: Path) -> tuple[list[TensorSpec], list[TensorSpec], dict[str, str]]:
    """The required inputs, the outputs and the metadata of an ONNX file.

    Raises:
        EngineError: the file is not a network that OpenVINO can read.
    """
    model = _read(path)
    return [_spec(port) for port in model.inputs], [_spec(port) for port in model.outputs], _metadata(model)


def _read(path: Path) -> ov.Model:
    # The front end is named: `Core.read_model` would try every format it knows on a file that some client named.
    front_end = FrontEndManager().load_by_framework("onnx")
    try:
        return front_end.convert(front_end.load(str(path)))
    except Exception as error:  # its own exception types are not exported, and a damaged file raises any of them
        raise EngineError(f"The file is not an ONNX network that can be read: {_reason(error)}") from error


def _spec(port: Any) -> TensorSpec:  # noqa: ANN401  # an untyped library object
    shape = port.partial_shape
    if shape.rank.is_dynamic:
        axes: tuple[int | None, ...] = ()
    else:
        axes = tuple(None if axis.is_dynamic else int(axis.get_length()) for axis in shape)
    names = sorted(port.names)
    dtype = port.element_type.get_type_name()
    return TensorSpec(names[0] if names else "", DTYPES.get(dtype, dtype), axes)


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


def _reason(error: BaseException) -> str:
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
    return ABSOLUTE_PATH.sub("(a path)", telling[-1].rstrip(".")) if telling else type(error).__name__
