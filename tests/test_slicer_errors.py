"""What the 3D Slicer door refuses, and how it says so."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import DTypeLike

from tests.fake_house import make_house
from tests.serving import Served, start_server, wait_until
from tests.small_networks import (
    assert_labels,
    error_of,
    flat_network,
    save_volume,
    shrinking_network,
    threshold_network,
    two_input_network,
)

JSON = {"Content-Type": "application/json"}
LOAD_ROUTES = ["/api/models", "/api/model"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("errors")


@pytest.fixture(scope="module")
def good(folder: Path) -> Path:
    return threshold_network(folder / "good.onnx", 100)


@pytest.fixture(scope="module")
def image(folder: Path) -> Path:
    save_volume(folder / "image.nii.gz")
    return folder / "image.nii.gz"


@pytest.fixture(scope="module")
def door(folder: Path, good: Path) -> Iterator[Served]:
    """A server that has one current model, which no refused request may disturb."""
    served = start_server(folder / "state")
    answer = served.post("/api/model", json={"backend_type": "onnx", "model_path": str(good)})
    assert answer.status_code == 200, answer.text
    yield served
    info = served.get("/api/info").json()
    served.stop()
    assert (set(info["models"]), info["model"]["name"]) == ({"good"}, "good")


def still_works(door: Served, folder: Path) -> bool:
    """Tell whether the model that was loaded before is still the current one and still right."""
    voxels = save_volume(folder / "still.nii.gz")
    assert_labels(door.infer(folder / "still.nii.gz"), voxels > 100)
    return bool(door.get("/api/info").json()["model"]["name"] == "good")


def refused_load(door: Served, model: Path | str, route: str = "/api/models", **more: object) -> str:
    body = {"name": "refused", "backend_type": "onnx", "model_path": str(model), **more}
    if route == "/api/model":
        del body["name"]
    return error_of(door.post(route, json=body), 400)


LOAD_REFUSALS = [
    ("/api/model", {}, "Backend type is required"),
    ("/api/model", {"model_path": "/nowhere/net.onnx"}, "Backend type is required"),
    ("/api/model", {"backend_type": ""}, "Backend type is required"),
    ("/api/model", {"backend_type": "onnx"}, "Model path is required"),
    ("/api/model", {"backend_type": "onnx", "model_path": ""}, "Model path is required"),
    ("/api/model", {"backend_type": "onnx", "model_path": None}, "Model path is required"),
    (
        "/api/model",
        {"backend_type": "onnx", "model_path": "/nowhere/net.onnx"},
        "Model file not found: /nowhere/net.onnx",
    ),
    ("/api/models", {}, "Model name is required"),
    ("/api/models", {"name": "", "backend_type": "onnx"}, "Model name is required"),
    ("/api/models", {"name": None, "backend_type": "onnx"}, "Model name is required"),
    ("/api/models", {"name": "n"}, "Backend type is required"),
    ("/api/models", {"name": "n", "backend_type": "onnx"}, "Model file not found: None"),
    (
        "/api/models",
        {"name": "n", "backend_type": "onnx", "model_path": "/nowhere/net.onnx"},
        "Model file not found: /nowhere/net.onnx",
    ),
]


@pytest.mark.parametrize(("route", "body", "sentence"), LOAD_REFUSALS)
def test_load_refusals_have_the_published_texts(door: Served, route: str, body: dict[str, Any], sentence: str) -> None:
    assert error_of(door.post(route, json=body), 400).startswith(sentence)


@pytest.mark.parametrize("body", ["", "{", "{'backend_type': 'onnx'}", "\x00\xff"])
def test_malformed_json_reads_as_an_empty_body(door: Served, body: str) -> None:
    sentence = error_of(door.post("/api/model", data=body.encode("latin-1"), headers=JSON), 400)
    assert "Backend type is required" in sentence
    error_of(door.post("/api/models", data=body.encode("latin-1"), headers=JSON), 400)


@pytest.mark.parametrize("route", LOAD_ROUTES)
@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_load_body_must_be_sent_as_json(door: Served, route: str, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    answer = door.post(route, data=b'{"backend_type": "onnx"}', headers=headers)
    assert error_of(answer, 400).startswith("Content-Type must be application/json")


@pytest.mark.parametrize("route", LOAD_ROUTES)
@pytest.mark.parametrize("body", [[], [1, 2], "onnx", 7, None, True])
def test_load_body_must_be_an_object(door: Served, route: str, body: object) -> None:
    error_of(door.post(route, data=json.dumps(body), headers=JSON), 400)


@pytest.mark.parametrize(
    "wrong",
    [
        {"backend_type": 5},
        {"backend_type": "tf"},
        {"backend_type": ["onnx"]},
        {"model_path": 5},
        {"model_path": {"a": 1}},
        {"model_path": "/nowhere\x00/net.onnx"},
        {"inference_config": []},
        {"inference_config": "fp16"},
        {"inference_config": {"patch_size": "large"}},
        {"inference_config": {"patch_size": [8, 8]}},
        {"inference_config": {"patch_size": [8, 8, 8, 8]}},
        {"inference_config": {"patch_size": [8, 0, 8]}},
        {"inference_config": {"patch_size": -8}},
        {"inference_config": {"patch_size": [8, 8, 8.5]}},
        {"inference_config": {"patch_stride": 0}},
        {"inference_config": {"patch_stride": [4, None, 4]}},
        {"inference_config": {"fp16": "perhaps"}},
        {"inference_config": {"engine": "steam"}},
        {"inference_config": {"forward_batch_windows": "many"}},
        {"inference_config": {"forward_batch_windows": 0}},
        {"window_level": "bright"},
        {"window_width": 0},
        {"window_width": -400},
        {"window_width": [400]},
        {"orientation": "XYZ"},
        {"orientation": "LRP"},
        {"orientation": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("route", LOAD_ROUTES)
def test_wrong_values_in_a_load_body_are_400(door: Served, good: Path, route: str, wrong: dict[str, Any]) -> None:
    body = {"backend_type": "onnx", "model_path": str(good), **wrong}
    error_of(door.post(route, json={"name": "refused", **body} if route == "/api/models" else body), 400)


def test_name_must_be_text(door: Served, good: Path) -> None:
    error_of(door.post("/api/models", json={"name": 5, "backend_type": "onnx", "model_path": str(good)}), 400)


def test_unknown_keys_are_named(door: Served, good: Path) -> None:
    sentence = refused_load(door, good, patchsize=3, colour="red")
    assert "patchsize" in sentence
    assert "colour" in sentence
    assert "overlap" in refused_load(door, good, inference_config={"fp16": True, "overlap": 0.5})


def test_address_cannot_forge_a_line_of_the_log(server: Served) -> None:
    server.get("/api/nothing%0AFORGED", headers={"X-Request-ID": "forger"})
    wait_until(lambda: "forger" in server.log.read_text(), 10, "the request is not in the log")
    assert not [line for line in server.log.read_text().splitlines() if line.startswith("FORGED")]


def test_name_with_a_line_break_is_refused_or_harmless(door: Served, good: Path) -> None:
    body = {"name": "x\nFORGED", "backend_type": "onnx", "model_path": str(good)}
    loaded = door.post("/api/models", json=body).status_code
    unloaded = door.delete("/api/models/x%0AFORGED").status_code
    assert not [line for line in door.log.read_text().splitlines() if line.startswith("FORGED")]
    assert (loaded, unloaded) in {(200, 200), (400, 404)}


def two_channel_network(path: Path) -> Path:
    return threshold_network(path, channels=2, patch=(8, 8, 8))


NETWORKS = [
    pytest.param("/api/models", flat_network, ["1, 1, 8, 8", "Z, Y, X|5D"], id="not 5D"),
    pytest.param("/api/model", two_input_network, ["first", "second"], id="two inputs"),
    pytest.param("/api/models", two_channel_network, ["1, 2, 8, 8, 8", "1, Z, Y, X|1 channel"], id="two channels"),
    pytest.param("/api/model", shrinking_network, ["1, 2, 6, 6, 6", "8, 8, 8"], id="smaller output"),
]


@pytest.mark.parametrize(("route", "make", "found_and_expected"), NETWORKS)
def test_unfit_network_is_refused_with_what_was_found(
    door: Served, tmp_path: Path, route: str, make: Callable[[Path], Path], found_and_expected: list[str]
) -> None:
    sentence = refused_load(door, make(tmp_path / "unfit.onnx"), route)
    assert all(re.search(words, sentence) for words in found_and_expected), sentence
    assert still_works(door, tmp_path)


@pytest.mark.parametrize(
    ("route", "content"),
    [("/api/model", b""), ("/api/models", b"just some words\n"), ("/api/model", b"\x08\x07" + bytes(range(256)) * 8)],
)
def test_file_that_is_no_network_is_refused(door: Served, tmp_path: Path, route: str, content: bytes) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    refused_load(door, tmp_path / "net.onnx", route)
    assert still_works(door, tmp_path)


def test_truncated_network_and_a_folder_are_refused(door: Served, good: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes(good.read_bytes()[:-40])
    refused_load(door, tmp_path / "cut.onnx", "/api/model")
    refused_load(door, tmp_path, "/api/model")
    assert still_works(door, tmp_path)


def test_mmengine_needs_its_config(door: Served, good: Path) -> None:
    model = {"backend_type": "mmengine", "model_path": str(good)}
    for route, more in [("/api/model", {}), ("/api/models", {"name": "n"})]:
        answer = door.post(route, json={**model, **more})
        assert error_of(answer, 400).startswith("Config file required for MMEngine: None")
        answer = door.post(route, json={**model, **more, "config_path": "/nowhere/config.py"})
        assert error_of(answer, 400).startswith("Config file required for MMEngine: /nowhere/config.py")


def test_kinds_whose_extra_is_missing_are_501(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = make_house(tmp_path)
    config = tmp_path / "config.py"
    config.write_text("model = dict()\n")
    find = importlib.util.find_spec
    absent = {"torch", "mmengine", "itkit"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else find(name))

    async def story() -> None:
        async with house.client() as client:
            body = {"model_path": str(house.path), "config_path": str(config)}
            for kind, extra in (("MMEngine", "mmengine"), ("TorchScript", "torch"), ("PT2", "torch")):
                answer = await client.post("/api/model", json={**body, "backend_type": kind})
                assert answer.status_code == 501, answer.text
                assert f"segserve[{extra}]" in answer.json()["error"]
            answer = await client.post("/api/model", json={**body, "backend_type": "caffe"})
            assert answer.status_code == 400
            assert answer.json()["error"].endswith("Known: onnx, mmengine, torchscript, pt2.")
            assert (await client.post("/api/model", json={**body, "backend_type": "ONNX"})).status_code == 200

    asyncio.run(story())


def test_infer_refusals_have_the_published_texts(door: Served, image: Path) -> None:
    assert error_of(door.post("/api/infer", data={"force_cpu": "false"}), 400).startswith("No image file uploaded")
    assert error_of(door.post("/api/infer"), 400).startswith("No image file uploaded")
    assert error_of(door.infer(image, model_name="nobody"), 404).startswith("Model not loaded: nobody")


def test_empty_server_says_that_nothing_is_loaded(own_server: Served, image: Path) -> None:
    assert error_of(own_server.infer(image), 400).startswith("No model loaded")
    assert error_of(own_server.delete("/api/model"), 404).startswith("No model loaded")
    assert error_of(own_server.delete("/api/models/a b"), 404).startswith("Model not found: a b")


@pytest.mark.parametrize(
    "window",
    [
        {"window_level": "50"},
        {"window_width": "400"},
        {"window_level": "nan", "window_width": "400"},
        {"window_level": "50", "window_width": "nan"},
        {"window_level": "50", "window_width": "0"},
        {"window_level": "50", "window_width": "-400"},
        {"window_level": "bright", "window_width": "400"},
        {"window_level": "50", "window_width": "1,5"},
    ],
    ids=str,
)
def test_bad_windows_are_400(door: Served, image: Path, window: dict[str, str]) -> None:
    assert "window" in error_of(door.infer(image, **window), 400)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b" + b"\x00" * 400, b"\x5c\x01\x00\x00" + b"\xff" * 800])
def test_unreadable_volume_is_400(door: Served, content: bytes) -> None:
    error_of(door.post("/api/infer", files={"image": ("tmpabcd.nii.gz", content)}), 400)


@pytest.mark.parametrize("shape", [(4, 4, 4, 2), (4, 4, 4, 1, 3)])
def test_several_volumes_in_one_file_are_400(door: Served, tmp_path: Path, shape: tuple[int, ...]) -> None:
    save_volume(tmp_path / "series.nii.gz", shape)
    error_of(door.infer(tmp_path / "series.nii.gz"), 400)


def test_truncated_volume_is_400(door: Served, image: Path) -> None:
    error_of(door.post("/api/infer", files={"image": ("tmpabcd.nii.gz", image.read_bytes()[:-200])}), 400)


@pytest.mark.parametrize(
    ("method", "path", "status", "key"),
    [
        ("GET", "/api/nothing", 404, "error"),
        ("POST", "/api/v1x", 404, "error"),
        ("GET", "/api/models", 405, "error"),
        ("GET", "/api/model", 405, "error"),
        ("GET", "/api/infer", 405, "error"),
        ("DELETE", "/api/info", 405, "error"),
        ("GET", "/api/v1/nothing", 404, "detail"),
        ("DELETE", "/api/v1/health", 405, "detail"),
    ],
)
def test_unknown_routes_and_methods_answer_in_the_dialect(
    server: Served, method: str, path: str, status: int, key: str
) -> None:
    error_of(requests.request(method, server.url + path, timeout=30), status, key)


@pytest.fixture(scope="module")
def limited(folder: Path, good: Path) -> Iterator[Served]:
    """A server whose limits are so far apart that each test's volume is over one of them alone."""
    limits = {"MAX_VOXELS": "1000000", "MAX_DECOMPRESSED": "1500kB", "MEMORY_LIMIT": "1MB"}
    env = {f"SEGSERVE_{name}": value for name, value in limits.items()}
    served = start_server(folder / "limited", "--max-upload", "1MB", env=env)
    served.load("good", good, inference_config={"patch_size": 32})
    yield served
    left = list((served.state_dir / "spool").iterdir())
    served.stop()
    assert not left


@pytest.mark.parametrize(
    ("setting", "shape", "dtype"),
    [
        ("max_upload", (99, 99, 99), np.int16),
        ("max_voxels", (101, 101, 101), np.uint8),
        ("max_decompressed", (99, 99, 99), np.int16),
        ("memory_limit", (99, 99, 99), np.uint8),
    ],
)
def test_what_is_over_a_limit_is_413_with_the_numbers(
    limited: Served, tmp_path: Path, setting: str, shape: tuple[int, ...], dtype: DTypeLike
) -> None:
    image = tmp_path / "large.nii.gz"
    # Only noise stays large once it is packed.
    save_volume(image, shape, dtype=dtype, values=200 if setting == "max_upload" else 1)
    sentence = error_of(limited.infer(image), 413)
    assert setting in sentence.lower().replace("-", "_"), sentence
    assert len(re.findall(r"\d[\d,._ ]*", sentence)) >= 2, sentence


def test_upload_without_a_length_meets_the_same_limit(limited: Served) -> None:
    head = b'--B\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    parts = iter([head, *[b"\x00" * 100_000] * 15, b"\r\n--B--\r\n"])
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    assert "max_upload" in error_of(limited.post("/api/infer", data=parts, headers=headers), 413).lower()


def test_small_volume_passes_every_limit(limited: Served, image: Path) -> None:
    voxels = save_volume(image)
    assert_labels(limited.infer(image), voxels > 100)


def assert_refused_with_grace(door: Served, answer: requests.Response, sent: str) -> None:
    """No request, however odd, may show the server's inside."""
    assert answer.status_code < 500 or answer.status_code in {501, 503, 507}, answer.text
    if answer.status_code >= 400:
        sentence = answer.json()["error"]
        for inside in ["Traceback", "site-packages", ".py", str(door.state_dir), str(Path.home())]:
            assert inside not in sentence or inside in sent, sentence


WORDS = st.sampled_from(
    ["onnx", "mmengine", "torchscript", "pt2", "good", "", "/nowhere", "a\x00b", "../x", "x" * 5000, "\ud800", "nan"]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 2**63, 1e308])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=5,
)
INFERENCE_KEYS = ["patch_size", "patch_stride", "fp16", "forward_batch_windows", "engine", "blend", "argmax_batchsize"]
BODY_KEYS = ["name", "window_level", "window_width", "orientation", "labels", "strict", "config_path"]
BODIES = st.fixed_dictionaries(
    {"backend_type": st.just("onnx") | VALUES, "model_path": st.just("/nowhere/net.onnx") | VALUES},
    optional={
        **dict.fromkeys(BODY_KEYS, VALUES),
        "inference_config": st.dictionaries(st.sampled_from(INFERENCE_KEYS), VALUES, max_size=3) | VALUES,
    },
)
FUZZ = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(body=(BODIES | VALUES).map(json.dumps).map(str.encode) | st.binary(max_size=60))
def test_no_load_body_breaks_the_server(door: Served, body: bytes) -> None:
    for route in LOAD_ROUTES:
        assert_refused_with_grace(door, door.post(route, data=body, headers=JSON), body.decode("latin-1"))


@settings(FUZZ, max_examples=8)
@given(inference=st.dictionaries(st.sampled_from(INFERENCE_KEYS), VALUES, min_size=1, max_size=2))
def test_no_inference_config_breaks_a_load(door: Served, good: Path, inference: dict[str, Any]) -> None:
    body = json.dumps({"backend_type": "onnx", "model_path": str(good), "name": "odd", "inference_config": inference})
    assert_refused_with_grace(door, door.post("/api/models", data=body, headers=JSON), body)
    assert door.delete("/api/models/odd").status_code in {200, 404}


@FUZZ
@given(
    fields=st.dictionaries(
        st.sampled_from(["model_name", "force_cpu", "window_level", "window_width", "image", "other"]),
        st.text(st.characters(codec="utf-8"), max_size=10) | st.sampled_from(["good", "nan", "inf", "1e999", "true"]),
        max_size=4,
    ),
    cut=st.integers(0, 700),
    noise=st.binary(max_size=40),
)
def test_no_upload_breaks_the_server(door: Served, image: Path, fields: dict[str, str], cut: int, noise: bytes) -> None:
    content = image.read_bytes()[:cut] + noise
    answer = door.post("/api/infer", data=fields, files={"image": ("tmpabcd.nii.gz", content)})
    assert_refused_with_grace(door, answer, str(fields))


@FUZZ
@given(
    body=st.binary(max_size=200),
    boundary=st.sampled_from(["; boundary=B", "; boundary=", "", "; boundary=" + "B" * 300]),
)
def test_no_garbage_in_place_of_a_form_breaks_the_server(door: Served, body: bytes, boundary: str) -> None:
    for content in [body, b"--B\r\n" + body + b"\r\n--B--\r\n"]:
        answer = door.post("/api/infer", data=content, headers={"Content-Type": "multipart/form-data" + boundary})
        assert_refused_with_grace(door, answer, body.decode("latin-1"))
