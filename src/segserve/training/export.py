"""The finished network as files: torch's, safetensors, and an ONNX that has been seen to agree at other sizes."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from segserve.engines.base import OnnxNetwork
from segserve.engines.openvino import OpenVINOEngine
from segserve.errors import DiskFullError, SegserveError
from segserve.models.names import NETWORK_FILE, WEIGHTS_FILE
from segserve.tiles.frame import crop, pad, padded_size

log = logging.getLogger(__name__)

SAFE_FILE = "model.safetensors"
FILES = 3  # each as large as the weights
OPSET = 18
INPUT, OUTPUT = "input", "output"
TRACED = (128, 160)
# Batch, height, width: neither traced, nor multiples of anything.
CHECKED = ((3, 200, 312), (1, 33, 257))
TOLERANCE = 1e-3


def write_weights(network: nn.Module, folder: Path) -> None:
    """Write `model.pt` and `model.safetensors`: the state dict under the keys of segmentation-models-pytorch."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if shutil.disk_usage(folder).free < size * FILES:
        raise DiskFullError
    with (folder / WEIGHTS_FILE).open("wb") as stream:
        torch.save(state, stream)
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
    path, reason = folder / NETWORK_FILE, ""
    network.eval()
    for exporter in (_export_traced, _export_program):
        try:
            with _quiet():
                exporter(network, torch.zeros(2, channels, *padded_size(*TRACED, divisor, least)), path)
            _describe(path, properties)
            _verify(network, path, channels, divisor, least)
        except Exception as error:  # whatever exporters and engines stumble over, the weights are worth keeping
            reason = _reason(error)
            log.info("%s: %s", exporter.__name__.strip("_"), reason, exc_info=not isinstance(error, SegserveError))
            path.unlink(missing_ok=True)
        else:
            return None
    return reason


def _reason(error: Exception) -> str:
    return error.message if isinstance(error, SegserveError) else f"the exporter failed ({type(error).__name__})"


def _export_traced(network: nn.Module, images: Tensor, path: Path) -> None:
    """By torch's older exporter: ten times as fast, but it takes what depends on the size for a constant."""
    dynamic = {0: "batch", 2: "height", 3: "width"}
    torch.onnx.export(
        network,
        (images,),
        path,
        dynamo=False,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_axes={INPUT: dynamic, OUTPUT: dynamic},
    )


def _export_program(network: nn.Module, images: Tensor, path: Path) -> None:
    """By torch's newer exporter, which reasons about sizes."""
    torch.onnx.export(
        network,
        (images,),
        path,
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
        external_data=False,
    )


def _describe(path: Path, properties: Mapping[str, Any]) -> None:
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in properties.items()})
    onnx.save(model, path)


def _verify(network: nn.Module, path: Path, channels: int, divisor: int, least: int) -> None:
    """Compare probabilities with torch's at sizes that were not traced.

    Raises:
        SegserveError: they differ.
    """
    random = np.random.default_rng(0)
    engine = OpenVINOEngine(OnnxNetwork(path, np.dtype(np.float32)))
    for batch, height, width in CHECKED:
        tiles = random.random((batch, height, width, channels), np.float32)
        padded = np.ascontiguousarray(pad(tiles, divisor, least).transpose(0, 3, 1, 2))
        with torch.no_grad():
            expected = crop(network(torch.from_numpy(padded)), height, width)
        found = crop(engine(padded), height, width)
        # Noise is nothing the network has learnt on: where it overflows for torch, it may for the engine too.
        with np.errstate(invalid="ignore"):
            true = _softmax(expected)
            gaps = np.abs(_softmax(torch.from_numpy(found)) - true)[np.isfinite(true)]
        gap = float(gaps.max(initial=0))
        if not gap <= TOLERANCE:  # NaN is a difference too
            raise SegserveError(f"its probabilities differ from torch's by {gap:.2g} at {height} x {width} pixels")


def _softmax(logits: Tensor) -> npt.NDArray[np.float32]:
    return np.asarray(logits.float().softmax(1).numpy(), np.float32)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters talk of their progress, and warn of what `_verify` looks at."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
