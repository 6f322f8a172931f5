"""A real `segserve serve` process for the tests to talk to over HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import requests

START_SECONDS = 60.0


@dataclass
class Served:
    """One running server: its process, its state directory and the addresses it answers on."""

    process: subprocess.Popen[bytes]
    state_dir: Path
    log: Path
    urls: list[str]

    @property
    def url(self) -> str:
        return self.urls[0]

    def get(self, path: str, **kwargs: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=kwargs.pop("timeout", 60), **kwargs)

    def post(self, path: str, **kwargs: Any) -> requests.Response:
        return requests.post(self.url + path, timeout=kwargs.pop("timeout", 120), **kwargs)

    def delete(self, path: str, **kwargs: Any) -> requests.Response:
        return requests.delete(self.url + path, timeout=kwargs.pop("timeout", 60), **kwargs)

    def load(self, name: str, model: Path, **body: Any) -> dict[str, Any]:
        """Load an ONNX network by name and return its MODEL entry."""
        answer = self.post("/api/models", json={"name": name, "backend_type": "onnx", "model_path": str(model), **body})
        assert answer.status_code == 200, answer.text
        loaded: dict[str, Any] = answer.json()["model"]
        return loaded

    def infer(self, image: Path, **fields: Any) -> requests.Response:
        """Send a volume the way the published viewer does: form fields first, then the file."""
        with image.open("rb") as stream:
            return self.post("/api/infer", data=fields, files={"image": stream}, timeout=600)

    def dial(self, timeout: float = 60.0) -> socket.socket:
        """A connection of its own, for what no HTTP client sends."""
        address = urlsplit(self.url)
        assert address.hostname is not None
        return socket.create_connection((address.hostname, address.port or 80), timeout=timeout)

    def workers(self) -> list[psutil.Process]:
        """The server's model processes."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def pids_of(self, label: str) -> set[int]:
        """The processes that hold the model of this name; others of a shared server come and go."""
        return {process.pid for process in self.workers() if _last_argument(process) == label}

    @contextmanager
    def standstill(self, label: str, seconds: float) -> Iterator[None]:
        """The model of this name computes nothing for so many seconds, however fast the machine is."""
        processes = [psutil.Process(pid) for pid in self.pids_of(label)]
        assert processes
        for process in processes:
            process.suspend()

        def go_on() -> None:
            for process in processes:
                process.resume()

        timer = threading.Timer(seconds, go_on)
        timer.start()
        try:
            yield
        finally:
            timer.join()

    def spool_files(self) -> list[Path]:
        """Files in the spool; `os.walk` passes over folders that vanish while it looks."""
        return [Path(folder) / name for folder, _, names in os.walk(self.state_dir / "spool") for name in names]

    def stop(self) -> int:
        """End the server as an admin would and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)


def _last_argument(process: psutil.Process) -> str:
    try:
        return (process.cmdline() or [""])[-1]
    except psutil.Error:
        return ""


def start_server(state_dir: Path, *flags: str, env: dict[str, str] | None = None, ports: bool = True) -> Served:
    """Start `segserve serve` on a free port (unless `ports` is False) and wait until it answers."""
    state_dir.mkdir(parents=True, exist_ok=True)
    log = state_dir.parent / f"{state_dir.name}.log"
    command = [sys.executable, "-m", "segserve", "serve", "--state-dir", str(state_dir)]
    command += ["--port", "0"] if ports else []
    card = state_dir / "server.json"
    card.unlink(missing_ok=True)
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [*command, *flags], stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})}
        )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}:\n{log.read_text()}")
        if card.exists():
            served = Served(process, state_dir, log, json.loads(card.read_text())["addresses"])
            if _answers(served.url):
                return served
        time.sleep(0.05)
    process.kill()
    process.wait()
    raise RuntimeError(f"the server did not answer within {START_SECONDS} s:\n{log.read_text()}")


def _answers(url: str) -> bool:
    try:
        requests.get(url + "/api/health", timeout=5)
    except requests.ConnectionError:
        return False
    return True


def wait_until(
    condition: Callable[[], object], seconds: float = 30.0, message: str = "the condition never came true"
) -> None:
    """Poll until `condition()` is true; fail the test when it never is."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(message)
