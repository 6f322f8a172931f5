"""`segserve serve` with trainings that take no torch: run as a program, it takes the command line of `segserve`.

Such a server is killed and started again many times in a test, on one state directory and one port.
"""

from __future__ import annotations

import asyncio
import asyncio.subprocess
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
import requests

from segserve import cli
from tests.serving import Served

REAL, LIGHT = "segserve.workers.process", "tests.light_worker"
ROOT = Path(__file__).parent.parent
START_SECONDS = 60.0
T = TypeVar("T")


class Phoenix:
    """A server on one port and one state directory, whatever becomes of its processes."""

    def __init__(self, root: Path, *, module: str = "tests.light_server", flags: Sequence[str] = ()) -> None:
        """Start it.

        Args:
            root: for its state directory and its log.
            module: `segserve` for one whose trainings are real.
            flags: more of the command line.
        """
        port = free_port()
        self.state_dir = root / "state"
        self.log = root / "log.txt"
        self._flags = ["--port", str(port), "--state-dir", str(self.state_dir), *flags]
        self._module = module
        self.url = f"http://127.0.0.1:{port}"
        self.served = self._launch()

    def start(self) -> None:
        """Start it again after its end, and wait until it answers."""
        assert self.served.process.poll() is not None
        self.served = self._launch()

    def ensure(self) -> None:
        """Start it again if it has ended."""
        if self.served.process.poll() is not None:
            self.start()

    def family(self, kind: str | None = None) -> list[psutil.Process]:
        """Every living process of this state directory, or the workers of a kind; also those whose server is dead."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                line = process.cmdline()
                mine = str(self.state_dir) in line and process.status() != psutil.STATUS_ZOMBIE
                if mine and (kind is None or _kind(line) == kind):
                    found.append(process)
        return found

    def kill(self, kind: str | None = None) -> bool:
        """Kill the server, or the workers of a kind; whether there was one."""
        if kind is None:
            alive = self.served.process.poll() is None
            self.served.kill()
            return alive
        victims = self.family(kind)
        for process in victims:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return bool(victims)

    def end(self) -> None:
        """Stop the server as an admin would."""
        if self.served.process.poll() is None:
            self.served.stop()

    def _launch(self) -> Served:
        self.state_dir.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", self._module, "serve", *self._flags],
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
                },
            )
        # One core for all of them: the threads of small networks only wait for each other, most where cores are busy.
        if hasattr(psutil.Process, "cpu_affinity"):
            psutil.Process(process.pid).cpu_affinity([process.pid % (psutil.cpu_count() or 1)])
        served = Served(process, self.state_dir, self.log, [self.url])
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert process.poll() is None, self.log.read_text()
            with suppress(requests.ConnectionError):
                served.get("/api/v1/health", timeout=5)
                return served
            time.sleep(0.05)
        served.kill()
        raise AssertionError(f"no answer within {START_SECONDS} s:\n{self.log.read_text()}")


def free_port() -> int:
    """A port that nobody listens on, nor is likely to be given to an outgoing connection while its server is dead."""
    for port in range(20000 + os.getpid() % 10000, 32000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def patiently(ask: Callable[[], T], seconds: float = 60.0) -> T:
    """What `ask` returns once there is a server to answer it."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except requests.ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _kind(line: Sequence[str]) -> str:
    """The kind of worker that a command line starts; `server` for the server itself."""
    return line[line.index("--kind") + 1] if "--kind" in line else "server"


def _start_light_trainings() -> None:
    """Have the server start the light program for trainings and for what is asked before them."""
    start = asyncio.create_subprocess_exec

    async def start_light(*command: str, **options: Any) -> asyncio.subprocess.Process:
        light = LIGHT if _kind(command) in {"training", "inspector"} else REAL
        return await start(*(light if part == REAL else part for part in command), **options)

    setattr(asyncio, "create_subprocess_exec", start_light)  # noqa: B010  # its type has thirty arguments


if __name__ == "__main__":
    _start_light_trainings()
    cli.main()


def _paths() -> list[str]:
    """What the environment names already."""
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
