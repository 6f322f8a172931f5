"""Pixel classifiers in processes: replaced, killed, evicted, idle, and asked by many at once."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tests import tile_networks
from tests.serving import Served, start_server, wait_until

Tile = NDArray[np.uint8]
TILE: Tile = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)


def ask(server: Served, model: Path | str, tiles: list[Tile] | None = None, **options: Any) -> requests.Response:
    """Inline classes or maps of tiles of one shape, as a binary request."""
    given = tiles or [TILE]
    height, width, channels = given[0].shape
    metadata = {
        "model_path": str(model),
        "tile_ids": [str(index) for index in range(len(given))],
        "tile_height": height,
        "tile_width": width,
        "num_channels": channels,
        "dtype": "uint8",
        "input_config": {"num_channels": channels, "normalization": {"strategy": "fixed_range"}},
        "options": {"use_gpu": True, "engine": "openvino", **options},
        "output": "inline",
    }
    blob = b"".join(tile.tobytes() for tile in given)
    form = {"metadata": json.dumps(metadata)}
    return server.post("/api/v1/inference/pixel/binary", data=form, files={"tiles": ("tiles.bin", blob)})


def first_pixel(answer: requests.Response) -> tuple[float, ...]:
    """The probabilities of the first tile's first pixel."""
    assert answer.status_code == 200, answer.text
    classes, height, width = json.loads(answer.headers["X-Segserve-Shapes"])[0]
    maps = np.frombuffer(answer.content, "<f4")[: classes * height * width].reshape(classes, height, width)
    return tuple(float(value) for value in maps[:, 0, 0])


def processes(server: Served) -> list[psutil.Process]:
    """The processes that hold classifiers."""
    found = []
    for process in server.workers():
        with suppress(psutil.NoSuchProcess):
            if "tiles" in process.cmdline():
                found.append(process)
    return found


@pytest.fixture
def shifted(tmp_path: Path) -> Callable[..., Path]:
    """A classifier whose first class is the likelier, the larger its shift."""

    def make(name: str, shift: float) -> Path:
        return tile_networks.pixel_classifier(tmp_path / name, shift=shift)

    return make


def likelihood(shift: float) -> float:
    """Of the first class at the first pixel of `TILE`."""
    return float(tile_networks.pixel_answer(TILE, shift=shift)[0, 0, 0])


@pytest.fixture
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that keeps two classifiers, for a short time."""
    flags = ("--max-tile-models", "2", "--tile-idle", "3")
    served = start_server(tmp_path_factory.mktemp("small") / "state", *flags)
    yield served
    served.stop()


def test_a_model_loads_once_and_stays(own_server: Served, shifted: Callable[..., Path]) -> None:
    model = shifted("one", 2)
    assert first_pixel(ask(own_server, model))[0] == pytest.approx(likelihood(2), abs=1e-5)
    held = processes(own_server)
    assert len(held) == 1
    for _ in range(5):
        ask(own_server, model)
    assert processes(own_server) == held


@pytest.mark.parametrize("count", [64, pytest.param(16 * 50, marks=pytest.mark.slow)])
def test_many_threads_on_a_cold_model(own_server: Served, shifted: Callable[..., Path], count: int) -> None:
    model = shifted("cold", 5)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: ask(own_server, model), range(count)))
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.content for answer in answers} == {answers[0].content}
    assert len(processes(own_server)) == 1


def test_a_replaced_model_is_used_from_the_next_request_on_and_no_request_fails(
    own_server: Served, shifted: Callable[..., Path]
) -> None:
    model, other = shifted("live", 2), shifted("other", 6)
    ask(own_server, model)
    seen: list[float] = []
    failures: list[str] = []
    over = threading.Event()

    def keep_asking() -> None:
        while not over.is_set():
            answer = ask(own_server, model)
            if answer.status_code == 200:
                seen.append(round(first_pixel(answer)[0], 4))
            else:
                failures.append(answer.text)

    threads = [threading.Thread(target=keep_asking) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    # In the two ways that people do it: half a file for a while, and a folder that is away for a while.
    network = (other / "model.onnx").read_bytes()
    (model / "model.onnx").write_bytes(network[: len(network) // 2])
    time.sleep(0.5)
    (model / "model.onnx").write_bytes(network)
    wait_until(lambda: round(likelihood(6), 4) in seen[-4:], 30, "the new weights were never used")
    model.rename(model.with_name("away"))
    time.sleep(0.5)
    shutil.copytree(shifted("third", 9), model)
    wait_until(lambda: round(likelihood(9), 4) in seen[-4:], 30, "the third weights were never used")
    over.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert set(seen) == {round(likelihood(shift), 4) for shift in (2, 6, 9)}
    assert first_pixel(ask(own_server, model))[0] == pytest.approx(likelihood(9), abs=1e-5)
    wait_until(lambda: len(processes(own_server)) == 1, 20, "the old processes never ended")
    assert "died" not in own_server.log.read_text()


def test_a_removed_model_is_gone(own_server: Served, shifted: Callable[..., Path]) -> None:
    model = shifted("doomed", 2)
    ask(own_server, model)
    shutil.rmtree(model)
    wait_until(lambda: ask(own_server, model).status_code == 404, 30)
    wait_until(lambda: not processes(own_server), 20)


def test_killing_the_process_under_load_fails_no_tile(own_server: Served, shifted: Callable[..., Path]) -> None:
    model = shifted("victim", 2)
    ask(own_server, model)
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(ask, own_server, model, [TILE] * 4) for _ in range(96)]
        for _ in range(2):
            time.sleep(0.3)
            for process in processes(own_server):
                process.kill()
        answers = [future.result() for future in asked]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert [
        answer.text for answer in refused if answer.status_code != 503 or "twice" not in answer.json()["detail"]
    ] == []
    assert len(refused) <= 16
    assert first_pixel(ask(own_server, model))[0] == pytest.approx(likelihood(2), abs=1e-5)
    wait_until(lambda: not own_server.spool_files(), 10)


def test_the_least_recently_used_goes_and_nobody_notices(small_server: Served, shifted: Callable[..., Path]) -> None:
    models = {shift: shifted(f"shift-{shift}", shift) for shift in (2, 3, 4)}
    for shift in (2, 3, 4, 2, 4, 3):
        assert first_pixel(ask(small_server, models[shift]))[0] == pytest.approx(likelihood(shift), abs=1e-5)
    wait_until(lambda: len(processes(small_server)) <= 2, 10)
    with ThreadPoolExecutor(9) as pool:
        chosen = [2, 3, 4] * 6
        answers = list(pool.map(lambda shift: ask(small_server, models[shift]), chosen))
    for shift, answer in zip(chosen, answers, strict=True):
        assert first_pixel(answer)[0] == pytest.approx(likelihood(shift), abs=1e-5)
    wait_until(lambda: not processes(small_server), 30, "idle processes never ended")


def test_clearing_ends_the_processes_and_the_next_tile_starts_one(
    own_server: Served, shifted: Callable[..., Path]
) -> None:
    model = shifted("cleared", 2)
    ask(own_server, model)
    assert own_server.post("/api/v1/gpu/clear").status_code == 200
    assert not processes(own_server)
    assert ask(own_server, model).status_code == 200


def test_wishes_are_kept_apart(own_server: Served, shifted: Callable[..., Path]) -> None:
    model = shifted("wishes", 2)
    assert ask(own_server, model, engine="openvino").status_code == 200
    assert ask(own_server, model, engine="onnxruntime").status_code == 200
    assert len(processes(own_server)) == 2


def test_more_bytes_than_may_wait_are_told_to_come_again(
    tmp_path_factory: pytest.TempPathFactory, shifted: Callable[..., Path]
) -> None:
    flags = ("--max-tile-waiting", "30kB")
    server = start_server(tmp_path_factory.mktemp("tight") / "state", *flags)
    try:
        model = shifted("tight", 2)
        big = [np.zeros((64, 64, 3), np.uint8)] * 4
        assert ask(server, model, big).status_code == 200  # alone, it need not wait for anybody
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda _: ask(server, model, big), range(48)))
        refused = [answer for answer in answers if answer.status_code != 200]
        assert all(answer.status_code == 503 and int(answer.headers["Retry-After"]) for answer in refused)
        assert refused
        assert "max_tile_waiting" in refused[0].json()["detail"]
        assert ask(server, model, big).status_code == 200
    finally:
        server.stop()


def test_a_broken_model_is_refused_every_time_and_leaves_nothing(own_server: Served, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(os.urandom(2000))
    for _ in range(2):
        answer = ask(own_server, folder)
        assert answer.status_code == 400
        assert "ONNX" in answer.json()["detail"]
    wait_until(lambda: not processes(own_server), 10)


def test_a_tile_that_is_too_large_is_refused_before_it_is_decoded(
    tmp_path_factory: pytest.TempPathFactory, shifted: Callable[..., Path], tmp_path: Path
) -> None:
    limits = ("--max-tile-pixels", "2000", "--max-tile-bytes", "5KiB")
    server = start_server(tmp_path_factory.mktemp("pixels") / "state", *limits)
    try:
        model = shifted("pixels", 2)
        assert ask(server, model).status_code == 200
        refused = ask(server, model, [np.zeros((50, 41, 3), np.uint8)])
        Image.fromarray(np.zeros((50, 41, 3), np.uint8)).save(tmp_path / "large.png")
        body = {"model_path": str(model), "input_config": {"num_channels": 3, "normalization": {}}}
        tiles = [{"id": "0", "data": str(tmp_path / "large.png")}]
        also = server.post("/api/v1/inference", json={**body, "tiles": tiles})
        for answer in (refused, also):
            assert answer.status_code == 413
            assert all(word in answer.json()["detail"] for word in ("50 x 41", "2000", "max_tile_pixels"))
        heavy = np.zeros((40, 45, 3), np.uint8)
        tifffile.imwrite(tmp_path / "large.png", heavy, photometric="rgb")
        for answer in (ask(server, model, [heavy]), server.post("/api/v1/inference", json={**body, "tiles": tiles})):
            assert answer.status_code == 413
            assert all(word in answer.json()["detail"] for word in ("5.3 KiB", "5.0 KiB", "max_tile_bytes"))
    finally:
        server.stop()
