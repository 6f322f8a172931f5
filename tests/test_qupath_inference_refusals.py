"""The QuPath door's inference: what it refuses, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tifffile

from tests.classifier_client import Json
from tests.serving import Served
from tests.tile_client import FIXED_RANGE, TileClient, json_request, metadata_of, pictures, png_url, refused, tile_form
from tests.tile_networks import pixel_classifier, wide_classifier


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pixel_classifier(tmp_path_factory.mktemp("classifiers") / "pixels")


@pytest.fixture
def client(server: Served) -> TileClient:
    return TileClient(server.url)


@pytest.mark.parametrize("path", ["", "/pixel"])
def test_json_of_the_wrong_shape_is_422(client: TileClient, model: Path, path: str) -> None:
    whole = json_request(model, {"a": "data:,x"}, output_dir="/tmp/x")
    config = whole["input_config"]
    assert "model_path" in refused(client.post_json(path, {}), 422)
    for key in ("model_path", "input_config", "tiles"):
        lacking = {name: value for name, value in whole.items() if name != key}
        assert key in refused(client.post_json(path, lacking), 422)
    wrong: list[tuple[str, Any]] = [
        ("model_path", 5),
        ("tiles", {"a": 1}),
        ("tiles", [{"id": "a"}]),
        ("tiles", [{"id": 3, "data": "x"}]),
        ("input_config", {**config, "num_channels": 3.5}),
        ("input_config", {**config, "selected_channels": ["red"]}),
        ("input_config", {"num_channels": 3}),
        ("options", {"reflection_padding": "much"}),
        ("options", {"engine": "tensorrt"}),
    ]
    for key, value in wrong:
        assert key in refused(client.post_json(path, {**whole, key: value}), 422)


@pytest.mark.parametrize("path", ["", "/pixel", "/batch?model_path=x"])
def test_what_is_no_json_is_422(client: TileClient, path: str) -> None:
    for body in (b"", b"{", b"\xff", b"[" * 100_000, b'["\\ud800"]', b"nul", b"5", b"[5]"):
        refused(requests.post(client.base + path, data=body, timeout=60), 422)


@pytest.mark.parametrize("path", ["/binary", "/pixel/binary"])
def test_a_missing_part_is_422(client: TileClient, model: Path, path: str) -> None:
    parts = tile_form(metadata_of(model, ["a"], pictures(1), output="inline"), pictures(1))
    for name in parts:
        rest = {key: part for key, part in parts.items() if key != name}
        assert name in refused(client.post_form(path, rest), 422)
    refused(requests.post(client.base + path, json={}, timeout=60), 422)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"tile_ids": None}, "tile_ids"),
        ({"tile_height": 20.5}, "tile_height"),
        ({"tile_width": -1}, "tile_width"),
        ({"num_channels": "three"}, "num_channels"),
        ({"dtype": "float64"}, "dtype"),
        ({"input_config": []}, "input_config"),
        ({"options": {"use_amp": "perhaps"}}, "use_amp"),
    ],
)
def test_wrong_metadata_are_400(client: TileClient, model: Path, changes: Json, word: str) -> None:
    tiles = pictures(1)
    parts = tile_form({**metadata_of(model, ["a"], tiles), **changes}, tiles)
    assert word in refused(client.post_form("/binary", parts), 400)


def test_metadata_that_are_no_json_or_too_long(client: TileClient) -> None:
    tiles = ("tiles.bin", b"")
    for text in (b"", b"{", b"\xff", b"[]", b"5"):
        assert "metadata" in refused(client.post_form("/binary", {"metadata": (None, text), "tiles": tiles}), 400)
    sentence = refused(client.post_form("/binary", {"metadata": (None, b"x" * (2**24 + 1)), "tiles": tiles}), 413)
    assert "metadata" in sentence
    assert "16.0 MiB" in sentence


@pytest.mark.parametrize(("dtype", "item"), [("uint8", 1), ("float32", 4)])
def test_a_buffer_of_the_wrong_size_is_told_with_both_numbers(
    client: TileClient, model: Path, dtype: str, item: int
) -> None:
    tiles = pictures(2).astype(dtype)
    metadata = metadata_of(model, ["a", "b"], tiles)
    expected = f"expected {1800 * 2 * item} bytes (2 tiles x 20 x 30 x 3 x {item} bytes/elem)"
    for sent in (tiles[:1], pictures(3).astype(dtype)):
        sentence = refused(client.post_form("/binary", tile_form(metadata, sent)), 400)
        assert f"Buffer size mismatch: {expected} but got {sent.nbytes} bytes" in sentence
    flat = {**metadata, "tile_height": 0}
    assert "at least 1" in refused(client.post_form("/binary", tile_form(flat, tiles[:0])), 400)


@pytest.mark.parametrize("missing", ["/nowhere/at/all", "unet_20200101_000000", "../models", "a\0b", "x" * 3000])
def test_a_missing_model_is_404_everywhere(client: TileClient, missing: str, tmp_path: Path, model: Path) -> None:
    tiles = pictures(1)
    body = json_request(missing, {"a": png_url(tiles[0])}, output_dir=str(tmp_path))
    metadata = metadata_of(missing, ["a"], tiles, output_dir=str(tmp_path))
    answers = [
        client.post_json("", body),
        client.post_json("/pixel", body),
        client.post_form("/binary", tile_form(metadata, tiles)),
        client.post_form("/pixel/binary", tile_form(metadata, tiles)),
        requests.post(client.base + "/batch", params={"model_path": missing}, json=[], timeout=60),
    ]
    for answer in answers:
        assert "Model not found" in refused(answer, 404)


def test_a_missing_model_path_is_422(client: TileClient) -> None:
    assert "model_path" in refused(client.post_json("/batch", []), 422)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("/nowhere/tile.png", "neither a data URL (data:...) nor an existing file: /nowhere/tile.png"),
        ("", "neither a data URL"),
        ("a\0b", "neither a data URL"),
        ("/tmp", "neither a data URL"),
        ("iVBORw0KGgo/" * 1000, f"nor an existing file: {('iVBORw0KGgo/' * 7)[:80]}"),
        ("data:image/png;base64", "base64"),
        ("data:image/png;base64,", "base64"),
        ("data:image/png;base64,%%%", "base64"),
        ("data:image/png;base64,aGVsbG8", "base64"),
        ("data:image/png;base64,aGVsbG8=", "t"),
    ],
)
def test_unusable_tile_data_are_400(server: Served, model: Path, data: str, words: str) -> None:
    client = TileClient(server.url)
    sentence = refused(client.post_json("", json_request(model, {"t": data})), 400)
    assert words in sentence
    assert len(sentence) < 300
    assert str(server.state_dir) not in sentence
    assert not server.spool_files()


def test_a_named_file_that_is_no_image_is_400_without_its_content(
    client: TileClient, model: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("hunter2")
    sentence = refused(client.post_json("", json_request(model, {"t": str(secret)})), 400)
    assert "hunter2" not in sentence
    refused(client.post_json(f"/batch?model_path={model}", [str(secret)]), 400)
    refused(client.post_json(f"/batch?model_path={model}", [str(tmp_path / "missing.png")]), 400)


def test_channels_are_told_before_a_tile_is_decoded(client: TileClient, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "many.tif"
    tifffile.imwrite(path, np.zeros((20, 30, 64), np.uint8), planarconfig="contig", compression="zlib", metadata=None)
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        start = file.pages[0].dataoffsets[0]
    content[start : start + 8] = bytes(8)  # who unpacks this calls the file damaged
    path.write_bytes(content)
    body = json_request(model, {"t": str(path)}, input_config={"num_channels": 3, "normalization": FIXED_RANGE})
    sentence = refused(client.post_json("", body), 400)
    assert "64 channels" in sentence
    assert "takes 3" in sentence


def test_too_many_tiles_are_413(client: TileClient, model: Path) -> None:
    body = json_request(model, {})
    body["tiles"] = [{"id": "t", "data": "data:,eA=="}] * 10_001
    assert "10000" in refused(client.post_json("", body), 413)
    metadata = metadata_of(model, ["t"] * 2049, np.zeros((2049, 1, 1, 3), np.uint8), output="inline")
    parts = tile_form(metadata, np.zeros((2049, 1, 1, 3), np.uint8))
    assert "2048" in refused(client.post_form("/pixel/binary", parts), 413)


def test_more_means_than_an_answer_holds_are_413(server: Served, client: TileClient, tmp_path: Path) -> None:
    classes, count = 90, 10_000
    folder = wide_classifier(tmp_path / "wide", classes)
    tiles = np.zeros((count, 1, 1, 3), np.uint8)

    def ask(count: int) -> requests.Response:
        names = [str(number) for number in range(count)]
        return client.post_form("/binary", tile_form(metadata_of(folder, names, tiles[:count]), tiles[:count]))

    assert [len(means) for means in ask(2).json()["predictions"].values()] == [classes] * 2
    alive = server.pids_of("wide")
    sentence = refused(ask(count), 413)
    assert all(word in sentence for word in ("10000", "90", "524288", "send 5825 tiles"))
    assert server.pids_of("wide") == alive != set()
