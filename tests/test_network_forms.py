"""Every form an ONNX network comes in, over HTTP, against ONNX Runtime run directly."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from tests import networks, oracle, volumes
from tests.volumes import Header, affine_of

if TYPE_CHECKING:
    from tests.serving import Served

Array = oracle.Array
PATCH = (12, 16, 20)
SHAPE = (30, 26, 37)
NEAR_TIE = 1e-3
ENGINES = ["openvino", "onnxruntime", "auto"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    voxels = np.random.default_rng(7).normal(0, 1, SHAPE).astype(np.float32)
    return volumes.write(tmp_path / "image.nii", voxels, Header(sform=affine_of("RAS")))


@pytest.fixture
def asked(server: Served, image: Path) -> Iterator[Callable[..., tuple[Array, dict[str, Any]]]]:
    """Load a network, send the image, and give the labels and what MODEL says."""

    def ask(path: Path, config: dict[str, Any] | None = None, **body: Any) -> tuple[Array, dict[str, Any]]:
        model = server.load("form", path, inference_config=config or {}, **body)
        answer = server.infer(image, model_name="form")
        assert answer.status_code == 200, answer.text
        return volumes.labels_of(answer.content), model

    yield ask
    server.delete("/api/models/form")


def assert_same(labels: Array, image: Path, forward: oracle.Forward, near: float = NEAR_TIE, **how: Any) -> None:
    """Labels are those of ONNX Runtime wherever the two best classes are not all but equal."""
    clear = oracle.segment(image, forward, PATCH, decide=oracle.margin, **how) > near
    assert np.count_nonzero(~clear) < 0.01 * clear.size, "too many near-ties to tell anything"
    expected = oracle.segment(image, forward, PATCH, **how)
    assert np.count_nonzero((labels != expected) & clear) == 0
    assert len(np.unique(expected)) > 1


@pytest.mark.parametrize("engine", ENGINES)
def test_a_plain_network_with_every_engine(asked: Callable[..., Any], image: Path, engine: str, tmp_path: Path) -> None:
    path = networks.conv_network(tmp_path / "conv.onnx", 5, seed=3)
    labels, model = asked(path, {"patch_size": PATCH, "engine": engine})
    assert_same(labels, image, oracle.onnx_forward(path))
    assert engine in {model["engine"], "auto"}
    tried = {(one["engine"], one["precision"]) for one in model["engines"]}
    assert tried == {("openvino", "float32"), ("onnxruntime", "float32")} if engine == "auto" else {(engine, "float32")}
    assert all(one["seconds"] > 0 for one in model["engines"] if one["refused"] is None)
    if engine == "auto":
        assert [one["error"] for one in model["engines"]].count(None) == 1  # the reference


@pytest.mark.parametrize("engine", ENGINES)
def test_float16_input(asked: Callable[..., Any], image: Path, engine: str, tmp_path: Path) -> None:
    path = networks.conv_network(tmp_path / "half.onnx", 5, seed=3, dtype="float16")
    labels, _ = asked(path, {"patch_size": PATCH, "engine": engine})
    # Weights and input are rounded to float16; what is between may be computed in more than that.
    assert_same(labels, image, oracle.onnx_forward(path, np.float16), near=0.02)


@pytest.mark.parametrize("batch", [3, 4])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_fixed_batch(asked: Callable[..., Any], image: Path, batch: int, engine: str, tmp_path: Path) -> None:
    path = networks.conv_network(tmp_path / "fixed.onnx", 5, seed=3, batch=batch, spatial=PATCH)
    labels, model = asked(path, {"forward_batch_windows": 2, "engine": engine})
    assert model["batch"] == batch
    assert any("forward_batch_windows 2" in warning for warning in model["warnings"])
    assert_same(labels, image, oracle.onnx_forward(networks.conv_network(tmp_path / "free.onnx", 5, seed=3)))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_free_batch(asked: Callable[..., Any], image: Path, batch: int, tmp_path: Path) -> None:
    path = networks.conv_network(tmp_path / "free.onnx", 5, seed=3)
    labels, model = asked(path, {"patch_size": PATCH, "forward_batch_windows": batch})
    assert model["batch"] == batch
    assert_same(labels, image, oracle.onnx_forward(path))


def test_forward_batch_windows_of_the_metadata(asked: Callable[..., Any], image: Path, tmp_path: Path) -> None:
    config = json.dumps({"patch_size": PATCH, "forward_batch_windows": 4})
    path = networks.conv_network(tmp_path / "free.onnx", 5, seed=3, metadata={"inference_config": config})
    labels, model = asked(path)
    assert model["batch"] == 4
    assert_same(labels, image, oracle.onnx_forward(path))


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_in_another_file(asked: Callable[..., Any], image: Path, engine: str, tmp_path: Path) -> None:
    path = networks.conv_network(tmp_path / "conv.onnx", 5, seed=3)
    forward = oracle.onnx_forward(path)
    split = tmp_path / "split.onnx"
    onnx.save(onnx.load(path), split, save_as_external_data=True, location="split.weights", size_threshold=0)
    assert_same(asked(split, {"patch_size": PATCH, "engine": engine})[0], image, forward)


@pytest.mark.parametrize(
    ("location", "told"),
    [("gone.bin", "not beside it"), ("../outside.bin", "own folder"), ("w" * 300, "not beside it")],
    ids=["gone", "outside", "too long a name"],
)
def test_weights_that_are_not_beside_the_network(server: Served, location: str, told: str, tmp_path: Path) -> None:
    path = networks.conv_network(tmp_path / "conv.onnx", 5)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
    (tmp_path.parent / "outside.bin").write_bytes((tmp_path / "weights.bin").read_bytes())
    body = {"name": "form", "backend_type": "onnx", "model_path": str(path)}
    answer = server.post("/api/models", json=body)
    assert answer.status_code == 400
    assert location in answer.json()["error"]
    assert told in answer.json()["error"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("named", "place"), [(None, 0), ("logits", 0), ("others", 1)])
def test_several_outputs(
    asked: Callable[..., Any], image: Path, named: str | None, place: int, engine: str, tmp_path: Path
) -> None:
    metadata = {"output": named} if named else {}
    path = networks.two_outputs_network(tmp_path / "two.onnx", metadata=metadata)
    labels, model = asked(path, {"patch_size": PATCH, "engine": engine})
    assert model["num_classes"] == 2 + place
    assert_same(labels, image, oracle.onnx_forward(path, output=place))


def test_an_output_that_is_not_there(server: Served, tmp_path: Path) -> None:
    path = networks.two_outputs_network(tmp_path / "two.onnx", metadata={"output": "nowhere"})
    answer = server.post("/api/models", json={"name": "form", "backend_type": "onnx", "model_path": str(path)})
    assert answer.status_code == 400
    assert all(word in answer.json()["error"] for word in ("nowhere", "logits", "others"))


def test_initializers_that_are_also_inputs(asked: Callable[..., Any], image: Path, tmp_path: Path) -> None:
    path = networks.conv_network(tmp_path / "old.onnx", 5, seed=3)
    forward = oracle.onnx_forward(path)
    model = onnx.load(path)
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        for tensor in model.graph.initializer
    )
    onnx.save(model, path)
    for engine in ENGINES:
        assert_same(asked(path, {"patch_size": PATCH, "engine": engine})[0], image, forward)


def test_orientation_and_labels_of_the_metadata(asked: Callable[..., Any], image: Path, tmp_path: Path) -> None:
    metadata = {"orientation": "RAS", "labels": json.dumps({"1": "liver"})}
    path = networks.conv_network(tmp_path / "conv.onnx", 5, seed=3, metadata=metadata)
    labels, model = asked(path, {"patch_size": PATCH})
    assert (model["orientation"], model["labels"]) == ("RAS", {"1": "liver"})
    assert_same(labels, image, oracle.onnx_forward(path), orientation="RAS")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("activation", ["none", "sigmoid"])
def test_one_class(asked: Callable[..., Any], image: Path, activation: str, engine: str, tmp_path: Path) -> None:
    ends_in_one = activation == "none"
    path = networks.binary_network(tmp_path / "one.onnx", 0.3, sigmoid=ends_in_one, metadata={"activation": activation})
    labels, model = asked(path, {"patch_size": PATCH, "engine": engine, "blend": "gaussian"})
    assert model["activation"] == activation
    expected = oracle.without_gaps(volumes.labels_of(image.read_bytes())) > np.float32(0.3)
    assert np.count_nonzero(labels != expected) <= 2  # a sum of weighted sigmoids may round across one half


def test_gaussian_blending(asked: Callable[..., Any], image: Path, tmp_path: Path) -> None:
    path = networks.conv_network(tmp_path / "conv.onnx", 5, seed=3)
    constant, _ = asked(path, {"patch_size": PATCH})
    labels, model = asked(path, {"patch_size": PATCH, "blend": "gaussian"})
    assert model["blend"] == "gaussian"
    assert_same(labels, image, oracle.onnx_forward(path), weights=oracle.gaussian(PATCH))
    assert (labels != constant).any()


@pytest.mark.parametrize("batch", [1, 4])
def test_skipped_windows_change_no_label(server: Served, tmp_path: Path, batch: int) -> None:
    voxels = np.full((48, 40, 44), -1000, np.int16)
    voxels[10:25, 12:30, 8:20] = np.random.default_rng(0).integers(-200, 300, (15, 18, 12))
    path = volumes.write(tmp_path / "air.nii", voxels, Header(sform=affine_of("RAS")))
    network = networks.conv_network(tmp_path / "conv.onnx", 5, seed=3)
    given = {}
    for skip in (True, False):
        config = {"patch_size": 12, "forward_batch_windows": batch, "skip_uniform": skip, "engine": "openvino"}
        model = server.load("form", network, inference_config=config)
        assert model["skip_uniform"] is skip
        answer = server.infer(path, model_name="form", window_level=0, window_width=600)
        assert answer.status_code == 200, answer.text
        given[skip] = (volumes.labels_of(answer.content), int(answer.headers["X-Segserve-Skipped"]))
        patches = int(answer.headers["X-Segserve-Patches"])
    server.delete("/api/models/form")
    np.testing.assert_array_equal(given[True][0], given[False][0])
    assert given[False][1] == 0
    assert patches / 4 < given[True][1] < patches
