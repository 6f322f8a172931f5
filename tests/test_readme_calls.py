"""The calls in the notes of a published server's users, with only address, paths and backend changed."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from tests import itkit_models
from tests.serving import Served
from tests.small_networks import Array, assert_labels, read_labels, save_volume, threshold_network

HEALTH = "curl http://localhost:8000/api/health"
LOAD = r"""curl -X POST http://localhost:8000/api/models \
  -H "Content-Type: application/json" \
  -d '{
    "name": "abdomen_seg",
    "backend_type": "mmengine",
    "config_path": "/path/to/config.py",
    "model_path": "/path/to/checkpoint.pth",
    "inference_config": {
      "patch_size": [128, 128, 128],
      "patch_stride": [64, 64, 64]
    }
  }'
"""
INFER = r"""curl -X POST http://localhost:8000/api/infer \
  -F "image=@input.nii.gz" \
  -F "model_name=abdomen_seg" \
  -F "force_cpu=false" \
  -o segmentation.nii.gz
"""
UNLOAD = "curl -X DELETE http://localhost:8000/api/models/abdomen_seg"
PYTHON = """
import requests

# Server URL
server_url = "http://localhost:8000"

# 1. Load model
response = requests.post(
    f"{server_url}/api/models",
    json={
        "name": "my_model",
        "backend_type": "mmengine",
        "config_path": "/path/to/config.py",
        "model_path": "/path/to/checkpoint.pth",
        "inference_config": {
            "patch_size": [96, 96, 96],
            "patch_stride": [48, 48, 48]
        }
    }
)
print(response.json())

# 2. Run inference
with open("input.nii.gz", "rb") as f:
    response = requests.post(
        f"{server_url}/api/infer",
        files={"image": f},
        data={
            "model_name": "my_model",
            "force_cpu": "false"
        }
    )

# Save segmentation
with open("segmentation.nii.gz", "wb") as f:
    f.write(response.content)

print("Inference completed!")
"""


LOAD_BODY = """
{
  "name": "my_model",
  "backend_type": "mmengine",
  "config_path": "/path/to/config.py",
  "model_path": "/path/to/checkpoint.pth",
  "inference_config": {
    "patch_size": [96, 96, 96],
    "patch_stride": [48, 48, 48],
    "fp16": false
  }
}
"""
ONNX_BODY = """
{
  "name": "my_onnx_model",
  "backend_type": "onnx",
  "model_path": "/path/to/model.onnx",
  "inference_config": {
    "patch_stride": [48, 48, 48]
  }
}
"""


class Notes:
    """A user's folder, with an input volume and a network in it."""

    def __init__(self, folder: Path, served: Served) -> None:
        self.folder = folder
        self.port = urlsplit(served.url).port
        self.network = threshold_network(folder / "network.onnx", 100)
        self.voxels: Array = save_volume(folder / "input.nii.gz")

    def adapt(self, printed: str) -> str:
        text = printed.replace("localhost:8000", f"localhost:{self.port}").replace("mmengine", "onnx")
        return text.replace("/path/to/checkpoint.pth", self.network.as_posix())

    def curl(self, printed: str) -> str:
        command = shlex.split(self.adapt(printed).replace("\\\n", " "))
        run = subprocess.run(
            [*command, "-sS"], cwd=self.folder, capture_output=True, text=True, timeout=120, check=True
        )
        return run.stdout

    def saved_labels(self) -> Array:
        return read_labels((self.folder / "segmentation.nii.gz").read_bytes())


@pytest.fixture
def notes(tmp_path: Path, server: Served) -> Iterator[Notes]:
    yield Notes(tmp_path, server)
    for name in ["abdomen_seg", "my_model", "my_onnx_model"]:
        server.delete(f"/api/models/{name}")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_commands_work_as_printed(notes: Notes) -> None:
    assert json.loads(notes.curl(HEALTH))["status"] == "ok"
    answer = json.loads(notes.curl(LOAD))
    assert answer["status"] == "success"
    assert answer["model"].items() >= {"name": "abdomen_seg", "backend_type": "onnx", "loaded": True}.items()
    notes.curl(INFER)
    np.testing.assert_array_equal(notes.saved_labels(), notes.voxels > 100)
    assert json.loads(notes.curl(UNLOAD)) == {"status": "success", "message": "Model abdomen_seg unloaded"}


def test_python_example_works_as_printed(notes: Notes) -> None:
    script = notes.adapt(PYTHON)
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, cwd=notes.folder, capture_output=True, text=True, timeout=120, check=True)
    assert "'status': 'success'" in run.stdout
    assert run.stdout.rstrip().endswith("Inference completed!")
    np.testing.assert_array_equal(notes.saved_labels(), notes.voxels > 100)


def test_the_printed_answers_have_the_printed_form(server: Served, notes: Notes) -> None:
    health = server.get("/api/health").json()
    assert health == {"status": "ok", "cuda_available": False, "cuda_device_count": 0} or health["cuda_available"]
    answer = server.post("/api/models", json=json.loads(notes.adapt(LOAD_BODY))).json()
    assert answer["status"] == "success"
    assert answer["model"].items() >= {"name": "my_model", "backend_type": "onnx", "loaded": True}.items()
    info = server.get("/api/info").json()
    assert (info["name"], info["version"]) == ("ITKIT Inference Server", "1.0.0")
    assert {"cuda_available", "device_count"} <= set(info)
    printed = {"name", "backend_type", "config_path", "model_path", "loaded"}
    assert printed <= set(info["models"]["my_model"])
    with (notes.folder / "input.nii.gz").open("rb") as image:
        labels = server.post("/api/infer", files={"image": image}, data={"model_name": "my_model"})
    assert labels.headers["Content-Disposition"].startswith("attachment")
    np.testing.assert_array_equal(read_labels(labels.content), notes.voxels > 100)
    assert server.delete("/api/models/my_model").json() == {
        "status": "success",
        "message": "Model my_model unloaded",
    }


def test_onnx_body_loads_as_printed(server: Served, notes: Notes) -> None:
    network = threshold_network(notes.folder / "model.onnx", patch=(96, 96, 96))
    body = ONNX_BODY.replace("/path/to/model.onnx", network.as_posix())
    answer = server.post("/api/models", json=json.loads(body))
    assert answer.json()["model"]["patch_stride"] == [48, 48, 48]
    assert "my_onnx_model" in server.get("/api/info").json()["models"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_printed_parameter_is_taken(server: Served, notes: Notes, device: str) -> None:
    config = {
        "patch_size": [96, 96, 96],
        "patch_stride": [48, 48, 48],
        "fp16": True,
        "accumulate_device": device,
        "forward_device": device,
    }
    model = server.load("my_model", notes.network, inference_config=config)
    assert model["inference_config"] == config
    assert (model["patch_size"], model["patch_stride"]) == ([96, 96, 96], [48, 48, 48])
    assert device == "cpu" or model["device"] == "cuda" or any("CPU" in warning for warning in model["warnings"])
    image = notes.folder / "input.nii.gz"
    assert_labels(server.infer(image, model_name="my_model", force_cpu="true"), notes.voxels > 100)


class ItkitNotes(Notes):
    """The same with an ITKIT model: a configuration and a checkpoint."""

    def __init__(self, folder: Path, served: Served) -> None:
        super().__init__(folder, served)
        self.sample = itkit_models.segformer(folder / "itkit")

    def adapt(self, printed: str) -> str:
        text = printed.replace("localhost:8000", f"localhost:{self.port}")
        text = text.replace("/path/to/config.py", self.sample.config.as_posix())
        return text.replace("/path/to/checkpoint.pth", self.sample.checkpoint.as_posix())


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_itkit_models_work_as_printed(tmp_path: Path, server: Served) -> None:
    pytest.importorskip("itkit")
    notes = ItkitNotes(tmp_path, server)
    try:
        answer = json.loads(notes.curl(LOAD))
        assert answer.get("model", answer).items() >= {"backend_type": "mmengine", "loaded": True}.items()
        assert answer["model"]["patch_size"] == [128, 128, 128]
        notes.curl(INFER)
        labels = notes.saved_labels()
        assert labels.shape == notes.voxels.shape
        assert labels.max() < answer["model"]["num_classes"]
        assert json.loads(notes.curl(UNLOAD))["status"] == "success"
        command = [sys.executable, "-c", notes.adapt(PYTHON)]
        run = subprocess.run(command, cwd=notes.folder, capture_output=True, text=True, timeout=200, check=True)
        assert "'backend_type': 'mmengine'" in run.stdout
        assert notes.saved_labels().shape == notes.voxels.shape
    finally:
        for name in ("abdomen_seg", "my_model"):
            server.delete(f"/api/models/{name}")
