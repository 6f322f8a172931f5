"""ONNX files: what they hold and which files they are made of."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from segserve.engines.base import OnnxNetwork, TensorSpec
from segserve.engines.openvino import read_onnx
from segserve.errors import BadInputError
from segserve.models.backends import is_file
from segserve.models.metadata import ModelMetadata, read_metadata

INPUT_TYPES = ("float32", "float16")
# In the file's protobuf: field 1 (key) of 8 bytes, "location", then field 2 (value), whose length is one or two bytes.
EXTERNAL = re.compile(rb"\x0a\x08location\x12([\x01-\x7f]|[\x80-\xff][\x01-\x1f])")


@dataclass(frozen=True)
class OnnxFile:
    """A network on disk: its one input, the output that is used, and what it says of itself: read, and as it stands."""

    path: Path
    input: TensorSpec
    output: int
    metadata: ModelMetadata
    texts: Mapping[str, str]

    def network(self, *, changing: bool = False) -> OnnxNetwork:
        """For the engines; `changing` if batches will come in many shapes."""
        return OnnxNetwork(self.path, np.dtype(self.input.dtype), self.output, changing)


def open_onnx(path: Path) -> OnnxFile:
    """Read what an ONNX file holds.

    Raises:
        BadInputError: it is no ONNX network, takes several inputs or one that is not floating point, or weights that
            it keeps in other files are not beside it.
    """
    _check_external(path)
    inputs, outputs, texts = read_onnx(path)
    if len(inputs) != 1:
        found = ", ".join(f"{spec.name!r} {spec}" for spec in inputs) or "none"
        raise BadInputError(f"The network has {len(inputs)} required inputs ({found}); one is expected.")
    if not outputs:
        raise BadInputError("The network has no output.")
    if inputs[0].dtype not in INPUT_TYPES:
        raise BadInputError(f"The network's input is {inputs[0]}; float32 or float16 is expected.")
    metadata = read_metadata(texts)
    return OnnxFile(path, inputs[0], _output(outputs, metadata), metadata, texts)


def model_files(path: Path) -> list[Path]:
    """The .onnx file and the files beside it that hold its weights, where it keeps them outside."""
    return [path, *(path.parent / name for name in sorted(set(_external_names(path))))]


def _output(outputs: list[TensorSpec], metadata: ModelMetadata) -> int:
    """The place of the output that the metadata names, else 0."""
    wanted = metadata.fields.output
    if wanted is None:
        return 0
    for place, spec in enumerate(outputs):
        if wanted in spec.names:
            return place
    raise BadInputError(
        f"The model's metadata names the output {wanted!r}; the network has {', '.join(spec.name for spec in outputs)}."
    )


def _check_external(path: Path) -> None:
    for name in _external_names(path):
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts or "\\" in name or ":" in name:
            raise BadInputError(f"The network keeps weights in {name!r}: only files in its own folder are read.")
        if not is_file(path.parent / name):
            raise BadInputError(
                f"The network keeps weights in {name!r}, which is not beside it: copy that file there too."
            )


def _external_names(path: Path) -> Iterator[str]:
    """The names of the files that hold the network's weights, relative to its folder."""
    if not path.stat().st_size:
        return
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for found in EXTERNAL.finditer(content):
            length = found[1][0] if len(found[1]) == 1 else (found[1][0] & 0x7F) | found[1][1] << 7
            yield content[found.end() : found.end() + length].decode("utf-8", "replace")
