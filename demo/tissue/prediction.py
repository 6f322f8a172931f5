"""The finished classifier, applied to the slide tile by tile."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from segserve.tiles.normalize import Normalization, normalize
from segserve.tiles.statistics import ChannelStats

TILE = 128
OVERLAP = 64


def predict(model: Path, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Classify every pixel of an (H, W, 3) uint8 image with the model in folder `model`.

    The probabilities of overlapping tiles are blended with weights that fall linearly to the tile's border.

    Returns:
        (H, W) uint8, the numbers of the likeliest classes.
    """
    described = json.loads((model / "metadata.json").read_text(encoding="utf-8"))
    normalization = Normalization(**described["input_config"]["normalization"])
    stats = [ChannelStats.from_wire(entry) for entry in described["normalization_stats"]]
    session = onnxruntime.InferenceSession(model / "model.onnx", providers=["CPUExecutionProvider"])
    weight = _weight()
    blended = np.zeros((len(described["classes"]), *image.shape[:2]), dtype=np.float32)
    for top, left in product(_starts(image.shape[0]), _starts(image.shape[1])):
        window = (slice(top, top + TILE), slice(left, left + TILE))
        tile = normalize(image[window], normalization, stats).transpose(2, 0, 1)
        (logits,) = session.run(None, {"input": tile[None]})
        blended[:, *window] += weight * _softmax(logits[0])
    return np.asarray(blended.argmax(axis=0), dtype=np.uint8)


def _starts(length: int) -> list[int]:
    """Every `TILE - OVERLAP` pixels; the last tile is moved inwards to end with the image."""
    return [*range(0, length - TILE, TILE - OVERLAP), length - TILE]


def _weight() -> npt.NDArray[np.float32]:
    """(TILE, TILE) float32 above 0: linear ramps over the overlap, 1 where there is none."""
    to_border = np.minimum(np.arange(TILE), np.arange(TILE)[::-1]) + 0.5
    ramp = np.minimum(to_border / OVERLAP, 1).astype(np.float32)
    return np.outer(ramp, ramp)


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Probabilities of (K, H, W) logits over the first axis."""
    powers = np.exp(logits - logits.max(axis=0))
    return np.asarray(powers / powers.sum(axis=0), dtype=np.float32)
