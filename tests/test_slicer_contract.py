"""What the 3D Slicer door answers when everything goes well."""

from __future__ import annotations

import gzip
import http.client
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import nibabel as nib
import numpy as np
import pytest
import requests

from tests.serving import Served, start_server, wait_until
from tests.small_networks import Array, assert_labels, error_of, save_volume, threshold_network

SIX_FIELDS = {"backend_type", "config_path", "inference_config", "loaded", "model_path", "name"}
EFFECTIVE_FIELDS = {
    *("patch_size", "patch_stride", "num_classes", "device", "precision", "engine"),
    *("orientation", "warnings", "window_level", "window_width"),
}
GET_ROUTES = ["/api/health", "/api/info", "/api/v1/health", "/api/v1/gpu", "/docs", "/redoc", "/openapi.json"]


@pytest.fixture(scope="module")
def shared_door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = start_server(tmp_path_factory.mktemp("contract") / "state")
    yield served
    served.stop()


@pytest.fixture
def door(shared_door: Served) -> Iterator[Served]:
    """A server with nothing loaded, before the test and after it."""
    yield shared_door
    for name in loaded(shared_door):
        shared_door.delete(f"/api/models/{quote(name, safe='')}")
    assert not loaded(shared_door)


@pytest.fixture
def above_100(tmp_path: Path) -> Path:
    return threshold_network(tmp_path / "above_100.onnx", 100)


@pytest.fixture
def above_50(tmp_path: Path) -> Path:
    return threshold_network(tmp_path / "above_50.onnx", 50)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "tmpk3f9x_2a.nii.gz"


@pytest.fixture
def voxels(image: Path) -> Array:
    return save_volume(image)


@pytest.fixture(scope="module")
def ready(server: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The MODEL entry of a network that is there for every test that only sends volumes."""
    network = threshold_network(tmp_path_factory.mktemp("ready") / "above_100.onnx", 100)
    yield server.load("ready", network, inference_config={"patch_size": [4, 4, 4], "patch_stride": [3, 3, 3]})
    server.delete("/api/models/ready")


def loaded(door: Served) -> set[str]:
    return set(door.get("/api/info").json()["models"])


def current(door: Served) -> str | None:
    model = door.get("/api/info").json()["model"]
    return None if model is None else model["name"]


def load_current(door: Served, model: Path, **inference_config: object) -> dict[str, Any]:
    """Load a network with the body that the published viewer sends."""
    body = {"backend_type": "onnx", "model_path": str(model), "inference_config": inference_config or {"fp16": False}}
    answer = door.post("/api/model", json=body)
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"model", "status"}
    assert answer.json()["status"] == "success"
    entry: dict[str, Any] = answer.json()["model"]
    return entry


def test_health_tells_of_cuda(server: Served) -> None:
    answer = server.get("/api/health").json()
    assert answer["status"] == "ok"
    assert isinstance(answer["cuda_available"], bool)
    assert type(answer["cuda_device_count"]) is int


def test_info_of_an_empty_server_has_both_forms(door: Served) -> None:
    info = door.get("/api/info").json()
    assert info["name"] == "ITKIT Inference Server"
    assert info["version"] == "1.0.0"
    assert info["models"] == {}
    assert info["model"] is None
    assert isinstance(info["cuda_available"], bool)
    assert type(info["device_count"]) is int
    assert set(info["server"]) >= {"name", "version"}


def test_v1_health_is_the_protocols(server: Served) -> None:
    answer = server.get("/api/v1/health").json()
    assert answer["status"] == "healthy"
    assert answer["version"] == "0.1.0"


def test_v1_gpu_has_the_fields_of_both_forms_and_no_null(server: Served) -> None:
    answer = server.get("/api/v1/gpu").json()
    assert set(answer) >= {"available", "name", "memory_mb", "device_type"}
    assert isinstance(answer["available"], bool)
    assert type(answer["memory_mb"]) is int
    assert "null" not in json.dumps(answer)


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_docs_load_every_script_and_style_from_this_server(server: Served, page: str) -> None:
    html = server.get(page).text
    addresses = re.findall(r"""(?:src|href|url)\s*[=(:]\s*["']([^"']+)""", html)
    assert any(".js" in address for address in addresses), html
    for address in addresses:
        whole = urljoin(server.url + page, address)
        assert urlsplit(whole).netloc == urlsplit(server.url).netloc, f"{page} asks for {address}"
        assert requests.get(whole, timeout=30).status_code == 200, address


@pytest.mark.parametrize("route", GET_ROUTES)
def test_get_routes_answer_head(server: Served, route: str) -> None:
    answer = requests.head(server.url + route, timeout=30)
    assert answer.status_code == 200
    assert answer.content == b""


def test_published_call_order_works(door: Served, above_100: Path, image: Path, voxels: Array) -> None:
    assert door.get("/api/info").json()["model"] is None
    load_current(door, above_100, fp16=False)
    model = door.get("/api/info").json()["model"]
    assert (model["loaded"], model["name"], model["backend_type"]) == (True, "above_100", "onnx")
    fields = {"force_cpu": "false", "window_level": "100.0", "window_width": "400.0"}
    answer = door.infer(image, **fields)
    # Windowed values lie in [0, 1], far below the threshold.
    assert_labels(answer, np.zeros_like(voxels))
    assert_labels(door.infer(image, force_cpu="true"), voxels > 100)
    assert door.delete("/api/model").json() == {"status": "success"}
    assert door.get("/api/info").json()["model"] is None


def test_published_upload_works_byte_for_byte(door: Served, tmp_path: Path, image: Path, voxels: Array) -> None:
    load_current(door, threshold_network(tmp_path / "windowed.onnx", 0.5), fp16=False)
    boundary = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
    lines = []
    for name, value in [("force_cpu", "false"), ("window_level", "64.0"), ("window_width", "128.0")]:
        lines += [f"--{boundary}", f'Content-Disposition: form-data; name="{name}"', "", value]
    lines += [f"--{boundary}", f'Content-Disposition: form-data; name="image"; filename="{image.name}"', "", ""]
    body = "\r\n".join(lines).encode() + image.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    port = urlsplit(door.url).port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest("POST", "/api/infer", skip_host=True, skip_accept_encoding=True)
    sent = {"Host": f"localhost:{port}", "User-Agent": "python-requests/2.32.5", "Accept-Encoding": "gzip, deflate"}
    sent |= {"Accept": "*/*", "Connection": "keep-alive", "Content-Length": str(len(body))}
    for name, value in {**sent, "Content-Type": f"multipart/form-data; boundary={boundary}"}.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    assert answer.status == 200, content
    labels = np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(content)).dataobj)
    np.testing.assert_array_equal(labels, voxels > 64)


def test_answer_carries_its_headers(server: Served, ready: dict[str, Any], image: Path, voxels: Array) -> None:
    answer = server.infer(image, model_name="ready")
    assert_labels(answer, voxels > 100)
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert re.fullmatch(r'attachment; filename="?segmentation\.nii\.gz"?', answer.headers["Content-Disposition"])
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    assert answer.headers["X-Request-ID"]
    assert answer.headers["X-Segserve-Engine"] == ready["engine"] in {"openvino", "onnxruntime"}
    assert answer.headers["X-Segserve-Device"] == ready["device"]
    assert answer.headers["X-Segserve-Precision"] == ready["precision"] == "float32"
    per_axis = [max(length - 4 + 3 - 1, 0) // 3 + 1 for length in voxels.shape]
    assert int(answer.headers["X-Segserve-Patches"]) == np.prod(per_axis)
    assert 0 < float(answer.headers["X-Segserve-Seconds"]) < 60
    assert not answer.headers.get("X-Segserve-Warnings")


@pytest.mark.usefixtures("ready")
def test_nan_voxels_are_the_lowest_finite_value_and_a_warning(server: Served, image: Path) -> None:
    voxels = save_volume(image, dtype=np.float32)
    voxels[2, 3, 4], voxels[5, 6, 7] = np.nan, np.inf
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), image)
    answer = server.infer(image, model_name="ready")
    voxels[~np.isfinite(voxels)] = 0
    assert_labels(answer, voxels > 100)
    assert re.search("NaN|finite", answer.headers["X-Segserve-Warnings"], re.IGNORECASE)


@pytest.mark.parametrize("sent", ["scan-7.A_b", "x" * 64])
def test_good_request_id_is_echoed(server: Served, sent: str) -> None:
    assert server.get("/api/health", headers={"X-Request-ID": sent}).headers["X-Request-ID"] == sent


@pytest.mark.parametrize("sent", ["x" * 65, "two words", "a/b", "<script>", ""])
def test_bad_request_id_is_replaced(server: Served, sent: str) -> None:
    given = server.get("/api/health", headers={"X-Request-ID": sent}).headers["X-Request-ID"]
    assert given != sent
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given)


def test_request_id_is_on_errors_and_in_the_log(server: Served) -> None:
    answer = server.post("/api/infer", headers={"X-Request-ID": "find-me-42"})
    assert answer.headers["X-Request-ID"] == "find-me-42"
    error_of(answer, 400)
    wait_until(lambda: "find-me-42" in server.log.read_text(), 10, "the id is not in the log")


@pytest.mark.usefixtures("ready")
def test_request_id_of_the_work_is_in_the_log(server: Served, image: Path) -> None:
    save_volume(image)
    with image.open("rb") as stream:
        form = {"model_name": "ready"}
        answer = server.post("/api/infer", data=form, files={"image": stream}, headers={"X-Request-ID": "find-me-43"})
    assert answer.headers["X-Request-ID"] == "find-me-43"
    wait_until(lambda: "find-me-43" in server.log.read_text(), 10, "the id is not in the log")


def test_model_has_the_six_fields_and_what_is_in_force(door: Served, above_100: Path) -> None:
    sent = {"patch_size": [16, 8, 12], "fp16": False, "forward_device": "cuda", "accumulate_device": "cpu"}
    body = {"name": "n", "backend_type": "ONNX", "model_path": str(above_100), "inference_config": sent}
    answer = door.post("/api/models", json=body).json()
    assert answer["status"] == "success"
    model = answer["model"]
    assert {key: model[key] for key in SIX_FIELDS} == {**body, "config_path": None, "loaded": True}
    assert set(model) >= EFFECTIVE_FIELDS
    assert (model["patch_size"], model["patch_stride"]) == ([16, 8, 12], [8, 4, 6])
    assert (model["num_classes"], model["orientation"], model["device"]) == (2, "LPI", "cpu")
    assert (model["window_level"], model["window_width"]) == (None, None)
    assert isinstance(model["warnings"], list)
    assert door.get("/api/info").json()["models"] == {"n": model}


def test_fp16_on_a_float32_network_is_noted(door: Served, above_100: Path, image: Path, voxels: Array) -> None:
    model = load_current(door, above_100, fp16=True)
    assert model["inference_config"] == {"fp16": True}
    assert model["precision"] == "float32"
    assert any(re.search("fp16|float16", warning) for warning in model["warnings"])
    assert_labels(door.infer(image), voxels > 100)


def test_dynamic_axes_without_a_patch_get_96_with_a_warning(door: Served, above_100: Path) -> None:
    model = load_current(door, above_100, fp16=False)
    assert (model["patch_size"], model["patch_stride"]) == ([96] * 3, [48] * 3)
    assert any("96" in warning for warning in model["warnings"])


def test_stride_above_the_patch_becomes_half_with_a_warning(door: Served, above_100: Path) -> None:
    model = load_current(door, above_100, patch_size=[16, 16, 16], patch_stride=[20, 20, 20])
    assert model["patch_stride"] == [8, 8, 8]
    assert any("stride" in warning for warning in model["warnings"])


def test_patch_against_a_static_shape_is_replaced_with_a_warning(door: Served, tmp_path: Path) -> None:
    network = threshold_network(tmp_path / "static.onnx", patch=(16, 12, 8))
    model = load_current(door, network, patch_size=[24, 24, 24])
    assert (model["patch_size"], model["patch_stride"]) == ([16, 12, 8], [8, 6, 4])
    assert any("patch" in warning and "24" in warning for warning in model["warnings"])


def test_one_integer_is_a_cube_and_nulls_count_as_absent(door: Served, above_100: Path) -> None:
    sent = {"patch_size": 12, "patch_stride": 5, "fp16": None, "engine": None}
    model = door.load("n", above_100, config_path=None, window_level=None, orientation=None, inference_config=sent)
    assert (model["patch_size"], model["patch_stride"]) == ([12] * 3, [5] * 3)
    assert model["inference_config"] == sent


def test_static_network_needs_no_inference_config(door: Served, tmp_path: Path, image: Path, voxels: Array) -> None:
    model = door.load("n", threshold_network(tmp_path / "static.onnx", patch=(8, 8, 8)))
    assert model["inference_config"] == {}
    assert (model["patch_size"], model["patch_stride"], model["warnings"]) == ([8] * 3, [4] * 3, [])
    assert_labels(door.infer(image), voxels > 100)


def test_window_comes_from_the_form_else_the_model(door: Served, tmp_path: Path, image: Path, voxels: Array) -> None:
    metadata = {"window_level": "64", "window_width": "128"}
    model = load_current(door, threshold_network(tmp_path / "windowed.onnx", 0.5, metadata=metadata))
    assert (model["window_level"], model["window_width"]) == (64, 128)
    assert_labels(door.infer(image), voxels > 64)
    assert_labels(door.infer(image, window_level="", window_width=""), voxels > 64)
    assert_labels(door.infer(image, window_level="96.0"), voxels > 96)
    assert_labels(door.infer(image, window_level="0", window_width="2"), voxels > 0)


def test_window_may_stand_in_the_load_body(door: Served, tmp_path: Path, image: Path, voxels: Array) -> None:
    network = threshold_network(tmp_path / "windowed.onnx", 0.5)
    model = door.load("n", network, window_level=32, window_width=64)
    assert (model["window_level"], model["window_width"]) == (32, 64)
    assert_labels(door.infer(image), voxels > 32)


@pytest.mark.usefixtures("ready")
def test_content_and_not_the_name_says_what_an_upload_is(server: Served, image: Path, voxels: Array) -> None:
    packed = image.read_bytes()
    contents = [packed, gzip.decompress(packed)]
    for filename, content in itertools.product(["scan.nii", "scan.nii.gz", "tmpabcd", "scan.dat"], contents):
        answer = server.post("/api/infer", data={"model_name": "ready"}, files={"image": (filename, content)})
        assert_labels(answer, voxels > 100)


@pytest.mark.parametrize("name", ["Größe 模型", "site/my brain/v2", "100%?#&", "肝\u3000脏", "-brain", "--debug", "-h"])
def test_any_name_can_be_loaded_used_and_unloaded(
    door: Served, above_100: Path, image: Path, voxels: Array, name: str
) -> None:
    assert door.load(name, above_100)["name"] == name
    assert_labels(door.infer(image, model_name=name), voxels > 100)
    # The published client does not quote; a name with a question mark could not reach us so.
    answer = door.delete(f"/api/models/{quote(name, safe='') if '?' in name else name}")
    assert answer.json() == {"status": "success", "message": f"Model {name} unloaded"}
    assert loaded(door) == set()


def test_quoted_slash_is_part_of_the_name(server: Served) -> None:
    assert error_of(server.delete("/api/models/no%2Fsuch%20model"), 404).startswith("Model not found: no/such model")


def test_same_name_replaces(door: Served, above_100: Path, above_50: Path, image: Path, voxels: Array) -> None:
    door.load("n", above_100)
    door.load("n", above_50)
    assert loaded(door) == {"n"}
    assert_labels(door.infer(image, model_name="n"), voxels > 50)


def test_only_model_is_what_model_shows_and_delete_ends(door: Served, above_100: Path) -> None:
    door.load("only", above_100)
    assert current(door) == "only"
    assert door.delete("/api/model").status_code == 200
    assert loaded(door) == set()


def test_several_models_and_none_current_must_be_named(
    door: Served, above_100: Path, above_50: Path, image: Path, voxels: Array
) -> None:
    door.load("first", above_100)
    door.load("second", above_50)
    assert current(door) is None
    sentence = error_of(door.infer(image), 400)
    assert "first" in sentence
    assert "second" in sentence
    error_of(door.delete("/api/model"), 404)
    assert loaded(door) == {"first", "second"}
    # The name counts wherever it stands in the form.
    parts = [("image", (image.name, image.read_bytes())), ("model_name", (None, "second"))]
    assert_labels(door.post("/api/infer", files=[*parts, ("force_cpu", (None, "false"))]), voxels > 50)


def test_current_model_changes_only_through_its_own_route(
    door: Served, above_100: Path, above_50: Path, image: Path, voxels: Array
) -> None:
    door.load("named", above_100)
    load_current(door, above_50)
    assert current(door) == "above_50"
    door.load("other", above_100)
    assert current(door) == "above_50"
    assert_labels(door.infer(image), voxels > 50)
    assert_labels(door.infer(image, model_name="named"), voxels > 100)
    load_current(door, above_100)
    assert loaded(door) == {"named", "other", "above_100"}
    assert_labels(door.infer(image), voxels > 100)
    assert door.delete("/api/model").status_code == 200
    assert loaded(door) == {"named", "other"}
    assert current(door) is None


def test_current_model_may_be_loaded_again(door: Served, tmp_path: Path, image: Path, voxels: Array) -> None:
    load_current(door, threshold_network(tmp_path / "net.onnx", 100))
    load_current(door, threshold_network(tmp_path / "net.onnx", 50))
    assert loaded(door) == {"net"}
    assert_labels(door.infer(image), voxels > 50)


def test_a_server_url_that_ends_in_a_slash_works(door: Served) -> None:
    assert requests.get(door.url + "//api/info", timeout=60).json()["name"] == "ITKIT Inference Server"
    assert requests.post(door.url + "//api/model", json={}, timeout=60).status_code == 400
