"""ONNX files and training folders spoilt at random: taken or refused, and what dies over one is replaced."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from tests import networks
from tests.classifier_client import JSON_TYPE, captured_body
from tests.corruption import corrupted, corrupted_json
from tests.datasets import write_dataset
from tests.fuzz.verdict import judge
from tests.serving import Served, start_server, wait_until
from tests.small_networks import save_volume
from tests.tile_networks import pixel_classifier

PATCH = {"patch_size": [4, 4, 4], "engine": "openvino"}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of its own: what is uploaded and trained here is in nobody's way."""
    served = start_server(tmp_path_factory.mktemp("fuzz-networks") / "state")
    yield served
    served.stop()


def see_volume_networks(host: Served, folder: Path, seeds: range) -> None:
    whole = networks.conv_network(folder / "good.onnx", 3, metadata={"patch_size": "[4, 4, 4]", "labels": '["a"]'})
    content, spoilt = whole.read_bytes(), folder / "spoilt.onnx"
    save_volume(folder / "v.nii", (6, 6, 6))

    def send(seed: int) -> requests.Response:
        spoilt.write_bytes(corrupted(content, seed))
        body = {"name": "spoilt", "backend_type": "onnx", "model_path": str(spoilt), "inference_config": PATCH}
        answer = host.post("/api/models", json=body)
        return host.infer(folder / "v.nii", model_name="spoilt") if answer.ok else answer

    judge(host, send, seeds)
    host.load("good", whole, inference_config=PATCH)
    assert host.infer(folder / "v.nii", model_name="good").status_code == 200


def see_tile_networks(host: Served, folder: Path, seeds: range) -> None:
    content = (pixel_classifier(folder / "good") / "model.onnx").read_bytes()

    def upload(content: bytes) -> requests.Response:
        return host.post("/api/v1/models/upload", files={"file": ("net.onnx", content)}, timeout=90)

    judge(host, lambda seed: upload(corrupted(content, seed)), seeds)
    assert upload(content).status_code == 200


def see_training_folders(host: Served, folder: Path, seeds: range) -> None:
    """Their config.json, and requests to train."""
    write_dataset(folder, train=2, validation=1)
    config = folder / "config.json"
    whole = config.read_bytes()
    body = captured_body(folder)
    spoilers: list[Callable[[int], tuple[bytes, object]]] = [
        lambda seed: (corrupted(whole, seed), body),
        lambda seed: (json.dumps(corrupted_json(json.loads(whole), seed)).encode(), body),
        lambda seed: (whole, corrupted_json(body, seed)),
    ]

    def train(content: bytes, request: object) -> requests.Response:
        config.write_bytes(content)
        answer = host.post("/api/v1/train", data=json.dumps(request).encode(), headers=JSON_TYPE)
        if answer.ok:
            assert host.post(f"/api/v1/train/{answer.json()['job_id']}/cancel").status_code == 200
        return answer

    statuses = judge(host, lambda seed: train(*spoilers[seed % 3](seed)), seeds)
    assert set(statuses) <= {200, 400, 404, 413, 422}
    assert train(whole, body).status_code == 200


def nothing_left(host: Served) -> None:
    wait_until(lambda: not host.spool_files(), message="files stay in the spool")


SEEN = {"volumes": see_volume_networks, "tiles": see_tile_networks, "trainings": see_training_folders}


@pytest.mark.parametrize(("kind", "count"), [("volumes", 3), ("tiles", 8), ("trainings", 6)])
def test_a_few_corruptions(kind: str, count: int, host: Served, tmp_path: Path) -> None:
    SEEN[kind](host, tmp_path, range(count))
    nothing_left(host)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("kind", "count"), [("volumes", 80), ("tiles", 120), ("trainings", 120)])
def test_many_corruptions(kind: str, count: int, host: Served, tmp_path: Path) -> None:
    SEEN[kind](host, tmp_path, range(1000, 1000 + count))
    nothing_left(host)
