"""ONNX networks for tiles: (N, C, H, W) in, (N, K, H, W) out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from segserve.engines.base import Network
from segserve.engines.openvino import OpenVINOEngine, read_onnx
from segserve.errors import BadInputError

TRIAL_EDGE = 256


def describe(path: Path) -> dict[str, Any]:
    """What a tile network is like, found by running it once.

    Returns:
        `channels` of its input and `classes` of its output.

    Raises:
        BadInputError: the file is no ONNX network, or none that maps tiles to classes.
    """
    if not path.stat().st_size:
        raise BadInputError("The file is empty: send the network again.")
    inputs, outputs, _ = read_onnx(path)
    if len(inputs) != 1 or len(outputs) < 1:
        raise BadInputError(
            f"The network has {len(inputs)} inputs and {len(outputs)} outputs: one of each is expected."
        )
    shape = inputs[0].shape
    if len(shape) != 4 or inputs[0].dtype != "float32":
        raise BadInputError(
            f"The network's input is {inputs[0]}: a pixel classifier takes float32 (N, C, H, W). "
            f"Networks for volumes are loaded through /api/models."
        )
    channels = shape[1] or 3
    trial = (shape[0] or 1, channels, shape[2] or TRIAL_EDGE, shape[3] or TRIAL_EDGE)
    output = OpenVINOEngine(Network(path, np.dtype(np.float32)))(np.zeros(trial, np.float32))
    if output.ndim != 4 or (output.shape[0], *output.shape[2:]) != (trial[0], *trial[2:]):
        raise BadInputError(
            f"For tiles of shape {trial} the network gives {output.shape}: "
            f"(N, K, H, W) of the same height and width is expected."
        )
    return {"channels": channels, "classes": int(output.shape[1])}
