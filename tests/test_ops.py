"""Health and readiness, as whoever looks after the server meets them."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import signal
import sqlite3
from pathlib import Path

import httpx
import psutil
import pytest
import requests

from segserve.api.build import create_app
from segserve.settings import Settings
from segserve.state import StateDir
from tests.networks import threshold_network
from tests.serving import Served, start_server, wait_until
from tests.watching import DOCUMENTED_REASONS, Metrics, json_lines, linux_only, reasons

PROBES = ["/healthz", "/readyz"]


def test_health_and_readiness_answer_get_and_head(server: Served) -> None:
    for path in PROBES:
        assert server.get(path).json() == {"status": "ok"}
        head = requests.head(server.url + path, timeout=30)
        assert (head.status_code, head.content) == (200, b"")


def test_off_loopback_probes_need_no_key_and_metrics_do(tmp_path: Path) -> None:
    served = start_server(tmp_path / "state", "--host", "0.0.0.0", "--log-format", "json")
    try:
        for path in PROBES:
            assert served.get(path).json() == {"status": "ok"}
            assert served.get(path + "/x").status_code == 401
            assert served.post(path).status_code == 405
        assert served.get("/metrics").status_code == 401
        key = (served.state_dir / "api-key").read_text().strip()
        asked = served.get("/metrics", headers={"Authorization": f"Bearer {key}"}, params={"key": key})
        assert asked.status_code == 200
        served.get("/api/nothing", headers={"X-API-Key": key}, params={"key": key})
        wait_until(lambda: any(line.get("route") == "/api/nothing" for line in json_lines(served)), 10)
        assert not [line for line in json_lines(served) if key in json.dumps(line)]
    finally:
        served.stop()


@linux_only
def test_not_ready_for_each_of_the_reasons_and_ready_again(own_server: Served, tmp_path: Path) -> None:
    model = threshold_network(tmp_path / "a.onnx", 1)
    own_server.load("held", model, inference_config={"patch_size": 16})
    (worker,) = own_server.workers()
    assert refused_for_want_of_descriptors(own_server, model).status_code == 503
    assert Metrics(own_server)("segserve_worker_start_failures_total", kind="volume") == 1
    spool = own_server.state_dir / "spool"
    spool.rmdir()
    spool.write_text("in the way")
    records = sqlite3.connect(own_server.state_dir / "jobs.sqlite", isolation_level=None)
    worker.send_signal(signal.SIGSTOP)
    try:
        records.execute("BEGIN EXCLUSIVE")
        found = reasons(own_server)
        for part in ("directory cannot be written", "records", "could not be started"):
            assert part in found
        assert own_server.get("/healthz").status_code == 200
        records.execute("ROLLBACK")
        own_server.load("second", model, inference_config={"patch_size": 16})
        wait_until(lambda: "records" not in reasons(own_server) and "started" not in reasons(own_server), 20)
        wait_until(lambda: "does not answer" in reasons(own_server), 60)
    finally:
        records.close()
        worker.send_signal(signal.SIGCONT)
    assert "directory cannot be written" in reasons(own_server)
    spool.unlink()
    wait_until(lambda: not reasons(own_server), 20)
    assert not list(spool.iterdir())


def refused_for_want_of_descriptors(served: Served, model: Path) -> requests.Response:
    """Ask for a process while the server may open hardly any files."""
    process = psutil.Process(served.process.pid)
    usual = process.rlimit(psutil.RLIMIT_NOFILE)
    process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds() + 3, usual[1]))
    try:
        return served.post("/api/models", json={"name": "starved", "backend_type": "onnx", "model_path": str(model)})
    finally:
        process.rlimit(psutil.RLIMIT_NOFILE, usual)


def test_not_ready_when_the_disk_is_nearly_full_or_the_server_shuts_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segserve.api.ops.readiness.LEAST_FREE", 2**62)
    full, closing = asked_twice(tmp_path)
    (reason,) = full.json()["reasons"]
    assert re.fullmatch(r"The state directory's disk has only [\d.]+ \wiB left\.", reason)
    assert any(re.match(one, reason) for one in DOCUMENTED_REASONS)
    assert (closing.status_code, closing.json()["reasons"]) == (503, ["The server is shutting down."])


@pytest.mark.parametrize(
    ("number", "told"),
    [(errno.ENOSPC, "its disk is full"), (errno.EROFS, "it is read-only"), (errno.EMFILE, "too many files are open")],
)
def test_not_ready_when_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, told: str
) -> None:
    def refuse(**_: object) -> str:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    refused, _ = asked_twice(tmp_path)
    assert refused.json()["reasons"] == [f"The state directory cannot be written: {told}."]


def asked_twice(state_dir: Path) -> tuple[httpx.Response, httpx.Response]:
    """What `/readyz` answers of a server in this process, while it serves and after it was shut down."""

    async def ask() -> tuple[httpx.Response, httpx.Response]:
        app = create_app(Settings(state_dir=state_dir), StateDir(state_dir))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            async with app.router.lifespan_context(app):
                serving = await client.get("/readyz")
            return serving, await client.get("/readyz")

    return asyncio.run(ask())
