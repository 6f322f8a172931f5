"""ONNX files: what they hold, and loading them into an engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segserve.engines.base import Engine, TensorSpec
from segserve.engines.openvino import OpenVINOEngine, read_onnx
from segserve.errors import BadInputError
from segserve.models.metadata import ModelMetadata, read_metadata


@dataclass(frozen=True)
class OnnxFile:
    """A network on disk: its one input, and what it says of itself."""

    path: Path
    input: TensorSpec
    metadata: ModelMetadata

    def load(self, input_shape: tuple[int, ...]) -> Engine:
        """Load the network for one input shape."""
        return OpenVINOEngine(self.path, self.input.name, input_shape)


def open_onnx(path: Path) -> OnnxFile:
    """Read what an ONNX file holds.

    Raises:
        BadInputError: it is no ONNX network, takes several inputs, or does not take float32.
    """
    inputs, outputs, texts = read_onnx(path)
    if len(inputs) != 1:
        found = ", ".join(f"{spec.name!r} {spec}" for spec in inputs) or "none"
        raise BadInputError(f"The network has {len(inputs)} required inputs ({found}); one is expected.")
    if not outputs:
        raise BadInputError("The network has no output.")
    if inputs[0].dtype != "float32":
        raise BadInputError(f"The network's input is {inputs[0]}; float32 (N, 1, Z, Y, X) is expected.")
    return OnnxFile(path, inputs[0], read_metadata(texts))
