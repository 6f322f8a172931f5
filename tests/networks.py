"""Small ONNX networks whose labels can be told exactly, without running them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

OPSET = 18
IR_VERSION = 10
# Unequal and coprime, so that windows that disagree about a bit can never sum to a tie.
BIT_SET, BIT_CLEAR = 1009.0, -1008.0

Constants = dict[str, npt.NDArray[Any] | np.generic]


class Options(TypedDict, total=False):
    """`spatial` and `batch` fix axes that are dynamic otherwise; `dtype` is the type of everything."""

    dtype: str
    spatial: Sequence[int] | None
    batch: int | None
    metadata: Mapping[str, str]


def threshold_network(path: Path, threshold: float, **options: Unpack[Options]) -> Path:
    """Two classes: label = (x > threshold)."""
    nodes = [
        helper.make_node("Greater", ["image", "threshold"], ["above"]),
        helper.make_node("Cast", ["above"], ["yes"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one", "yes"], ["no"]),
        helper.make_node("Concat", ["no", "yes"], ["logits"], axis=1),
    ]
    constants: Constants = {"threshold": np.float32(threshold), "one": np.float32(1)}
    return _save(path, nodes, constants, 2, options)


def binary_network(path: Path, threshold: float, *, sigmoid: bool = False, **options: Unpack[Options]) -> Path:
    """One output channel, x - threshold, or the sigmoid of it."""
    difference = "difference" if sigmoid else "logits"
    nodes = [helper.make_node("Sub", ["image", "threshold"], [difference])]
    if sigmoid:
        nodes.append(helper.make_node("Sigmoid", [difference], ["logits"]))
    return _save(path, nodes, {"threshold": np.float32(threshold)}, 1, options)


def neighbour_network(path: Path, **options: Unpack[Options]) -> Path:
    """Eight classes: a bit for "greater than the next voxel" along z (4), y (2) and x (1).

    The next voxel of a patch's last one is itself, so that its bit is clear.
    """
    nodes: list[onnx.NodeProto] = []
    constants: Constants = {
        "gap": np.float32(BIT_SET - BIT_CLEAR),
        "clear": np.float32(BIT_CLEAR),
        "first": np.array([1], np.int64),
        "end": np.array([np.iinfo(np.int64).max], np.int64),
        "signs": _bit_signs().reshape(8, 3, 1, 1, 1),
    }
    for axis in (2, 3, 4):
        pads = np.zeros(10, np.int64)
        pads[5 + axis] = 1
        constants |= {f"pads{axis}": pads, f"axis{axis}": np.array([axis], np.int64)}
        nodes += [
            helper.make_node("Pad", ["image", f"pads{axis}"], [f"padded{axis}"], mode="edge"),
            helper.make_node("Slice", [f"padded{axis}", "first", "end", f"axis{axis}"], [f"next{axis}"]),
            helper.make_node("Greater", ["image", f"next{axis}"], [f"greater{axis}"]),
            helper.make_node("Cast", [f"greater{axis}"], [f"bit{axis}"], to=TensorProto.FLOAT),
        ]
    nodes += [
        helper.make_node("Concat", ["bit2", "bit3", "bit4"], ["bits"], axis=1),
        helper.make_node("Mul", ["bits", "gap"], ["scaled"]),
        helper.make_node("Add", ["scaled", "clear"], ["scores"]),
        helper.make_node("Conv", ["scores", "signs"], ["logits"], kernel_shape=[1, 1, 1]),
    ]
    return _save(path, nodes, constants, 8, options)


def conv_network(path: Path, classes: int, seed: int = 0, **options: Unpack[Options]) -> Path:
    """Two random 3x3x3 convolutions."""
    random = np.random.default_rng(seed)
    hidden = 6
    constants: Constants = {
        "w1": random.normal(0, 0.3, (hidden, 1, 3, 3, 3)).astype(np.float32),
        "b1": random.normal(0, 0.3, hidden).astype(np.float32),
        "w2": random.normal(0, 0.3, (classes, hidden, 3, 3, 3)).astype(np.float32),
        "b2": random.normal(0, 0.3, classes).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["hidden"], pads=[1] * 6),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Conv", ["active", "w2", "b2"], ["logits"], pads=[1] * 6),
    ]
    return _save(path, nodes, constants, classes, options)


def two_outputs_network(path: Path, **options: Unpack[Options]) -> Path:
    """Two outputs: `logits`, two classes, label = (x > 0); `others`, three classes, label 2 wherever x > 1, else 1."""
    constants: Constants = {
        "w": np.array([-1, 1], np.float32).reshape(2, 1, 1, 1, 1),
        "v": np.array([0, 0, 1], np.float32).reshape(3, 1, 1, 1, 1),
        "b": np.array([-9, 1, 0], np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["logits"], kernel_shape=[1, 1, 1]),
        helper.make_node("Conv", ["image", "v", "b"], ["others"], kernel_shape=[1, 1, 1]),
    ]
    saved = _save(path, nodes, constants, 2, options)
    model = onnx.load(saved)
    more = onnx.ValueInfoProto()
    more.CopyFrom(model.graph.output[0])
    more.name = "others"
    more.type.tensor_type.shape.dim[1].dim_value = 3
    model.graph.output.append(more)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def wide_network(path: Path, classes: int = 105, **options: Unpack[Options]) -> Path:
    """Many classes for little work: label = the class number nearest to x (logits 2kx - k²)."""
    numbers = np.arange(classes, dtype=np.float32)
    constants: Constants = {"w": (2 * numbers).reshape(classes, 1, 1, 1, 1), "b": -numbers * numbers}
    nodes = [helper.make_node("Conv", ["image", "w", "b"], ["logits"], kernel_shape=[1, 1, 1])]
    return _save(path, nodes, constants, classes, options)


def place_network(path: Path, threshold: float, patch: Sequence[int]) -> Path:
    """Five classes, voted by where a voxel lies in its patch, and otherwise above the threshold than below."""
    below, above = place_votes(patch)
    nodes = [
        helper.make_node("Greater", ["image", "threshold"], ["above"]),
        helper.make_node("Where", ["above", "votes above", "votes below"], ["logits"]),
    ]
    constants: Constants = {"threshold": np.float32(threshold), "votes below": below[None], "votes above": above[None]}
    return _save(path, nodes, constants, 5, {"spatial": patch})


def place_votes(patch: Sequence[int]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The logits (K, Z, Y, X) of the place network below and above its threshold: whole numbers."""
    random = np.random.default_rng(11)
    below, above = random.integers(-(2**15), 2**15, (2, 5, *patch)).astype(np.float32)
    return below, above


def _bit_signs() -> npt.NDArray[np.float32]:
    """For each of the eight classes, +1 where its z, y, x bit is set and -1 where it is clear."""
    numbers = np.arange(8)[:, None]
    return np.asarray(((numbers >> np.array([2, 1, 0])) & 1) * 2 - 1, np.float32)


def _save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: Constants,
    classes: int,
    options: Options,
) -> Path:
    size: list[int | str] = [*(options.get("spatial") or ("z", "y", "x"))]
    lot = options.get("batch") or "n"
    dtype = np.dtype(options.get("dtype", "float32"))
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", kind, [lot, 1, *size])],
        [helper.make_tensor_value_info("logits", kind, [lot, classes, *size])],
        [numpy_helper.from_array(_as(dtype, value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    helper.set_model_props(model, dict(options.get("metadata", {})))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def _as(dtype: np.dtype[Any], value: npt.NDArray[Any] | np.generic) -> npt.NDArray[Any]:
    array = np.asarray(value)
    return array.astype(dtype) if array.dtype == np.float32 else array
