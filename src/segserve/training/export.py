"""The finished network as files: torch's, safetensors, and an ONNX that has been seen to agree at other sizes."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from segserve.engines.openvino import OpenVINOEngine
from segserve.errors import SegserveError
from segserve.tiles.frame import crop, pad, padded_size

log = logging.getLogger(__name__)

STATE_FILE = "model.pt"
SAFE_FILE = "model.safetensors"
ONNX_FILE = "model.onnx"
OPSET = 18
INPUT, OUTPUT = "input", "output"
TRACED = (128, 160)
# Batch, height, width: neither traced, nor multiples of anything.
CHECKED = ((3, 200, 312), (1, 33, 257))
TOLERANCE = 1e-3


def write_weights(network: nn.Module, folder: Path) -> None:
    """Write `model.pt` and `model.safetensors`: the state dict under the keys of segmentation-models-pytorch."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    torch.save(state, folder / STATE_FILE)
    save_file(state, folder / SAFE_FILE)


def write_onnx(
    network: nn.Module, folder: Path, *, channels: int, divisor: int, least: int, properties: Mapping[str, Any]
) -> str | None:
    """Write `model.onnx`: one file, any batch size, any height and width that are padded multiples of `divisor`.

    Args:
        network: on the processor, in float32.
        folder: where to.
        channels: of its input.
        divisor: what height and width are padded to a multiple of.
        least: the smallest height and width.
        properties: kept in the file as JSON text, for whoever has only that file.

    Returns:
        None, or in words why there is no ONNX; then no file is left.
    """
    path = folder / ONNX_FILE
    network.eval()
    try:
        _export(network, path, padded_size(*TRACED, divisor, least), channels, properties)
        _verify(network, path, channels, divisor, least)
    except Exception as error:  # whatever the exporter or an engine stumbles over, the weights are worth keeping
        log.warning("no ONNX: %s", error, exc_info=not isinstance(error, SegserveError))
        path.unlink(missing_ok=True)
        return error.message if isinstance(error, SegserveError) else f"the exporter failed ({type(error).__name__})"
    return None


def _export(
    network: nn.Module, path: Path, size: tuple[int, int], channels: int, properties: Mapping[str, Any]
) -> None:
    dynamic = {0: "batch", 2: "height", 3: "width"}
    # The exporter talks of its progress and of what its own libraries do.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet("torch.onnx", "onnxscript"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (torch.zeros(2, channels, *size),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=(dynamic,),
        )
    if program is None:
        raise RuntimeError("the exporter gave nothing")
    for name, value in properties.items():
        program.model.metadata_props[name] = json.dumps(value)
    program.save(path, external_data=False)


def _verify(network: nn.Module, path: Path, channels: int, divisor: int, least: int) -> None:
    """Compare probabilities with torch's at sizes that were not traced.

    Raises:
        SegserveError: they differ.
    """
    random = np.random.default_rng(0)
    for batch, height, width in CHECKED:
        tiles = random.random((batch, height, width, channels), np.float32)
        padded = np.ascontiguousarray(pad(tiles, divisor, least).transpose(0, 3, 1, 2))
        with torch.no_grad():
            expected = crop(network(torch.from_numpy(padded)), height, width)
        engine = OpenVINOEngine(path, INPUT, padded.shape)
        found = crop(engine(padded), height, width)
        gap = float(np.abs(_softmax(torch.from_numpy(found)) - _softmax(expected)).max())
        if not gap <= TOLERANCE:  # NaN is a difference too
            raise SegserveError(f"its probabilities differ from torch's by {gap:.2g} at {height} x {width} pixels")


def _softmax(logits: Tensor) -> npt.NDArray[np.float32]:
    return np.asarray(logits.float().softmax(1).numpy(), np.float32)


@contextlib.contextmanager
def _quiet(*names: str) -> Any:  # noqa: ANN401  # a context
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
