"""ONNX networks for tiles: (N, C, H, W) in, (N, K, H, W) out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from segserve.engines.openvino import OpenVINOEngine
from segserve.errors import BadInputError
from segserve.models.formats.onnx import OnnxFile, open_onnx

TRIAL_EDGE = 256
TRIAL_CHANNELS = 3


def open_tile_onnx(path: Path) -> OnnxFile:
    """Read what an ONNX file for tiles holds.

    Raises:
        BadInputError: the file is no ONNX network, or none that takes tiles.
    """
    if not path.stat().st_size:
        raise BadInputError("The file is empty: send the network again.")
    file = open_onnx(path)
    if len(file.input.shape) != 4:
        raise BadInputError(
            f"The network's input is {file.input}: a pixel classifier takes (N, C, H, W). "
            f"Networks for volumes are loaded through /api/models."
        )
    return file


def own_metadata(file: OnnxFile) -> dict[str, Any]:
    """What a network that was trained here says of itself, as its `metadata.json` did; what is no JSON is left out."""
    found: dict[str, Any] = {}
    for key, text in file.texts.items():
        with suppress(ValueError, RecursionError):
            found[key] = json.loads(text)
    return found


def whole_metadata(file: OnnxFile, beside: Mapping[str, Any]) -> dict[str, Any]:
    """All that is known of a network.

    A viewer that copies a classifier rewrites its `metadata.json` and keeps only what it knows.

    Args:
        file: what it says of itself counts where the other is silent, key by key in objects too.
        beside: the content of `metadata.json`.
    """
    own = own_metadata(file)
    joined = {
        key: {**own[key], **value}
        for key, value in beside.items()
        if isinstance(value, Mapping) and isinstance(own.get(key), dict)
    }
    return {**own, **beside, **joined}


def trial_shape(file: OnnxFile) -> tuple[int, int, int, int]:
    """A batch that the network should accept: its own fixed axes, usual sizes where they are free."""
    batch, channels, height, width = file.input.shape
    return batch or 1, channels or TRIAL_CHANNELS, height or TRIAL_EDGE, width or TRIAL_EDGE


def check_output(fed: tuple[int, ...], given: tuple[int, ...]) -> int:
    """The number of classes that an output of shape `given` holds for an input of shape `fed`.

    Raises:
        BadInputError: the output is no map of classes for each pixel.
    """
    if len(given) != 4 or (given[0], *given[2:]) != (fed[0], *fed[2:]) or not given[1]:
        raise BadInputError(
            f"For tiles of shape {fed} the network gives {given}: "
            f"(N, K, H, W) of the same height and width is expected."
        )
    return given[1]


def describe(path: Path) -> dict[str, Any]:
    """What a tile network is like, found by running it once.

    Returns:
        `channels` of its input, None where it takes any number or says itself what they are, and `classes` of its
        output.

    Raises:
        BadInputError: the file is no ONNX network, or none that maps tiles to classes.
    """
    file = open_tile_onnx(path)
    trial = trial_shape(file)
    output = OpenVINOEngine(file.network())(np.zeros(trial, np.float32))
    says = own_metadata(file).keys() & {"architecture", "input_config"}
    return {"channels": None if says else file.input.shape[1], "classes": check_output(trial, output.shape)}
