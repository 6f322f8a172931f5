"""The QuPath door's inference: which files a request may write, how long it keeps its own, and many at a time."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import psutil
import pytest
import requests
from hypothesis import example, given
from hypothesis import strategies as st

from segserve.api.qupath.tile_files import check_ids
from segserve.errors import BadInputError
from tests.serving import Served, start_server, wait_until
from tests.tile_client import (
    TileClient,
    form_request,
    json_request,
    metadata_of,
    picture,
    pictures,
    png_url,
    read_map,
    refused,
    tile_form,
)
from tests.tile_networks import CLASSES, pixel_answer, pixel_classifier, slow_classifier

HARMLESS = [
    "0",
    "1024_-512_512_512",
    "tile_0",
    "-1_0",
    "Slide 3.ndpi - tile (1)"[:16],
    "a.b",
    "x" * 200,
    "console",
    "_",
]
HARMFUL = [
    *("", ".", "..", "../../escaped", "/tmp/escaped", "a/b", "a\\b", "..\\b", "C:\\b", "c:b", "nul\0", "a\0", "a\n"),
    *(
        "con",
        "CON",
        "nul",
        "NUL.txt",
        "com1",
        "LPT9.a.b",
        "aux ",
        "con .x",
        ".hidden",
        " a",
        "ä",
        "x" * 201,
    ),
    *("a:b", "a*", "a?", "<a>", "a|b", 'a"b', "~", "%2e%2e", "a\x7f"),
]
posix_only = pytest.mark.skipif(os.name == "nt", reason="Windows needs a privilege for links")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pixel_classifier(tmp_path_factory.mktemp("classifiers") / "pixels")


@pytest.fixture
def client(server: Served) -> TileClient:
    return TileClient(server.url)


def written(client: TileClient, model: Path, output_dir: str, identity: str = "t") -> dict[str, str]:
    """Have one map written, and return the answer's paths as text."""
    tiles = pictures(1)
    parts = tile_form(metadata_of(model, [identity], tiles, output_dir=output_dir), tiles)
    answer = client.post_form("/pixel/binary", parts)
    assert answer.status_code == 200, answer.text
    paths: dict[str, str] = answer.json()["output_paths"]
    assert list(paths) == [identity]
    np.testing.assert_allclose(read_map(Path(paths[identity]), CLASSES, 20, 30), pixel_answer(tiles[0]), atol=1e-5)
    return paths


# Tile ids


@pytest.mark.parametrize("identity", HARMLESS)
def test_an_id_names_a_file_in_the_folder(client: TileClient, model: Path, tmp_path: Path, identity: str) -> None:
    written(client, model, str(tmp_path), identity)
    assert [path.name for path in tmp_path.iterdir()] == [f"{identity}.bin"]


def test_an_id_that_could_name_anything_else_is_refused(client: TileClient, model: Path, tmp_path: Path) -> None:
    canary = tmp_path / "escaped.bin"
    canary.write_text("canary")
    folder, tiles = tmp_path / "a" / "maps", pictures(2)
    for identity in [*HARMFUL, str(canary.with_suffix("")), "../../escaped"]:
        urls = {"good": png_url(tiles[0]), identity: png_url(tiles[1])}
        sentence = refused(client.post_json("/pixel", json_request(model, urls, output_dir=str(folder))), 400)
        assert "tile id" in sentence
        metadata = metadata_of(model, ["good", identity], tiles, output_dir=str(folder))
        refused(client.post_form("/pixel/binary", tile_form(metadata, tiles)), 400)
    assert [path.name for path in tmp_path.rglob("*")] == ["escaped.bin"]
    assert canary.read_text() == "canary"


def accepted(identity: str) -> bool:
    try:
        check_ids([identity])
    except BadInputError:
        return False
    return True


@given(st.text(st.sampled_from("aZ09_- .conulCOM1/\\:~\0\n*ä"), max_size=12) | st.text(max_size=5))
@example("CON .bin")
@example("x\n")
def test_no_accepted_id_leaves_the_folder_on_any_system(identity: str) -> None:
    if not accepted(identity):
        return
    name = identity + ".bin"
    for kind in (PurePosixPath, PureWindowsPath):
        assert (kind("folder") / name).parts == ("folder", name)
    assert re.fullmatch(r"[\x20-\x7e]+", name)
    assert not set(name) & set('<>:"/\\|?*')
    assert name.partition(".")[0].strip().upper() not in {"CON", "PRN", "AUX", "NUL", "COM1", "LPT1"}


@pytest.mark.parametrize("identity", ["a.", "a ", "_a b.c", "-", "x" * 200])
def test_what_cannot_hurt_is_accepted(identity: str) -> None:
    assert accepted(identity)


@given(st.from_regex(r"[0-9]{1,6}(_-?[0-9]{1,6}){0,3}", fullmatch=True))
def test_the_extensions_own_ids_are_accepted(identity: str) -> None:
    assert accepted(identity)


# The folder for maps


@pytest.mark.parametrize("ending", ["", "/", "//", "/../maps", "/./"])
def test_paths_are_told_in_the_clients_own_spelling(
    client: TileClient, model: Path, tmp_path: Path, ending: str
) -> None:
    (tmp_path / "maps").mkdir()
    output_dir = f"{tmp_path}/maps{ending}"
    (shown,) = written(client, model, output_dir).values()
    assert shown.startswith(output_dir)
    assert shown[len(output_dir) :].lstrip("/\\") == "t.bin"


def test_the_folder_is_made_with_its_parents(client: TileClient, model: Path, tmp_path: Path) -> None:
    written(client, model, str(tmp_path / "one" / "two words" / "dreißig"))


def test_a_folder_that_cannot_be_made_is_400_with_the_reason(client: TileClient, model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("canary")
    (tmp_path / "t.bin").mkdir()
    folders = [str(tmp_path / "file"), str(tmp_path / "file" / "maps"), f"{tmp_path}/a\0b", f"{tmp_path}/{'x' * 300}"]
    for folder in [*folders, str(tmp_path)]:
        body = json_request(model, {"t": png_url(picture())}, output_dir=folder)
        assert folder in (sentence := refused(client.post_json("/pixel", body), 400)) or "character" in sentence
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "t.bin"]


@posix_only
@pytest.mark.parametrize("folder", ["C:\\Users\\me\\maps", "C:/maps", "\\\\server\\share\\maps"])
def test_a_folder_of_another_computer_is_refused(client: TileClient, model: Path, folder: str) -> None:
    sentence = refused(client.post_json("/pixel", json_request(model, {}, output_dir=folder)), 400)
    assert "inline" in sentence


@posix_only
def test_a_link_where_a_map_goes_is_replaced_and_not_followed(client: TileClient, model: Path, tmp_path: Path) -> None:
    canaries = {name: tmp_path / name for name in ("file", "folder/file")}
    for canary in canaries.values():
        canary.parent.mkdir(exist_ok=True)
        canary.write_text("canary")
    maps = tmp_path / "maps"
    maps.mkdir()
    for target in (canaries["file"], tmp_path / "folder", tmp_path / "nowhere"):
        (maps / "t.bin").unlink(missing_ok=True)
        (maps / "t.bin").symlink_to(target)
        written(client, model, str(maps))
        assert not (maps / "t.bin").is_symlink()
        assert [path.name for path in maps.iterdir()] == ["t.bin"]
    assert all(canary.read_text() == "canary" for canary in canaries.values())
    assert not (tmp_path / "nowhere").exists()


# Many at a time, and those who leave


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that takes at most 64 MiB at once."""
    served = start_server(tmp_path_factory.mktemp("busy") / "state", "--max-upload", "64MiB")
    yield served
    served.stop()


@pytest.mark.parametrize("instead", ["nothing", "a file"])
def test_a_folder_that_goes_away_before_its_map_comes(busy: Served, tmp_path: Path, instead: str) -> None:
    model, client, maps = pixel_classifier(tmp_path / "going"), TileClient(busy.url), tmp_path / "maps"
    body = json_request(model, {"t": png_url(picture())}, output_dir=str(maps))
    client.run_pixel_inference(body)
    held = [process for process in busy.workers() if "going" in process.cmdline()]
    assert held
    with ThreadPoolExecutor(1) as pool:
        for process in held:
            process.suspend()
        try:
            asked = pool.submit(client.post_json, "/pixel", body)
            wait_until(lambda: "segserve_tile_waiting_bytes 0.0" not in busy.get("/metrics").text, 20, "never asked")
            shutil.rmtree(maps)
            if instead == "a file":
                maps.write_text("canary")
        finally:
            for process in held:
                process.resume()
        answer = asked.result(60)
    if instead == "a file":
        sentence = refused(answer, 400)
        assert all(word in sentence for word in ("tile t ", "t.bin", "output_dir"))
        assert maps.read_text() == "canary"
    else:
        assert answer.status_code == 200, answer.text
        np.testing.assert_allclose(read_map(maps / "t.bin", CLASSES, 20, 30), pixel_answer(picture()), atol=1e-5)


def test_sixteen_threads_on_one_cold_model(busy: Served, tmp_path: Path) -> None:
    model, tiles = pixel_classifier(tmp_path / "cold"), pictures(64)
    clients = [TileClient(busy.url) for _ in range(16)]

    def ask(index: int) -> None:
        metadata = metadata_of(model, [str(index)], tiles[index : index + 1], output_dir=str(tmp_path / "maps"))
        found = clients[index % 16].run_pixel_inference_binary(metadata, tiles[index : index + 1])
        assert found is not None
        answer = read_map(found[0][str(index)], CLASSES, 20, 30)
        np.testing.assert_allclose(answer, pixel_answer(tiles[index]), atol=1e-5)
        found[0][str(index)].unlink()

    before = len(busy.workers())
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(64)))
    assert len(busy.workers()) == before + 1
    assert not list((tmp_path / "maps").iterdir())
    wait_until(lambda: not busy.spool_files(), 10, "files stayed in the spool")


def test_a_client_that_hangs_up_frees_the_engine(busy: Served, tmp_path: Path) -> None:
    model = slow_classifier(tmp_path / "slow")
    tiles = np.zeros((60, 512, 512, 3), np.uint8)
    before = {process.pid for process in busy.workers()}
    client = TileClient(busy.url)
    assert client.run_inference_binary(metadata_of(model, ["warm"], tiles[:1, :8, :8]), tiles[:1, :8, :8])
    (process,) = [process for process in busy.workers() if process.pid not in before]
    spent = _seconds(process)
    form = tile_form(metadata_of(model, [str(i) for i in range(60)], tiles), tiles)
    with busy.dial() as connection:
        connection.sendall(b"".join(form_request(busy.url, "/api/v1/inference/binary", form)))
        wait_until(lambda: _seconds(process) > spent + 1, 30, "the process never began to work")
        assert busy.spool_files()
    wait_until(lambda: not busy.spool_files(), 10, "files stayed in the spool")
    wait_until(lambda: _rests(process), 20, "the process goes on")


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _rests(process: psutil.Process) -> bool:
    before = _seconds(process)
    time.sleep(0.5)
    return _seconds(process) - before < 0.1


def test_health_is_answered_while_a_large_body_is_read(busy: Served, model: Path) -> None:
    body = json.dumps(json_request(model, {"t": png_url(picture()) + " " * 60 * 2**20})).encode()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(requests.post, busy.url + "/api/v1/inference", data=body, timeout=60)
        waits = []
        while not answer.done():
            began = time.monotonic()
            assert busy.get("/api/v1/health").status_code == 200
            waits.append(time.monotonic() - began)
        assert set(answer.result().json()["predictions"]) == {"t"}
    assert waits
    assert max(waits) < 5


def test_a_body_over_the_limit_is_413_with_the_setting(busy: Served, model: Path) -> None:
    client, large = TileClient(busy.url), b" " * (65 * 2**20)
    whole = requests.post(client.base, data=large, timeout=60)
    pieces = requests.post(client.base, data=iter([large[: 2**20]] * 65), timeout=60)
    form = client.post_form("/binary", {"metadata": (None, b"{}"), "tiles": ("tiles.bin", large)})
    for answer in (whole, pieces, form):
        assert "max_upload" in refused(answer, 413)
    assert not busy.spool_files()


def test_every_body_is_described(server: Served) -> None:
    document = server.get("/openapi.json")
    assert "$defs" not in document.text
    for path in ("", "/pixel", "/batch", "/binary", "/pixel/binary"):
        route = document.json()["paths"]["/api/v1/inference" + path]["post"]
        (schema,) = [content["schema"] for content in route["requestBody"]["content"].values()]
        assert schema.get("required") or schema["type"] == "array"
