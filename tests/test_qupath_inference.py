"""The QuPath door's inference: class means and probability maps, as the extension and the README ask for them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tifffile
from PIL import Image

from tests.classifier_client import Json
from tests.serving import Served, wait_until
from tests.tile_client import (
    Array,
    TileClient,
    inline_maps,
    json_request,
    metadata_of,
    parse_shapes,
    picture,
    pictures,
    png_url,
    read_map,
    refused,
    tile_form,
)
from tests.tile_networks import (
    CLASSES,
    coarse_answer,
    coarse_classifier,
    halving_classifier,
    neighbour_answer,
    neighbour_classifier,
    pixel_answer,
    pixel_classifier,
)

EXACT = 1e-5
ENGINE = 1e-3
SIZES = [(34, 34, 0), (33, 33, 1), (64, 64, 2), (33, 33, 3), (34, 34, 4), (33, 20, 5), (20, 34, 6), (2, 2, 7)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pixel_classifier(tmp_path_factory.mktemp("classifiers") / "pixels")


@pytest.fixture
def client(server: Served) -> TileClient:
    return TileClient(server.url)


def means(tile: Array) -> Array:
    return np.asarray(pixel_answer(tile).mean((1, 2), dtype=np.float64))


# What comes back


def test_the_extensions_json_requests(client: TileClient, model: Path, tmp_path: Path) -> None:
    tiles = {f"{index * 512}_0_512_512": picture(20, 30 + index, seed=index) for index in range(3)}
    body = json_request(model, {name: png_url(tile) for name, tile in tiles.items()})
    predictions = client.run_inference(body)
    paths, classes = client.run_pixel_inference({**body, "output_dir": str(tmp_path / "maps")})
    assert list(predictions) == list(paths) == list(tiles)
    assert classes == CLASSES
    for name, tile in tiles.items():
        np.testing.assert_allclose(predictions[name], means(tile), atol=EXACT)
        np.testing.assert_allclose(read_map(paths[name], CLASSES, *tile.shape[:2]), pixel_answer(tile), atol=EXACT)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_extensions_binary_requests(client: TileClient, model: Path, tmp_path: Path, dtype: str) -> None:
    tiles = pictures(3).astype(dtype)
    metadata = metadata_of(model, ["0", "1", "2"], tiles)
    predictions = client.run_inference_binary(metadata, tiles)
    maps = client.run_pixel_inference_binary({**metadata, "output_dir": str(tmp_path)}, tiles)
    assert predictions is not None
    assert maps is not None
    assert maps[1] == CLASSES
    for index, tile in enumerate(tiles):
        np.testing.assert_allclose(predictions[str(index)], means(tile), atol=EXACT)
        np.testing.assert_allclose(read_map(maps[0][str(index)], CLASSES, 20, 30), pixel_answer(tile), atol=EXACT)


def test_the_readmes_short_form(client: TileClient, model: Path, tmp_path: Path) -> None:
    tile = picture()
    tifffile.imwrite(tmp_path / "tile_0.tiff", tile)
    body: Json = {
        "model_path": str(model),
        "tiles": [{"id": "tile_0", "data": str(tmp_path / "tile_0.tiff")}],
        "input_config": {"num_channels": 3, "normalization": {"strategy": "percentile_99"}},
    }
    low, high = (np.percentile(tile, percent, axis=(0, 1)) for percent in (1, 99))
    expected = pixel_answer(tile, low=low, high=high)
    np.testing.assert_allclose(client.run_inference(body)["tile_0"], expected.mean((1, 2)), atol=EXACT)
    paths, _ = client.run_pixel_inference({**body, "output_dir": str(tmp_path / "out")})
    np.testing.assert_allclose(read_map(paths["tile_0"], CLASSES, 20, 30), expected, atol=EXACT)


def encoded(tile: Array, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    if kind == "TIFF":
        tifffile.imwrite(stream, tile)
    else:
        Image.fromarray(tile).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("prefix", ["data:image/png;base64,", "data:;x=/etc/passwd,", "data:,"])
def test_a_data_url_may_hold_any_kind_of_image(client: TileClient, model: Path, kind: str, prefix: str) -> None:
    content = encoded(picture(), kind)
    seen = np.asarray(Image.open(io.BytesIO(content)))
    lines = base64.encodebytes(content).decode()  # broken into lines, as mail has it
    found = client.run_inference(json_request(model, {"t": prefix + lines}))
    # Two decoders may differ by one step in a pixel of a JPEG.
    np.testing.assert_allclose(found["t"], means(seen), atol=ENGINE if kind == "JPEG" else EXACT)


def test_the_protocols_oldest_route_takes_a_list_of_paths(client: TileClient, model: Path, tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for seed, path in enumerate(paths):
        Image.fromarray(picture(seed=seed)).save(path)
    asked = [paths[1], paths[0], paths[1]]
    answer = client.post_json(f"/batch?model_path={model}", asked)
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert [entry["path"] for entry in results] == asked
    for entry, seed in zip(results, (1, 0, 1), strict=True):
        np.testing.assert_allclose(entry["probabilities"], means(picture(seed=seed)), atol=EXACT)
    assert client.post_json(f"/batch?model_path={model}", []).json() == {"results": []}


@pytest.mark.parametrize("padding", [0, 5, 9.0])
def test_reflection_padding_is_what_a_neighbourhood_sees(client: TileClient, tmp_path: Path, padding: float) -> None:
    model, tile = neighbour_classifier(tmp_path / "neighbours"), picture()
    options = {"reflection_padding": padding, "blend_mode": "none"}
    metadata = metadata_of(model, ["t"], tile[None], options=options, output_dir=str(tmp_path))
    answer = client.run_pixel_inference_binary(metadata, tile[None])
    assert answer is not None
    expected = neighbour_answer(tile, padding=int(padding))
    np.testing.assert_allclose(read_map(answer[0]["t"], CLASSES, 20, 30), expected, atol=ENGINE)


def test_a_network_that_refuses_odd_sizes_gets_none(client: TileClient, tmp_path: Path) -> None:
    model = coarse_classifier(tmp_path / "coarse")
    tiles = {"a": picture(64, 64), "b": picture(33, 257), "c": picture(100, 90), "d": picture(64, 64, seed=1)}
    urls = {name: png_url(tile) for name, tile in tiles.items()}
    together = inline_maps(client.post_json("/pixel", json_request(model, urls, output="inline")))
    for (name, tile), found in zip(tiles.items(), together, strict=True):
        np.testing.assert_allclose(found, coarse_answer(tile), atol=ENGINE)
        (alone,) = inline_maps(client.post_json("/pixel", json_request(model, {name: urls[name]}, output="inline")))
        np.testing.assert_allclose(found, alone, atol=EXACT)


def test_a_size_that_is_refused_changes_no_other_tile(client: TileClient, tmp_path: Path) -> None:
    model = halving_classifier(tmp_path / "halving")
    tiles = {f"{height} x {width} {seed}": (height, width, seed) for height, width, seed in SIZES}
    urls = {name: png_url(picture(*size, seed=seed)) for name, (*size, seed) in tiles.items()}

    def maps(names: Iterable[str]) -> dict[str, Array]:
        asked = {name: urls[name] for name in names}
        answer = client.post_json("/pixel", json_request(model, asked, output="inline"))
        return dict(zip(asked, inline_maps(answer), strict=True))

    even = [name for name, (height, width, _) in tiles.items() if not (height % 2 or width % 2)]
    before = maps(even)
    odd = maps(urls.keys() - even)
    for _ in range(2):
        together = maps(reversed(urls))
        for name, found in {**before, **odd}.items():
            np.testing.assert_allclose(together[name], found, atol=EXACT)


@pytest.mark.parametrize("named", ["folder", "file", "id"])
def test_a_model_is_a_folder_a_file_or_an_id(server: Served, model: Path, named: str) -> None:
    known = server.state_dir / "models" / "pixels_20260101_120000"
    if not known.exists():
        pixel_classifier(known)
    spelled = {"folder": str(model), "file": str(model / "model.onnx"), "id": known.name}[named]
    found = TileClient(server.url).run_inference(json_request(spelled, {"t": png_url(picture())}))
    np.testing.assert_allclose(found["t"], means(picture()), atol=EXACT)


@pytest.mark.parametrize("options", [{"engine": "onnxruntime", "use_gpu": False}, {"engine": "openvino"}, None])
def test_options_choose_where_to_compute(client: TileClient, model: Path, options: Json | None) -> None:
    found = client.run_inference(json_request(model, {"t": png_url(picture())}, options=options))
    np.testing.assert_allclose(found["t"], means(picture()), atol=EXACT)


# Forms a request may have


def test_whole_numbers_may_be_written_as_doubles_and_unknown_fields_are_ignored(
    client: TileClient, model: Path
) -> None:
    config = {"num_channels": 3.0, "selected_channels": [0.0, 1.0, 2.0], "normalization": {"strategy": "fixed_range"}}
    tiles = pictures(2)
    metadata = metadata_of(model, ["a", "b"], tiles, input_config={**config, "new": 1}, more={"x": None})
    doubles = {key: float(metadata[key]) for key in ("tile_height", "tile_width", "num_channels")}
    found = client.run_inference_binary({**metadata, **doubles, "options": {"gpu_batch_size": 2.0}}, tiles)
    assert found is not None
    np.testing.assert_allclose(found["b"], means(tiles[1]), atol=EXACT)
    body = json_request(model, {"a": png_url(tiles[0])}, input_config=config, output=5, extra=[1])
    np.testing.assert_allclose(client.run_inference(body)["a"], means(tiles[0]), atol=EXACT)


def test_part_headers_do_not_matter(client: TileClient, model: Path) -> None:
    tiles = pictures(1)
    padded = {**metadata_of(model, ["a"], tiles), "padding": "x" * 5 * 2**20}
    content = tile_form(padded, tiles)
    for names in [(None, None), ("metadata.json", "tiles.bin"), ("", "")]:
        parts = {"metadata": (names[0], content["metadata"][1]), "tiles": (names[1], content["tiles"][1])}
        answer = client.post_form("/binary", parts)
        assert answer.status_code == 200, answer.text
        np.testing.assert_allclose(answer.json()["predictions"]["a"], means(tiles[0]), atol=EXACT)


def test_no_tiles_are_an_answer_too(client: TileClient, model: Path, tmp_path: Path) -> None:
    nothing = np.zeros((0, 0, 0, 0), np.uint8)
    metadata, output_dir = metadata_of(model, [], nothing), str(tmp_path / "maps")
    assert client.run_inference(json_request(model, {})) == {}
    assert client.run_inference_binary(metadata, nothing) == {}
    assert client.run_pixel_inference(json_request(model, {}, output_dir=output_dir)) == ({}, CLASSES)
    assert client.run_pixel_inference_binary({**metadata, "output_dir": output_dir}, nothing) == ({}, CLASSES)
    answer = client.post_json("/pixel", json_request(model, {}, output="inline"))
    assert (answer.status_code, answer.content, parse_shapes(answer)) == (200, b"", [])
    assert answer.headers["X-Segserve-Classes"] == str(CLASSES)


def test_of_tiles_with_one_id_the_last_wins(client: TileClient, model: Path, tmp_path: Path) -> None:
    tiles = pictures(3)
    metadata = metadata_of(model, ["t", "other", "t"], tiles)
    found = client.run_inference_binary(metadata, tiles)
    assert found is not None
    assert list(found) == ["t", "other"]
    np.testing.assert_allclose(found["t"], means(tiles[2]), atol=EXACT)
    maps = client.run_pixel_inference_binary({**metadata, "output_dir": str(tmp_path)}, tiles)
    assert maps is not None
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["other.bin", "t.bin"]
    np.testing.assert_allclose(read_map(maps[0]["t"], CLASSES, 20, 30), pixel_answer(tiles[2]), atol=EXACT)
    body = json_request(model, {})
    body["tiles"] = [{"id": "t", "data": png_url(tile)} for tile in tiles]
    np.testing.assert_allclose(client.run_inference(body)["t"], means(tiles[2]), atol=EXACT)
    in_order = inline_maps(client.post_json("/pixel", {**body, "output": "inline"}))
    np.testing.assert_allclose(in_order, [pixel_answer(tile) for tile in tiles], atol=EXACT)


# Maps in the answer


@pytest.mark.parametrize("form", ["json", "binary"])
def test_maps_in_the_answer(server: Served, model: Path, form: str) -> None:
    client, tiles = TileClient(server.url), pictures(2)
    urls = {"a": png_url(tiles[0]), "b": png_url(tiles[1])}

    def asked(**changes: str) -> requests.Response:
        if form == "json":
            return client.post_json("/pixel", json_request(model, urls, output="inline", **changes))
        metadata = metadata_of(model, ["a", "b"], tiles, output="inline", **changes)
        return client.post_form("/pixel/binary", tile_form(metadata, tiles))

    maps = inline_maps(asked())
    np.testing.assert_allclose(maps, [pixel_answer(tile) for tile in tiles], atol=EXACT)
    np.testing.assert_array_equal(inline_maps(asked(format="float32")), maps)
    labels = inline_maps(asked(format="classes"), "u1")
    np.testing.assert_array_equal([found[0] for found in labels], np.argmax(maps, axis=1))
    wait_until(lambda: not server.spool_files(), 10, "files stayed in the spool")


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({}, 422, ["output_dir", "inline"]),
        ({"output_dir": ""}, 422, ["output_dir"]),
        ({"output": "inline", "output_dir": "/tmp/x"}, 400, ["output_dir", "inline"]),
        ({"output": "elsewhere"}, 422, ["output", "inline"]),
        ({"output": "inline", "format": "float16"}, 422, ["format", "classes"]),
        ({"output_dir": "/tmp/x", "format": "classes"}, 400, ["inline"]),
    ],
)
def test_where_maps_go_must_be_clear(
    client: TileClient, model: Path, changes: Json, status: int, words: list[str]
) -> None:
    sentence = refused(client.post_json("/pixel", json_request(model, {}, **changes)), status)
    assert all(word in sentence for word in words)
    tiles = pictures(1)
    # Of the binary routes' metadata, what is wrong is always 400.
    refused(client.post_form("/pixel/binary", tile_form(metadata_of(model, ["a"], tiles, **changes), tiles)), 400)
