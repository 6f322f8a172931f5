"""Images and metadata of classifiers spoilt at random: predictions or a sentence, and the model's process lives on."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tifffile
from PIL import Image

from tests.corruption import corrupted, corrupted_json
from tests.fuzz.verdict import judge
from tests.serving import Served, wait_until
from tests.tile_client import json_request, metadata_of, picture, png_url, tile_form
from tests.tile_networks import pixel_classifier

NAME = "fuzzed-pixels"
TILE = picture(48, 40)
STATS = [{"p1": 1.0, "p99": 250.0, "min": 0.0, "max": 255.0, "mean": 120.0, "std": 60.0}] * 3
FULL_METADATA: dict[str, Any] = {
    "name": "Fuzz",
    "architecture": {"type": "unet", "backbone": "resnet18", "context_scale": 1, "size_divisor": 32},
    "input_config": {"num_channels": 3, "channel_names": ["Red", "Green", "Blue"], "bit_depth": 8},
    "normalization_stats": STATS,
    "classes": [{"index": index, "name": f"C{index}", "color": "#808080"} for index in range(3)],
    "training": {"epochs": 1},
}


@dataclass
class Classifier:
    """A classifier on the server's machine, and a folder for images."""

    server: Served
    folder: Path
    images: Path

    def ask(self, data: str) -> requests.Response:
        """Its answer about one tile."""
        return self.server.post("/api/v1/inference", json=json_request(self.folder, {"t": data}), timeout=60)


def tiff(**options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, TILE, **{"photometric": "rgb", **options})
    return file.getvalue()


def pillow(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    (image or Image.fromarray(TILE)).save(file, kind, **options)
    return file.getvalue()


def paged() -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, TILE.transpose(2, 0, 1), photometric="minisblack", compression="lzw")
    return file.getvalue()


IMAGES: dict[str, Callable[[], bytes]] = {
    "tiff": lambda: tiff(rowsperstrip=10),
    "tiff in pages": paged,
    "tiff big-endian": lambda: tiff(byteorder=">", predictor=2, compression="lzw"),
    "tiff big": lambda: tiff(bigtiff=True, compression="deflate", tile=(16, 16)),
    "tiff packbits": lambda: tiff(compression="packbits"),
    "tiff jpeg": lambda: tiff(compression="jpeg", tile=(16, 16)),
    "tiff zstd": lambda: tiff(compression="zstd", rowsperstrip=16),
    "tiff palette": lambda: pillow("TIFF", Image.fromarray(TILE).quantize(16)),
    "png": lambda: pillow("PNG"),
    "png palette": lambda: pillow("PNG", Image.fromarray(TILE).quantize(16)),
    "jpeg": lambda: pillow("JPEG"),
    "jpeg progressive": lambda: pillow("JPEG", progressive=True),
    "raw": lambda: np.array(TILE.shape, "<i4").tobytes() + TILE.astype("<f4").tobytes(),
}


@pytest.fixture(scope="module")
def classifier(server: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Classifier]:
    folder = tmp_path_factory.mktemp("fuzz-tiles")
    yield Classifier(server, pixel_classifier(folder / NAME), folder)
    server.post("/api/v1/gpu/clear")


@pytest.fixture(autouse=True)
def well_after(classifier: Classifier) -> Iterator[None]:
    """After every test the same process answers a good request as before it."""
    before = classifier.ask(png_url(TILE))
    assert before.status_code == 200, before.text
    alive = classifier.server.pids_of(NAME)
    assert alive
    yield
    assert classifier.ask(png_url(TILE)).json() == before.json()
    assert classifier.server.pids_of(NAME) == alive
    wait_until(lambda: not classifier.server.spool_files(), message="files stay in the spool")


def see_images(classifier: Classifier, kind: str, seeds: range) -> None:
    content = IMAGES[kind]()

    def send(seed: int) -> requests.Response:
        spoilt = corrupted(content, seed)
        if kind != "raw" and seed % 2:
            return classifier.ask("data:image/any;base64," + base64.b64encode(spoilt).decode())
        path = classifier.images / ("spoilt.raw" if kind == "raw" else "spoilt.png")
        path.write_bytes(spoilt)
        return classifier.ask(str(path))

    statuses = judge(classifier.server, send, seeds)
    assert set(statuses) <= {200, 400, 413}
    assert statuses[400] >= len(seeds) / 8


def see_requests(classifier: Classifier, seeds: range) -> None:
    """The JSON of a request for tiles, and the form of one with a buffer."""
    described = metadata_of(classifier.folder, ["a"], TILE[None], output="inline")
    whole = tile_form(described, TILE[None])
    body = json_request(classifier.folder, {"t": png_url(TILE[:4, :4])}, output="inline")

    def send(seed: int) -> requests.Response:
        if seed % 2:
            content = json.dumps(corrupted_json(body, seed)).encode()
            return classifier.server.post("/api/v1/inference/pixel", data=content, timeout=60)
        parts = {**whole, "metadata": (None, json.dumps(corrupted_json(described, seed)).encode())}
        return classifier.server.post("/api/v1/inference/pixel/binary", files=parts, timeout=60)

    statuses = judge(classifier.server, send, seeds)
    assert set(statuses) <= {200, 400, 404, 413, 422}
    assert statuses[400] + statuses[422] > len(seeds) / 4


def see_metadata(classifier: Classifier, folder: Path, seeds: range) -> None:
    """The file that tells how a network wants its tiles, which viewers and people write to."""
    spoilt = pixel_classifier(folder / "spoilt", **FULL_METADATA)
    whole = (spoilt / "metadata.json").read_bytes()

    def send(seed: int) -> requests.Response:
        changed = json.dumps(corrupted_json(json.loads(whole), seed)).encode() if seed % 2 else corrupted(whole, seed)
        (spoilt / "metadata.json").write_bytes(changed)
        body = json_request(spoilt, {"t": png_url(TILE)}, input_config={"num_channels": 3, "normalization": {}})
        return classifier.server.post("/api/v1/inference", json=body, timeout=60)

    statuses = judge(classifier.server, send, seeds)
    assert set(statuses) <= {200, 400}


@pytest.mark.parametrize("kind", IMAGES)
def test_a_few_corrupted_images(kind: str, classifier: Classifier) -> None:
    see_images(classifier, kind, range(8))


def test_a_few_corrupted_requests_for_tiles(classifier: Classifier) -> None:
    see_requests(classifier, range(20))


def test_a_few_corrupted_metadata_files(classifier: Classifier, tmp_path: Path) -> None:
    see_metadata(classifier, tmp_path, range(3))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", IMAGES)
def test_many_corrupted_images(kind: str, classifier: Classifier) -> None:
    see_images(classifier, kind, range(1000, 1060))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_many_corrupted_requests_for_tiles(classifier: Classifier) -> None:
    see_requests(classifier, range(1000, 1200))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_many_corrupted_metadata_files(classifier: Classifier, tmp_path: Path) -> None:
    see_metadata(classifier, tmp_path, range(1000, 1060))
