"""Requests spoilt at random, as bytes on the wire: an answer or an end of the connection, and the server lives on."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from tests import networks
from tests.classifier_client import JSON_TYPE
from tests.corruption import corrupted, corrupted_json
from tests.fuzz.verdict import ANSWERS_ABOVE_500, Memory, fault_of_sentence, judge
from tests.serving import Served, wait_until
from tests.small_networks import save_volume
from tests.tile_client import json_request, metadata_of, okhttp_form, picture, png_url, tile_form
from tests.tile_networks import pixel_classifier

NAME = "fuzz-requests"
ROOM = 100 * 2**20
ELSEWHERE = b'{"detail":"Not Found"}'  # for paths of neither dialect
PATHS = (
    *("/api/health", "/api/info", "/api/models", "/api/infer", "/api/model", "/api/progress/abc", "/healthz"),
    *("/api/v1/gpu", "/api/v1/models", "/api/v1/models/abc", "/api/v1/train/abc/status", "/api/v1/inference"),
    *("/api/v1/pretrained/encoder/resnet18", "/docs", "/openapi.json", "/metrics"),
)


@pytest.fixture(scope="module")
def folder(server: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a classifier, a network and a volume lie; the network is loaded."""
    place = tmp_path_factory.mktemp("fuzz-requests")
    pixel_classifier(place / "pixels")
    save_volume(place / "v.nii", (6, 6, 6))
    server.load(NAME, networks.threshold_network(place / "n.onnx", 3), inference_config={"patch_size": [4, 4, 4]})
    yield place
    assert server.infer(place / "v.nii", model_name=NAME).status_code == 200
    server.delete(f"/api/models/{NAME}")
    wait_until(lambda: not server.spool_files(), message="files stay in the spool")


def forms(folder: Path) -> list[tuple[str, bytes, str]]:
    """A route, a good form and its type, of every kind."""
    volume = {
        "model_name": (None, NAME.encode()),
        "window_level": (None, b"40"),
        "window_width": (None, b"400"),
        "image": ("v.nii", (folder / "v.nii").read_bytes()),
    }
    tiles = tile_form(metadata_of(folder / "pixels", ["a"], picture(4, 4)[None]), picture(4, 4)[None])
    network = {"file": ("a.onnx", b"no network")}
    made: list[tuple[str, Mapping[str, tuple[str | None, bytes]]]]
    made = [("/api/infer", volume), ("/api/v1/inference/binary", tiles), ("/api/v1/models/upload", network)]
    return [(route, *fixed_boundary(*okhttp_form(parts))) for route, parts in made]


def fixed_boundary(body: bytes, kind: str) -> tuple[bytes, str]:
    """The same form on every run."""
    boundary = kind.partition("boundary=")[2]
    return body.replace(boundary.encode(), b"BOUNDARY"), kind.replace(boundary, "BOUNDARY")


def see_forms(server: Served, folder: Path, seeds: range) -> None:
    known = forms(folder)

    def send(seed: int) -> requests.Response:
        route, body, kind = known[seed % len(known)]
        return server.post(route, data=corrupted(body, seed), headers={"Content-Type": kind}, timeout=60)

    judge(server, send, seeds)


def bodies(folder: Path) -> list[tuple[str, Any]]:
    """A route and a good JSON body, of every kind."""
    load = {
        "name": "never",
        "backend_type": "onnx",
        "model_path": str(folder / "missing.onnx"),
        "inference_config": {"patch_size": [4, 4, 4], "patch_stride": 2, "fp16": False, "blend": "gaussian"},
        "window_level": 40,
        "window_width": 400,
        "labels": ["a", "b"],
        "orientation": "LPI",
    }
    layers = {"architecture": "unet", "encoder": "no-such", "num_channels": 3, "num_classes": 2}
    tiles = json_request(folder / "pixels", {"t": png_url(picture(4, 4))})
    made = {"/api/models": load, "/api/model": load, "/api/v1/inference": tiles, "/api/v1/pretrained/layers": layers}
    return list(made.items())


def see_json(server: Served, folder: Path, seeds: range) -> None:
    known = bodies(folder)

    def send(seed: int) -> requests.Response:
        route, body = known[seed % len(known)]
        whole = json.dumps(corrupted_json(body, seed)).encode()
        content = corrupted(whole, seed) if Random(seed).random() < 0.3 else whole
        return server.post(route, data=content, headers=JSON_TYPE, timeout=60)

    judge(server, send, seeds)


def exchange(server: Served, request: bytes) -> bytes:
    """What comes back for these bytes, after which nothing more is sent."""
    with server.dial(30) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))
        except ConnectionError:
            return b""


def request_bytes(server: Served, seed: int) -> bytes:
    random = Random(seed)
    path = random.choice(PATHS)
    head = [
        f"{random.choice(('GET', 'GET', 'POST', 'HEAD', 'DELETE'))} {path}?all=true&model_path=x HTTP/1.1",
        f"Host: {urlsplit(server.url).netloc}",
        *("Content-Type: multipart/form-data; boundary=B", "X-Request-ID: abc", "Accept-Encoding: gzip"),
        *("Origin: http://localhost:8000", "Authorization: Basic YTpi", "Content-Length: 5", "Connection: close"),
    ]
    return corrupted("\r\n".join([*head, "", ""]).encode() + b"--B--", seed)


def see_bytes(server: Served, seeds: range) -> None:
    """Whole requests, their heads included: what cannot be read as HTTP has no dialect to be answered in."""
    faults: list[str] = []
    with Memory(server) as memory:
        for seed in seeds:
            head, _, body = exchange(server, request_bytes(server, seed)).partition(b"\r\n\r\n")
            status = int(head.split()[1]) if head else 0
            if status >= 500 and status not in ANSWERS_ABOVE_500:
                faults.append(f"seed {seed}: {status} {body[:300]!r}")
            elif status >= 400 and b"application/json" in head and body not in {b"", ELSEWHERE}:
                found = json.loads(body)
                if fault := fault_of_sentence(found.get("error", found.get("detail")), server):
                    faults.append(f"seed {seed}: {status} {fault}")
    assert not faults, "\n".join(faults)
    assert server.process.poll() is None
    assert memory.growth < ROOM


def test_a_few_corrupted_forms(server: Served, folder: Path) -> None:
    see_forms(server, folder, range(24))


def test_a_few_corrupted_bodies(server: Served, folder: Path) -> None:
    see_json(server, folder, range(24))


@pytest.mark.usefixtures("folder")
def test_a_few_corrupted_requests(server: Served) -> None:
    see_bytes(server, range(40))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_many_corrupted_requests(server: Served, folder: Path) -> None:
    seeds = range(1000, 1240)
    see_forms(server, folder, seeds)
    see_json(server, folder, seeds)
    see_bytes(server, seeds)
