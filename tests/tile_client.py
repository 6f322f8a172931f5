"""The inference calls of the published QuPath extension, byte for byte as its HTTP library sends them."""

from __future__ import annotations

import base64
import io
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests
from numpy.typing import NDArray
from PIL import Image

from tests.classifier_client import JSON_TYPE, Json, get_double, get_int, get_list, get_object, get_string, gson, parse
from tests.small_networks import error_of

Array = NDArray[Any]
FIXED_RANGE = {"strategy": "fixed_range", "per_channel": False, "clip_percentile": 99.0}


def picture(height: int = 20, width: int = 30, *, seed: int = 0) -> Array:
    """A tile (H, W, 3) of noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pictures(count: int) -> Array:
    """Different tiles of one size, (N, H, W, 3)."""
    return np.stack([picture(seed=seed) for seed in range(count)])


def refused(answer: requests.Response, status: int) -> str:
    """The sentence of a refusal."""
    sentence = error_of(answer, status, "detail")
    assert "\n" not in sentence
    return sentence


def png_url(tile: Array) -> str:
    """A tile as the extension's viewer puts it into JSON."""
    stream = io.BytesIO()
    Image.fromarray(tile).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def json_request(model: Path | str, tiles: Mapping[str, str], **changes: Any) -> Json:
    """The body of `/inference`; with `output_dir` that of `/inference/pixel`."""
    body: Json = {
        "model_path": str(model),
        "input_config": {"num_channels": 3, "selected_channels": [0, 1, 2], "normalization": FIXED_RANGE},
        "tiles": [{"id": name, "data": data, "x": 0, "y": 0} for name, data in tiles.items()],
        "options": {"use_gpu": True, "blend_mode": "linear", "reflection_padding": 0},
    }
    return {**body, **changes}


def metadata_of(model: Path | str, ids: list[str], tiles: Array, **changes: Any) -> Json:
    """The `metadata` part for tiles (N, H, W, C)."""
    _, height, width, channels = tiles.shape
    body: Json = {
        "model_path": str(model),
        "tile_ids": ids,
        "tile_height": height,
        "tile_width": width,
        "num_channels": channels,
        "dtype": str(tiles.dtype),
        "input_config": {"num_channels": 3, "selected_channels": [0, 1, 2], "normalization": FIXED_RANGE},
        "options": {"use_gpu": True, "blend_mode": "linear", "gpu_batch_size": 16},
    }
    return {**body, **changes}


def okhttp_form(parts: Mapping[str, tuple[str | None, bytes]]) -> tuple[bytes, str]:
    """A multipart body as OkHttp writes it, and its content type: a length inside each part.

    Args:
        parts: by name, the file's name or None, and the content.
    """
    boundary = str(uuid.uuid4())
    body = bytearray()
    for name, (filename, content) in parts.items():
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'.encode()
        if filename is not None:
            body += f'; filename="{filename}"\r\nContent-Type: application/octet-stream'.encode()
        body += f"\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content + b"\r\n"
    body += f"--{boundary}--\r\n".encode()
    return bytes(body), f"multipart/form-data; boundary={boundary}"


def form_request(
    url: str, path: str, parts: Mapping[str, tuple[str | None, bytes]], *, version: str = "HTTP/1.1", headers: str = ""
) -> tuple[bytes, bytes]:
    """The head and the body of such a form's request, as they go over the wire."""
    body, kind = okhttp_form(parts)
    head = f"POST {path} {version}\r\nHost: {urlsplit(url).netloc}\r\nContent-Type: {kind}\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode(), body


def tile_form(metadata: Json, tiles: Array) -> dict[str, tuple[str | None, bytes]]:
    """The parts of a binary request."""
    little = tiles.astype(tiles.dtype.newbyteorder("<"))
    return {"metadata": (None, gson(metadata).encode()), "tiles": ("tiles.bin", little.tobytes())}


class TileClient:
    """The extension's calls, by its names; each makes a connection of its own."""

    def __init__(self, url: str) -> None:
        self.base = url + "/api/v1/inference"

    def post_json(self, path: str, body: object) -> requests.Response:
        return requests.post(self.base + path, data=gson(body).encode(), headers=JSON_TYPE, timeout=300)

    def post_form(self, path: str, parts: Mapping[str, tuple[str | None, bytes]]) -> requests.Response:
        body, kind = okhttp_form(parts)
        return requests.post(self.base + path, data=body, headers={"Content-Type": kind}, timeout=300)

    def run_inference(self, body: Json) -> dict[str, list[float]]:
        return _predictions(_read(self.post_json("", body)))

    def run_pixel_inference(self, body: Json) -> tuple[dict[str, Path], int]:
        return _maps(_read(self.post_json("/pixel", body)))

    def run_inference_binary(self, metadata: Json, tiles: Array) -> dict[str, list[float]] | None:
        """None where the client takes the server for one that has no such route."""
        answer = self.post_form("/binary", tile_form(metadata, tiles))
        return None if answer.status_code == 404 else _predictions(_read(answer))

    def run_pixel_inference_binary(self, metadata: Json, tiles: Array) -> tuple[dict[str, Path], int] | None:
        """See `run_inference_binary`."""
        answer = self.post_form("/pixel/binary", tile_form(metadata, tiles))
        return None if answer.status_code == 404 else _maps(_read(answer))


def read_map(path: Path, classes: int, height: int, width: int) -> NDArray[np.float32]:
    """Read a probability map as the client does, which first compares the file's size."""
    content = path.read_bytes()
    assert len(content) == classes * height * width * 4
    return np.frombuffer(content, "<f4").reshape(classes, height, width)


def inline_maps(answer: requests.Response, dtype: str = "<f4") -> list[Array]:
    """The maps of an answer to `"output": "inline"`."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/octet-stream"
    values = np.frombuffer(answer.content, dtype)
    maps: list[Array] = []
    for shape in parse_shapes(answer):
        size = int(np.prod(shape))
        maps.append(values[:size].reshape(shape))
        values = values[size:]
    assert values.size == 0
    return maps


def parse_shapes(answer: requests.Response) -> list[list[int]]:
    shapes: object = parse(answer.headers["X-Segserve-Shapes"])
    assert isinstance(shapes, list)
    return shapes


def _read(answer: requests.Response) -> Json:
    if not answer.ok:
        raise OSError(f"{answer.status_code} {answer.text}")
    return parse(answer.text)


def _predictions(answer: Json) -> dict[str, list[float]]:
    found = get_object(answer, "predictions")
    return {name: [get_double({"p": value}, "p") for value in get_list(found, name)] for name in found}


def _maps(answer: Json) -> tuple[dict[str, Path], int]:
    paths = get_object(answer, "output_paths")
    return {name: Path(get_string(paths, name)) for name in paths}, get_int(answer, "num_classes")
