"""ONNX networks for tiles that claim, point or nest where they should not."""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import TensorProto, helper


def network(*, dims: tuple[int, ...] = (3, 3, 1, 1), outside: str = "", depth: int = 0) -> bytes:
    """A classifier whose weights claim some shape, lie in another file, or whose graph nests."""
    weight = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=dims, raw_data=bytes(36))
    if outside:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=outside)
        weight.external_data.add(key="length", value=str(2**40))
    nodes = [helper.make_node("Conv", ["input", "weight"], ["output"])]
    axes = ["n", 3, "h", "w"]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name in ("input", "output")]
    graph = helper.make_graph(nodes, "bomb", ends[:1], ends[1:], [weight])
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    return bytes(content) + nested(depth)


def nested(depth: int) -> bytes:
    """A graph within a node's attribute within a graph, by hand: protobuf's own writer takes no such depth."""
    inner = b""
    for _ in range(depth):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            inner = tag + varint(len(inner)) + inner
    return b"\x3a" + varint(len(inner)) + inner if depth else b""


def varint(value: int) -> bytes:
    low = value & 0x7F
    return bytes([low | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([low])


def made_of(shape: tuple[int, ...]) -> bytes:
    """A network that makes a tensor of this shape out of nothing."""
    size = helper.make_tensor("size", TensorProto.INT64, [len(shape)], shape)
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("ReduceMax", ["zeros"], ["most"], keepdims=0),
        helper.make_node("Add", ["input", "most"], ["output"]),
    ]
    axes = ["n", 3, "h", "w"]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name in ("input", "output")]
    graph = helper.make_graph(nodes, "bomb", ends[:1], ends[1:], [size])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


NETWORKS: dict[str, Callable[[], bytes]] = {
    "weights of 2^40": lambda: network(dims=(2**20, 2**20, 1, 1)),
    "weights beyond counting": lambda: network(dims=(2**62, 2**62, 1, 1)),
    "weights of negative size": lambda: network(dims=(-3, 3, 1, 1)),
    "weights above the folder": lambda: network(outside="../../../../etc/passwd"),
    "weights at the root": lambda: network(outside="/dev/zero"),
    "graphs in graphs": lambda: network(depth=20_000),
    "a tensor of 2^40 from nothing": lambda: made_of((2**20, 2**20)),
}
