"""The QuPath door's models: listed, told of, uploaded and deleted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
import requests
from onnx import TensorProto, helper, numpy_helper

from tests.classifier_client import ClassifierClient, Json, get_string
from tests.serving import Served, start_server, wait_until
from tests.tile_client import TileClient, form_request, json_request, picture, png_url

TRAVERSALS = ["../../../evil.onnx", "/tmp/evil.onnx", "..\\..\\evil.onnx", "C:\\evil.onnx", "CON.onnx", ".onnx"]


def pixel_network(path: Path, *, rank: int = 4, classes: int = 2) -> Path:
    """A network (N, 3, H, W) -> (N, classes, H, W) of one convolution of 1 x 1."""
    axes = ["n", 3, "h", "w", "d"][:rank]
    weight = np.ones((classes, 3, *[1] * (rank - 2)), np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["input", "weight"], ["output"])],
        "pixels",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [axes[0], classes, *axes[2:]])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def old_model(home: Path, name: str) -> Path:
    """A model of the published server, where that one keeps them."""
    folder = home / ".dlclassifier" / "models" / name
    folder.mkdir(parents=True)
    pixel_network(folder / "model.onnx")
    metadata = {
        "id": name,
        "name": "UNET Classifier",
        "architecture": {"type": "unet", "backbone": "resnet34"},
        "input_config": {"num_channels": 3.0},
        "classes": [{"index": 0, "name": "A"}, {"index": 1, "name": "B"}],
    }
    (folder / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    old_model(folder, "unet_20250101_120000")
    broken = folder / ".dlclassifier" / "models" / "broken"
    broken.mkdir()
    (broken / "metadata.json").write_text('{"id": ', encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def door(home: Path) -> Iterator[Served]:
    served = start_server(home / "state", env={"HOME": str(home), "USERPROFILE": str(home)})
    yield served
    served.stop()


@pytest.fixture
def client(door: Served) -> ClassifierClient:
    return ClassifierClient(door.url)


def models(client: ClassifierClient) -> dict[str, Json]:
    listed = client.read("GET", "/models")["models"]
    for model in listed:
        assert all(get_string(model, key) for key in ("id", "name", "type", "path"))
    return {model["id"]: model for model in listed}


def upload(door: Served, name: str, content: bytes) -> requests.Response:
    return door.post("/api/v1/models/upload", files={"file": (name, content)})


def hang_up_after_upload(door: Served, name: str, content: bytes) -> None:
    """Send an upload whole, and go away before the answer once the server has all of it."""
    with door.dial() as connection:
        connection.sendall(b"".join(form_request(door.url, "/api/v1/models/upload", {"file": (name, content)})))
        wait_until(lambda: len(whole_uploads(door, content)) == 2, 20)


def whole_uploads(door: Served, content: bytes) -> list[Path]:
    return [path for path in door.spool_files() if path.stat().st_size == len(content)]


def files_below(folder: Path) -> set[Path]:
    """Every file but the server's own notes."""
    own = {".log", ".sqlite", ".sqlite-wal", ".sqlite-shm"}
    paths = {path for path in folder.rglob("*") if path.is_file() and path.suffix not in own}
    return {path for path in paths if not {"spool", "cache", ".cache", "intel", ".config"} & set(path.parts)}


def test_the_published_servers_models_are_listed(client: ClassifierClient, home: Path) -> None:
    name = "unet_20250101_120000"
    assert models(client)[name] == {
        "id": name,
        "name": "UNET Classifier",
        "type": "unet",
        "path": str(home / ".dlclassifier" / "models" / name),
    }
    assert client.read("GET", f"/models/{name}")["metadata"]["input_config"] == {"num_channels": 3.0}


def test_the_published_servers_models_are_never_deleted(client: ClassifierClient, home: Path) -> None:
    name = "unet_20250101_120000"
    answer = client.call("DELETE", f"/models/{name}")
    assert answer.status_code == 403, answer.text
    assert isinstance(answer.json()["detail"], str)
    assert (home / ".dlclassifier" / "models" / name / "model.onnx").exists()
    assert name in models(client)


def test_an_upload_is_listed_told_of_and_deleted(door: Served, client: ClassifierClient, tmp_path: Path) -> None:
    content = pixel_network(tmp_path / "any.onnx").read_bytes()
    answer = upload(door, "My network.onnx", content)
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "success"
    name = answer.json()["model_id"]
    assert re.fullmatch("[0-9a-f]{8}", name)
    listed = models(client)[name]
    assert listed["type"] == "custom_onnx"
    assert (Path(listed["path"]) / "model.onnx").read_bytes() == content
    metadata = client.read("GET", f"/models/{name}")["metadata"]
    assert (metadata["id"], metadata["architecture"]["type"], metadata["source"]) == (name, "custom_onnx", "uploaded")
    tiles = TileClient(door.url)
    request = json_request(name, {"t": png_url(picture())})
    assert tiles.post_json("", request).status_code == 200
    assert client.read("DELETE", f"/models/{name}") == {"status": "deleted", "model_id": name}
    assert tiles.post_json("", request).status_code == 404
    assert not Path(listed["path"]).exists()
    assert name not in models(client)
    assert client.call("GET", f"/models/{name}").status_code == 404


def test_two_uploads_of_one_file_are_two_models(door: Served, client: ClassifierClient, tmp_path: Path) -> None:
    content = pixel_network(tmp_path / "any.onnx").read_bytes()
    names = {upload(door, "any.onnx", content).json()["model_id"] for _ in range(2)}
    assert len(names) == 2
    assert names <= set(models(client))


@pytest.mark.parametrize("verb", ["GET", "DELETE"])
def test_a_model_that_is_not_there_is_404(client: ClassifierClient, verb: str) -> None:
    answer = client.call(verb, "/models/nothing")
    assert answer.status_code == 404
    assert answer.json()["detail"] == "Model nothing not found"


@pytest.mark.parametrize("name", ["..", "../jobs", "..%2Fjobs", "%2e%2e", "..%5cjobs", "."])
def test_deleting_by_a_path_deletes_nothing(door: Served, name: str) -> None:
    before = files_below(door.state_dir)
    request = requests.Request("DELETE", f"{door.url}/api/v1/models/x").prepare()
    request.url = f"{door.url}/api/v1/models/{name}"
    with requests.Session() as session:
        assert session.send(request, timeout=30).status_code in {403, 404, 405}
    assert files_below(door.state_dir) == before


@pytest.mark.parametrize("name", ["network.pt", "network", "network.onnx.txt"])
def test_only_onnx_files_are_taken(door: Served, client: ClassifierClient, tmp_path: Path, name: str) -> None:
    before = models(client)
    answer = upload(door, name, pixel_network(tmp_path / "any.onnx").read_bytes())
    assert answer.status_code == 400
    assert "ONNX" in answer.json()["detail"]
    assert models(client) == before


@pytest.mark.parametrize("name", TRAVERSALS)
def test_a_file_name_leads_nowhere(door: Served, home: Path, tmp_path: Path, name: str) -> None:
    before = files_below(home)
    answer = upload(door, name, pixel_network(tmp_path / "any.onnx").read_bytes())
    assert answer.status_code in {200, 400}, answer.text
    new = files_below(home) - before
    inside = door.state_dir / "models"
    assert all(path.is_relative_to(inside) and len(path.relative_to(inside).parts) == 2 for path in new), new
    assert not Path("/tmp/evil.onnx").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\x0a\x12" + bytes(400)], ids=["empty", "text", "proto"])
def test_what_is_no_network_is_400_and_leaves_nothing(
    door: Served, client: ClassifierClient, home: Path, content: bytes
) -> None:
    before, files = models(client), files_below(home)
    answer = upload(door, "network.onnx", content)
    assert answer.status_code == 400, answer.text
    assert isinstance(answer.json()["detail"], str)
    assert models(client) == before
    assert files_below(home) == files


def test_a_cut_file_is_400(door: Served, tmp_path: Path) -> None:
    content = pixel_network(tmp_path / "any.onnx").read_bytes()
    assert upload(door, "cut.onnx", content[: len(content) // 2]).status_code == 400


def test_a_network_whose_weights_have_too_long_a_name_is_400(door: Served, tmp_path: Path) -> None:
    path = pixel_network(tmp_path / "any.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    network = onnx.load(path, load_external_data=False)
    for entry in (entry for tensor in network.graph.initializer for entry in tensor.external_data):
        entry.value = "w" * 300 if entry.key == "location" else entry.value
    answer = upload(door, "split.onnx", network.SerializeToString())
    assert answer.status_code == 400, answer.text
    assert "which is not beside it" in answer.json()["detail"]


def test_a_network_for_volumes_is_400_with_its_shape(door: Served, tmp_path: Path) -> None:
    answer = upload(door, "volumes.onnx", pixel_network(tmp_path / "any.onnx", rank=5).read_bytes())
    assert answer.status_code == 400, answer.text
    assert "(N, C, H, W)" in answer.json()["detail"]


def test_an_upload_without_its_part_is_422(door: Served) -> None:
    answer = door.post("/api/v1/models/upload", files={"other": ("network.onnx", b"x")})
    assert answer.status_code == 422, answer.text
    assert isinstance(answer.json()["detail"], str)
    assert "file" in answer.json()["detail"]


def test_a_restart_lists_the_same_models(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    first = start_server(tmp_path / "state", env=env)
    try:
        name = upload(first, "any.onnx", pixel_network(tmp_path / "any.onnx").read_bytes()).json()["model_id"]
        before = models(ClassifierClient(first.url))
        first.stop()
    finally:
        first.kill()
    second = start_server(tmp_path / "state", env=env)
    try:
        after = models(ClassifierClient(second.url))
    finally:
        second.stop()
    assert name in after
    assert after == before


def test_who_hangs_up_while_another_upload_is_looked_at_leaves_nothing(door: Served, tmp_path: Path) -> None:
    content = pixel_network(tmp_path / "any.onnx").read_bytes()
    assert upload(door, "first.onnx", content).status_code == 200  # the process is up
    before = set(models(ClassifierClient(door.url)))
    (pid,) = door.pids_of("inspector")
    process = psutil.Process(pid)
    process.suspend()
    try:
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(upload, door, "held.onnx", content)
            wait_until(lambda: len(whole_uploads(door, content)) == 1, 20)
            hang_up_after_upload(door, "left.onnx", content)
            wait_until(lambda: len(whole_uploads(door, content)) == 1, 20)
            process.resume()
            assert held.result().status_code == 200
    finally:
        process.resume()
    assert len(set(models(ClassifierClient(door.url))) - before) == 1
