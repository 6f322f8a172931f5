"""Tiny networks and volumes whose right answer is known, for tests that are about the server and not about geometry."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnx
import requests
from numpy.typing import DTypeLike, NDArray
from onnx import TensorProto, helper, numpy_helper

Axes = Sequence[int | str]
Array = NDArray[Any]
Weights = dict[str, NDArray[np.float32]]
DYNAMIC: Axes = ("z", "y", "x")


def save_network(
    path: Path, nodes: list[Any], inputs: dict[str, Axes], output: Axes, *, weights: Weights | None = None
) -> onnx.ModelProto:
    """Write a network of `nodes` whose output is called `logits`."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, list(output))],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return model


def threshold_network(
    path: Path,
    threshold: float = 100.0,
    *,
    patch: Axes = DYNAMIC,
    channels: int = 1,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Make a network whose label is 1 exactly where its (last) input channel is above `threshold`."""
    weight = np.zeros((2, channels, 1, 1, 1), np.float32)
    weight[1, -1] = 1
    weights = {"weight": weight, "bias": np.array([threshold, 0], np.float32)}
    nodes = [helper.make_node("Conv", ["image", "weight", "bias"], ["logits"])]
    model = save_network(path, nodes, {"image": [1, channels, *patch]}, [1, 2, *patch], weights=weights)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path


def flat_network(path: Path) -> Path:
    """Make a network for pictures instead of volumes."""
    shape = [1, 1, 8, 8]
    save_network(path, [helper.make_node("Relu", ["image"], ["logits"])], {"image": shape}, shape)
    return path


def two_input_network(path: Path) -> Path:
    """Make a network that needs two volumes at once."""
    shape = [1, 1, 8, 8, 8]
    nodes = [helper.make_node("Add", ["first", "second"], ["logits"])]
    save_network(path, nodes, {"first": shape, "second": shape}, shape)
    return path


def shrinking_network(path: Path) -> Path:
    """Make a network whose output is smaller than its patch."""
    weight = np.ones((2, 1, 3, 3, 3), np.float32)
    nodes = [helper.make_node("Conv", ["image", "weight"], ["logits"])]
    save_network(path, nodes, {"image": [1, 1, 8, 8, 8]}, [1, 2, 6, 6, 6], weights={"weight": weight})
    return path


def save_volume(
    path: Path, shape: tuple[int, ...] = (12, 10, 9), *, values: int = 200, dtype: DTypeLike = np.int16
) -> Array:
    """Write a volume of random whole numbers below `values` and return its voxels."""
    voxels = np.random.default_rng(0).integers(0, values, shape).astype(dtype)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.5, 2.0, 2.5, 1.0])), path)
    return voxels


def read_labels(content: bytes) -> Array:
    """Return the label map of an answer to `/api/infer`."""
    image = nib.Nifti1Image.from_bytes(gzip.decompress(content))
    assert image.get_data_dtype() == np.uint8
    return np.asarray(image.dataobj)


def assert_labels(answer: requests.Response, expected: Array) -> None:
    """Check that an answer holds exactly these labels."""
    assert answer.status_code == 200, answer.text
    np.testing.assert_array_equal(read_labels(answer.content), expected.astype(np.uint8))


def error_of(answer: requests.Response, status: int, key: str = "error") -> str:
    """Return the sentence of a refusal, after checking its status and its form."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    assert answer.headers["Content-Type"].startswith("application/json")
    body = answer.json()
    assert key == "detail" or set(body) == {"error"}, body
    sentence = body[key]
    assert isinstance(sentence, str)
    assert sentence.strip()
    assert "Traceback" not in sentence
    return sentence
