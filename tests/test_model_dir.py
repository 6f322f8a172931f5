"""Model folders: their models are offered, loaded in the background or on demand, and followed as the files change."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.serving import Served, start_server, wait_until
from tests.small_networks import Array, assert_labels, error_of, save_volume, threshold_network

NOTICE_SECONDS = 30.0
SIX = ("name", "backend_type", "model_path", "config_path", "inference_config", "loaded")
Model = dict[str, Any]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images") / "image.nii.gz"


@pytest.fixture(scope="module")
def voxels(image: Path) -> Array:
    return save_volume(image)


@contextmanager
def serving(tmp_path: Path, *flags: str) -> Iterator[Served]:
    served = start_server(tmp_path / "state", "--model-dir", str(tmp_path / "models"), *flags)
    try:
        yield served
    finally:
        served.stop()


def models_of(served: Served) -> dict[str, Model]:
    found: dict[str, Model] = served.get("/api/info").json()["models"]
    return found


def wait_for(served: Served, condition: Callable[[dict[str, Model]], object]) -> dict[str, Model]:
    """Wait until the listed models are as they should be, and return them."""
    wait_until(lambda: condition(models_of(served)), NOTICE_SECONDS, f"never so: {models_of(served)}")
    return models_of(served)


def loaded(*names: str) -> Callable[[dict[str, Model]], bool]:
    return lambda models: all(models.get(name, {}).get("loaded") for name in names)


def replace_whole(path: Path, threshold: float, scratch: Path) -> None:
    """A new network in place of the old, as a careful user puts it there."""
    threshold_network(scratch / "new.onnx", threshold).replace(path)


def look(served: Served, image: Path) -> None:
    """Have the server look at its folders at once: it does so for every name that it does not know."""
    assert error_of(served.infer(image, model_name="nobody's"), 404).startswith("Model not loaded: nobody's")


def test_models_are_loaded_in_the_background_and_a_failure_stops_nothing(
    tmp_path: Path, image: Path, voxels: Array
) -> None:
    folder = tmp_path / "models"
    (folder / "lung").mkdir(parents=True)
    threshold_network(folder / "liver.onnx", 50)
    threshold_network(folder / "lung" / "net.onnx", 0.5)
    card = {"name": "Lung CT", "window_level": 100, "window_width": 200, "inference_config": {"patch_size": 8}}
    (folder / "lung" / "model.json").write_text(json.dumps(card))
    (folder / "broken.onnx").write_text("just some words")
    (folder / "wrong.onnx").write_text("not even looked at")
    (folder / "wrong.json").write_text('{"windowlevel": 3}')
    with serving(tmp_path) as served:
        assert list(models_of(served)) == ["broken", "liver", "Lung CT", "wrong"]
        models = wait_for(served, lambda found: loaded("liver", "Lung CT")(found) and "error" in found["broken"])
        assert served.get("/api/info").json()["model"] is None
        assert models["Lung CT"].items() >= {"window_level": 100, "patch_size": [8, 8, 8]}.items()
        assert models["Lung CT"]["model_path"] == str(Path("lung/net.onnx"))
        for name, word in (("broken", "ONNX"), ("wrong", "windowlevel")):
            assert models[name]["loaded"] is False
            assert word in models[name]["error"]
            assert str(tmp_path) not in json.dumps(models[name])
            assert models[name]["error"] in served.log.read_text()
            assert models[name]["error"] == error_of(served.infer(image, model_name=name), 400)
        assert_labels(served.infer(image, model_name="liver"), voxels > 50)
        assert_labels(served.infer(image, model_name="Lung CT"), voxels > 100)
        assert error_of(served.infer(image), 400).startswith("Several models are loaded")


@pytest.mark.slow
def test_new_changed_and_removed_files_are_noticed(tmp_path: Path, image: Path, voxels: Array) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    with serving(tmp_path) as served:
        assert models_of(served) == {}
        replace_whole(folder / "net.onnx", 50, tmp_path)
        wait_for(served, loaded("net"))
        first = served.pids_of("net")
        replace_whole(folder / "net.onnx", 150, tmp_path)
        wait_until(lambda: served.pids_of("net") not in (first, set()), NOTICE_SECONDS, "the change went unnoticed")
        wait_for(served, lambda models: "loading" not in models["net"])
        assert_labels(served.infer(image, model_name="net"), voxels > 150)
        (tmp_path / "bad.onnx").write_text("no network")
        (tmp_path / "bad.onnx").replace(folder / "net.onnx")
        models = wait_for(served, lambda models: "error" in models["net"])
        assert models["net"]["loaded"] is True
        assert_labels(served.infer(image, model_name="net"), voxels > 150)
        replace_whole(folder / "other.onnx", 20, tmp_path)
        assert_labels(served.infer(image, model_name="other"), voxels > 20)  # at once: an unknown name is looked for
        shutil.rmtree(folder)
        folder.mkdir()
        look(served, image)
        assert set(models_of(served)) == {"net", "other"}
        assert served.delete("/api/models/net").status_code == 200
        assert set(models_of(served)) == {"other"}


def test_not_preloaded_models_are_loaded_by_the_request_that_names_them(
    tmp_path: Path, image: Path, voxels: Array
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    threshold_network(folder / "a.onnx", 50)
    threshold_network(folder / "b.onnx", 100)
    threshold_network(folder / "c.onnx", 150)
    with serving(tmp_path, "--preload", "b, nobody") as served:
        models = wait_for(served, loaded("b"))
        assert {name: model["loaded"] for name, model in models.items()} == {"a": False, "b": True, "c": False}
        assert models["a"] == dict(zip(SIX, ("a", "onnx", "a.onnx", None, {}, False), strict=True))
        assert "nobody" in served.log.read_text()
        assert served.get("/api/info").json()["model"]["name"] == "b"
        assert_labels(served.infer(image, model_name="a"), voxels > 50)
        assert models_of(served)["a"]["loaded"] is True
        assert "No model" not in error_of(served.infer(image), 400)

        replace_whole(folder / "a.onnx", 70, tmp_path)
        look(served, image)
        assert_labels(served.infer(image, model_name="a"), voxels > 70)

        assert served.delete("/api/models/b").status_code == 200
        replace_whole(folder / "b.onnx", 120, tmp_path)
        look(served, image)
        assert models_of(served)["b"] == {**models["a"], "name": "b", "model_path": "b.onnx"}
        assert not served.pids_of("b")
        assert error_of(served.delete("/api/models/b"), 404).startswith("Model not found: b")
        assert_labels(served.infer(image, model_name="b"), voxels > 120)


def test_a_viewer_that_sends_only_paths_may_send_a_name(tmp_path: Path, image: Path, voxels: Array) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    threshold_network(folder / "ct.liver.onnx", 0.5)
    card = {"window_level": 100, "window_width": 200, "inference_config": {"patch_size": 8, "patch_stride": 4}}
    (folder / "ct.liver.json").write_text(json.dumps(card))
    with serving(tmp_path, "--preload", "none") as served:
        body: Model = {"backend_type": "onnx", "model_path": "/data/elsewhere/net.onnx"}
        for route, named in (("/api/models", {"name": "mine"}), ("/api/model", {})):
            sentence = error_of(served.post(route, json={**body, **named}), 400)
            assert sentence.startswith("Model file not found: /data/elsewhere/net.onnx. ")
            assert "ct.liver" in sentence
            assert "model_path" in sentence
            config = {"fp16": False, "patch_stride": 8, "patch_size": None}
            asked = {**body, **named, "model_path": "ct.liver", "inference_config": config}
            answer = served.post(route, json=asked)
            assert answer.status_code == 200, answer.text
            model = answer.json()["model"]
            assert (model["name"], model["model_path"]) == (named.get("name", "ct.liver"), "ct.liver.onnx")
            assert (model["patch_size"], model["patch_stride"]) == ([8, 8, 8], [8, 8, 8])
            assert_labels(served.infer(image), voxels > 100)
        assert served.get("/api/info").json()["model"]["name"] == "ct.liver"
        again = {**body, "model_path": "ct.liver.onnx", "window_level": 50}
        assert served.post("/api/model", json=again).json()["model"]["window_level"] == 50
        whole = {**body, "name": "whole", "model_path": str(folder / "ct.liver.onnx")}
        assert served.post("/api/models", json=whole).json()["model"]["model_path"] == whole["model_path"]


def traced_network(path: Path, threshold: float) -> Path:
    """A TorchScript network that labels what is above a threshold; everybody may write the file."""
    network = torch.nn.Conv3d(1, 2, 1)
    weights = {"weight": torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1, 1), "bias": torch.tensor([threshold, 0.0])}
    network.load_state_dict(weights)
    torch.jit.trace(network.eval(), torch.zeros(1, 1, 8, 8, 8)).save(path)
    path.chmod(0o666)
    return path


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there, the owner counts")
@pytest.mark.filterwarnings("ignore")
def test_code_is_run_from_the_folders_that_were_named(tmp_path: Path, image: Path, voxels: Array) -> None:
    folders = [tmp_path / name for name in ("models", "trusted", "strange")]
    for folder in folders:
        folder.mkdir()
    offered, trusted, strange = (
        traced_network(folder / name, 100) for folder, name in zip(folders, ("a.ts", "b.pt", "c.ts"), strict=True)
    )
    offered.with_suffix(".json").write_text('{"inference_config": {"patch_size": 8}}')
    with serving(tmp_path, "--trust", str(trusted.parent), "--preload", "none") as served:
        assert served.infer(image, model_name="c").status_code == 404
        body = {"backend_type": "TorchScript", "inference_config": {"patch_size": 8}}
        sentence = error_of(served.post("/api/model", json={**body, "model_path": str(strange)}), 403)
        assert "--trust" in sentence
        assert_labels(served.infer(image, model_name="a"), voxels > 100)
        answer = served.post("/api/model", json={**body, "model_path": str(trusted)})
        assert answer.status_code == 200, answer.text
        assert_labels(served.infer(image), voxels > 100)
