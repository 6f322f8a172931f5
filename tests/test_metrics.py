"""Metrics move as what they count does, and each is documented."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests

from segserve.api.templates import Templates
from tests.networks import threshold_network
from tests.serving import Served, start_server, wait_until
from tests.tile_client import TileClient, json_request, png_url
from tests.tile_networks import pixel_classifier
from tests.volumes import write
from tests.watching import OPERATIONS, Metrics, posix_only, reasons


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with one volume model, that other tests do not use."""
    root = tmp_path_factory.mktemp("watched")
    served = start_server(root / "state")
    served.load("above", threshold_network(root / "above.onnx", 100), inference_config={"patch_size": 16})
    yield served
    served.stop()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write(tmp_path / "image.nii.gz", np.arange(20 * 18 * 16, dtype=np.int16).reshape(20, 18, 16))


def test_every_metric_is_documented_and_nothing_else_is(plain: Served) -> None:
    table = OPERATIONS.partition("## Metrics")[2].partition("## What to alert on")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert documented == Metrics(plain).names
    used = set(re.findall(r"\b(?:segserve|process)_[a-z_]+", OPERATIONS.partition("## What to alert on")[2]))
    assert used <= documented


def test_a_volume_moves_its_metrics(plain: Served, image: Path) -> None:
    before = Metrics(plain)
    answer = plain.infer(image)
    assert answer.status_code == 200, answer.text
    # A request counts when everything of it is done, its files removed: a moment after its last byte.
    asked = {"method": "POST", "route": "/api/infer"}
    wait_until(lambda: Metrics(plain)("segserve_requests_total", **asked) > before("segserve_requests_total", **asked))
    after = Metrics(plain)

    def rise(name: str, **labels: str) -> float:
        return after(name, **labels) - before(name, **labels)

    assert rise("segserve_volumes_total") == 1
    patches, skipped = (int(answer.headers[f"X-Segserve-{name}"]) for name in ("Patches", "Skipped"))
    assert patches > 1
    assert rise("segserve_patches_total", how="computed") == patches - skipped
    assert rise("segserve_patches_total", how="skipped") == skipped
    assert rise("segserve_volume_seconds_sum") == pytest.approx(float(answer.headers["X-Segserve-Seconds"]), abs=1e-9)
    stages = [
        rise("segserve_volume_stage_seconds_total", stage=stage) for stage in ("read", "network", "stitch", "write")
    ]
    assert all(spent > 0 for spent in stages)
    assert sum(stages) == pytest.approx(rise("segserve_volume_seconds_sum"), abs=2e-3)
    assert rise("segserve_worker_call_seconds_count", kind="volume", verb="segment") == 1
    assert rise("segserve_requests_total", **asked, status="200") == 1
    assert rise("segserve_request_seconds_count", **asked) == 1
    assert rise("segserve_request_seconds_sum", **asked) >= rise("segserve_volume_seconds_sum") > 0
    assert after("segserve_requests_in_flight") == 1


def test_a_bad_request_and_an_unknown_route_are_counted_by_status_and_not_by_path(plain: Served) -> None:
    before = Metrics(plain)
    assert plain.post("/api/infer").status_code == 400
    for path in ("/nothing/1", "/nothing/2"):
        plain.get(path)
        assert requests.request("PROPFIND", plain.url + path, timeout=30).status_code == 404
    after = Metrics(plain)
    for labels, count in (
        ({"method": "POST", "route": "/api/infer", "status": "400"}, 1),
        ({"method": "GET", "route": "other", "status": "404"}, 2),
        ({"method": "other", "route": "other"}, 2),
    ):
        rise = after("segserve_requests_total", **labels) - before("segserve_requests_total", **labels)
        assert rise == count, labels
    routes = set(plain.get("/openapi.json").json()["paths"])
    assert after.values("segserve_requests_total", "route") <= {*routes, "other"}


def test_models_and_processes_come_and_go_in_the_metrics(own_server: Served, tmp_path: Path) -> None:
    assert Metrics(own_server)("segserve_workers") == 0
    own_server.load("passing", threshold_network(tmp_path / "a.onnx", 1), inference_config={"patch_size": 16})
    loaded = Metrics(own_server)
    assert loaded("segserve_workers", kind="volume") == loaded("segserve_worker_starts_total", kind="volume") == 1
    assert loaded.values("segserve_model_waiting", "model") == loaded.values("segserve_model_busy", "model")
    assert loaded.values("segserve_model_busy", "model") == {"passing"}
    (worker,) = own_server.workers()
    wait_until(lambda: Metrics(own_server)("segserve_worker_resident_bytes", kind="volume") > 0, 10)
    now, held = Metrics(own_server), worker.memory_info().rss
    assert held / 2 < now("segserve_worker_resident_bytes", kind="volume") < held * 2
    own = psutil.Process(own_server.process.pid)
    assert own.memory_info().rss / 2 < now("process_resident_memory_bytes") < own.memory_info().rss * 2
    assert now("process_open_fds") > 3
    assert now("segserve_state_free_bytes") > 0
    worker.kill()
    wait_until(lambda: Metrics(own_server)("segserve_worker_deaths_total", kind="volume") == 1, 10)
    assert Metrics(own_server)("segserve_workers", kind="volume") == 0
    assert reasons(own_server) == "", "a process that died is started again when it is needed"
    own_server.delete("/api/models/passing")
    gone = Metrics(own_server)
    assert gone.values("segserve_model_busy", "model") == set()
    assert gone("segserve_worker_deaths_total") == 1


@posix_only
def test_requests_that_wait_are_seen_waiting_and_their_files_lying_about(plain: Served, image: Path) -> None:
    held = [process for process in plain.workers() if process.cmdline()[-1] == "above"]
    for process in held:
        process.send_signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(3) as pool:
            answers = [pool.submit(plain.infer, image) for _ in range(3)]
            wait_until(lambda: Metrics(plain)("segserve_model_waiting", model="above") == 2, 30)
            wait_until(lambda: Metrics(plain)("segserve_spool_files") >= 3, 30)
            during = Metrics(plain)
            assert during("segserve_model_busy", model="above") == 1
            assert during("segserve_requests_in_flight") == 4
            assert during("segserve_spool_bytes") >= 3 * image.stat().st_size
            for process in held:
                process.send_signal(signal.SIGCONT)
            assert [answer.result().status_code for answer in answers] == [200, 200, 200]
    finally:
        for process in held:
            process.send_signal(signal.SIGCONT)
    wait_until(lambda: Metrics(plain)("segserve_spool_files") == 0, 30)
    after = Metrics(plain)
    assert after("segserve_model_busy") == after("segserve_model_waiting") == after("segserve_spool_bytes") == 0
    assert after("segserve_requests_in_flight") == 1


def test_a_model_that_is_unloaded_has_not_died(plain: Served, tmp_path: Path) -> None:
    before = Metrics(plain)
    plain.load("brief", threshold_network(tmp_path / "b.onnx", 1), inference_config={"patch_size": 16})
    plain.delete("/api/models/brief")
    after = Metrics(plain)
    assert after("segserve_worker_starts_total") - before("segserve_worker_starts_total") == 1
    assert after("segserve_worker_deaths_total") == before("segserve_worker_deaths_total")
    assert after("segserve_workers") == before("segserve_workers")


def test_tiles_are_counted_one_by_one(plain: Served, tmp_path: Path) -> None:
    classifier = pixel_classifier(tmp_path / "tissue")
    tile = png_url(np.zeros((16, 16, 3), np.uint8))
    found = TileClient(plain.url).run_inference(json_request(classifier, {"a": tile, "b": tile, "c": tile}))
    assert set(found) == {"a", "b", "c"}
    seen = Metrics(plain)
    assert seen("segserve_tiles_total") == 3
    assert seen.values("segserve_classifier_requests", "model") == {"tissue"}
    assert seen("segserve_classifier_requests") == seen("segserve_tile_waiting_bytes") == 0
    assert seen.values("segserve_trainings", "state") == {
        *("queued", "training", "paused", "completed", "failed", "cancelled")
    }


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/train", "/train"),
        ("/train/7", "/train/{job}"),
        ("/train/upload", "/train/upload"),
        ("/train/7/status", "/train/{job}/status"),
        ("/train/7/8/status", "/train/{job}"),
        ("/models/a/b\nc", "/models/{name}"),
        ("/models/", "other"),
        ("/trains", "other"),
        ("/trai.", "other"),
    ],
)
def test_paths_are_told_by_their_templates(path: str, template: str) -> None:
    known = ["/models/{name}", "/train/{job}", "/train", "/train/{job}/status", "/train/upload"]
    assert Templates(known).of(path) == template
