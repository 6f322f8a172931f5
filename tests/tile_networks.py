"""Tiny classifiers for tiles, whose probabilities can be worked out on paper."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Values = NDArray[np.float32]

CLASSES = 3
WEIGHT: Values = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0], [-1.5, 0.25, 2.0]], np.float32)
BIAS: Values = np.array([0.1, -0.2, 0.3], np.float32)
STRIDE = 32


def pixel_classifier(folder: Path, *, shift: float = 0.0, **metadata: Any) -> Path:
    """A folder whose network looks at one pixel at a time: logits = WEIGHT @ rgb + BIAS, the first class's shifted."""
    bias = BIAS + np.array([shift, 0, 0], np.float32)
    nodes = [helper.make_node("Conv", ["input", "weight", "bias"], ["output"])]
    return _save(folder, nodes, {"weight": WEIGHT.reshape(3, 3, 1, 1), "bias": bias}, metadata)


def wide_classifier(folder: Path, classes: int) -> Path:
    """A folder whose network finds all of its many classes alike."""
    nodes = [helper.make_node("Conv", ["input", "weight"], ["output"])]
    return _save(folder, nodes, {"weight": np.zeros((classes, 3, 1, 1), np.float32)}, {}, classes=classes)


def telling_network(folder: Path, says: Mapping[str, Any], *, channels: int = 3) -> Path:
    """A file alone, whose network looks at one pixel at a time and says of itself what a training here lets it say."""
    weight = np.concatenate([WEIGHT, -0.7 * WEIGHT], axis=1)[:, :channels, None, None]
    nodes = [helper.make_node("Conv", ["input", "weight", "bias"], ["output"])]
    _save(folder, nodes, {"weight": weight, "bias": BIAS}, {}, channels=channels, says=says)
    (folder / "metadata.json").unlink()
    return folder / "model.onnx"


def neighbour_classifier(folder: Path, **metadata: Any) -> Path:
    """A folder whose network weighs each pixel with its left neighbour, which the image's border lacks."""
    weight = np.zeros((3, 3, 3, 3), np.float32)
    weight[:, :, 1, 1] = WEIGHT
    weight[:, :, 1, 0] = 2 * WEIGHT
    nodes = [helper.make_node("Conv", ["input", "weight", "bias"], ["output"], pads=[1, 1, 1, 1])]
    return _save(folder, nodes, {"weight": weight, "bias": BIAS}, metadata)


def coarse_classifier(folder: Path, **metadata: Any) -> Path:
    """A folder whose network adds the means of 32 x 32 squares to each pixel, and fails where no squares fit."""
    square = np.eye(3, dtype=np.float32)[:, :, None, None] * np.full((STRIDE, STRIDE), 1 / STRIDE**2, np.float32)
    scales = np.array([1, 1, STRIDE, STRIDE], np.float32)
    nodes = [
        helper.make_node("Conv", ["input", "square"], ["small"], strides=[STRIDE, STRIDE]),
        helper.make_node("Resize", ["small", "", "scales"], ["large"], mode="nearest"),
        helper.make_node("Add", ["input", "large"], ["sum"]),
        helper.make_node("Conv", ["sum", "weight", "bias"], ["output"]),
    ]
    weights = {"square": square, "scales": scales, "weight": WEIGHT.reshape(3, 3, 1, 1), "bias": BIAS}
    return _save(folder, nodes, weights, metadata)


def halving_classifier(folder: Path) -> Path:
    """A folder whose network adds the image's mean to each pixel, and fails where a side cannot be halved."""
    half = np.eye(3, dtype=np.float32)[:, :, None, None] * np.full((2, 2), 0.25, np.float32)
    nodes = [
        helper.make_node("Conv", ["input", "half"], ["small"], strides=[2, 2]),
        helper.make_node("Resize", ["small", "", "scales"], ["large"], mode="nearest"),
        helper.make_node("Sub", ["input", "large"], ["detail"]),
        helper.make_node("GlobalAveragePool", ["input"], ["mean"]),
        helper.make_node("Add", ["detail", "mean"], ["sum"]),
        helper.make_node("Conv", ["sum", "weight", "bias"], ["output"]),
    ]
    scales = np.array([1, 1, 2, 2], np.float32)
    weights = {"half": half, "scales": scales, "weight": 8 * WEIGHT.reshape(3, 3, 1, 1), "bias": BIAS}
    return _save(folder, nodes, weights, {})


def forgetful_classifier(folder: Path, keeps: int) -> Path:
    """A folder whose network answers as `pixel_classifier`'s, but only for the first tiles of a batch."""
    nodes = [
        helper.make_node("Conv", ["input", "weight", "bias"], ["all"]),
        helper.make_node("Slice", ["all", "begin", "end", "axis"], ["output"]),
    ]
    bounds: dict[str, NDArray[Any]] = {
        name: np.array([value], np.int64) for name, value in [("begin", 0), ("end", keeps), ("axis", 0)]
    }
    return _save(folder, nodes, {"weight": WEIGHT.reshape(3, 3, 1, 1), "bias": BIAS, **bounds}, {})


def mixing_classifier(folder: Path) -> Path:
    """A folder whose network adds the mean of a batch's tiles to each of them, and so is right with one alone."""
    nodes = [
        helper.make_node("ReduceMean", ["input", "axis"], ["mean"], keepdims=1),
        helper.make_node("Add", ["input", "mean"], ["sum"]),
        helper.make_node("Conv", ["sum", "weight", "bias"], ["output"]),
    ]
    weights: dict[str, NDArray[Any]] = {"weight": WEIGHT.reshape(3, 3, 1, 1) / 2, "bias": BIAS}
    return _save(folder, nodes, {"axis": np.array([0], np.int64), **weights}, {})


def slow_classifier(folder: Path) -> Path:
    """A folder whose network takes a good part of a second for a tile of 512 x 512."""
    wide = np.full((32, 32, 5, 5), 1e-4, np.float32)
    nodes = [
        helper.make_node("Conv", ["input", "first"], ["begun"]),
        helper.make_node("Conv", ["begun", "wide"], ["middle"], pads=[2, 2, 2, 2]),
        helper.make_node("Conv", ["middle", "wide"], ["end"], pads=[2, 2, 2, 2]),
        helper.make_node("Conv", ["end", "last"], ["output"]),
    ]
    weights = {"first": np.ones((32, 3, 1, 1), np.float32), "wide": wide, "last": np.ones((3, 32, 1, 1), np.float32)}
    return _save(folder, nodes, weights, {})


def softmax(logits: NDArray[Any]) -> Values:
    """Probabilities from logits (K, ...)."""
    powers = np.exp(logits - logits.max(0))
    return np.asarray(powers / powers.sum(0), np.float32)


def pixel_answer(
    tile: NDArray[Any], *, low: float | NDArray[Any] = 0.0, high: float | NDArray[Any] = 255.0, shift: float = 0.0
) -> Values:
    """What `pixel_classifier` says of a tile (H, W, 3) whose values `low` to `high` become 0 to 1: (3, H, W)."""
    logits = _weighed((np.clip(tile.astype(np.float64), low, high) - low) / (high - low))
    logits[0] += shift
    return softmax(logits)


def neighbour_answer(tile: NDArray[Any], *, padding: int = 0) -> Values:
    """What `neighbour_classifier` says of a tile (H, W, 3) of 0..255 that is mirrored at its borders."""
    values = np.pad(tile / 255.0, [(padding, padding), (padding, padding), (0, 0)], mode="reflect")
    left = np.pad(values, [(0, 0), (1, 0), (0, 0)])[:, :-1]
    logits = _weighed(values + 2 * left)
    height, width, _ = tile.shape
    return softmax(logits[:, padding : padding + height, padding : padding + width])


def coarse_answer(tile: NDArray[Any]) -> Values:
    """What `coarse_classifier` says of a tile (H, W, 3) of 0..255 that is mirrored at its right and bottom."""
    height, width, _ = tile.shape
    values = np.pad(tile / 255.0, [(0, -height % STRIDE), (0, -width % STRIDE), (0, 0)], mode="reflect")
    rows, columns, _ = values.shape
    squares = values.reshape(rows // STRIDE, STRIDE, columns // STRIDE, STRIDE, 3).mean((1, 3))
    values += squares.repeat(STRIDE, 0).repeat(STRIDE, 1)
    return softmax(_weighed(values)[:, :height, :width])


def _weighed(values: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.einsum("kc,hwc->khw", WEIGHT, values) + BIAS[:, None, None])


def _save(
    folder: Path,
    nodes: Sequence[Any],
    weights: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, Any],
    *,
    channels: int = 3,
    classes: int = CLASSES,
    says: Mapping[str, Any] | None = None,
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "tiles",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", channels, "h", "w"])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", classes, "h", "w"])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {key: json.dumps(value) for key, value in (says or {}).items()})
    onnx.checker.check_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    described = {"id": folder.name, "input_config": {"num_channels": 3.0}, **metadata}
    (folder / "metadata.json").write_text(json.dumps(described), encoding="utf-8")
    return folder
