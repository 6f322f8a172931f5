"""Workers as child processes of the server, on this machine.

A worker hears of the server's end, however it ends, by its standard input closing: that needs no help from the
operating system that not all of them give.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import secrets
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from segserve.errors import SegserveError
from segserve.logs import LogFormat, job_id, relayed, request_id
from segserve.workers.placement.base import Call, Kind, Listener, WorkerDiedError
from segserve.workers.wire import MAX_LINE, decode, encode

log = logging.getLogger(__name__)

MARK = "SEGSERVE_START"  # in a worker's environment
CANCEL_SECONDS = 10.0
LOG_SECONDS = 1.0
KILLED_BY_FORCE = -getattr(signal, "SIGKILL", 9)
KILLED = frozenset({KILLED_BY_FORCE, -signal.SIGTERM})


class LocalPlacement:
    """Starts workers on this machine."""

    def __init__(self, state_dir: Path, *, debug: bool = False, log_format: LogFormat = "text") -> None:
        self._state_dir = state_dir
        self._debug = debug
        self._log_format: LogFormat = log_format

    async def start(self, label: str, kind: Kind) -> LocalWorker:
        """Start a child process; see `Placement`."""
        flags = ["--kind", kind, "--state-dir", str(self._state_dir), "--log-format", self._log_format]
        flags += ["--debug"] if self._debug else []
        # -P: the folder that the server happens to be started in is no place to take code from.
        command = [sys.executable, "-P", "-m", "segserve.workers.process", *flags, "--", label]
        mark = secrets.token_hex(8)
        try:
            # A session of its own: Ctrl-C in the server's terminal is the server's to handle.
            process = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, stderr=PIPE, limit=MAX_LINE, env=_environment(mark), **_detached()
            )
        except RuntimeError as error:
            # Of Python, which watches some systems' processes in threads, and has begun the process by then.
            _end_marked(mark)
            raise OSError(errno.EAGAIN, str(error)) from None
        return LocalWorker(process, self._log_format)


def _environment(mark: str) -> dict[str, str]:
    """Ours, CUDA's devices in the driver's order, by which the server counts them, and what tells this process."""
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", **os.environ, MARK: mark}


def _end_marked(mark: str) -> None:
    """End the process of this mark, if there is one: nobody else would, as starting it is said to have failed."""
    with suppress(psutil.Error, OSError):
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                if child.environ().get(MARK) == mark:
                    child.kill()


def _detached() -> dict[str, Any]:
    if os.name == "nt":
        return {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
    return {"start_new_session": True}


class LocalWorker:
    """A child process, the calls it has not answered yet and the end of its log."""

    def __init__(self, process: Process, log_format: LogFormat) -> None:
        self._process = process
        self._log_format: LogFormat = log_format
        self._ids = itertools.count(1)
        self._pending: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._begun: set[int] = set()
        self._listeners: dict[int, Listener] = {}
        self._last_lines: deque[str] = deque(maxlen=20)
        self._dead = False
        self._ended_for = ""  # why the server itself ended the process
        self._tasks = [asyncio.create_task(self._read_replies()), asyncio.create_task(self._read_log())]

    @property
    def alive(self) -> bool:
        """See `Worker`."""
        return not self._dead and self._process.returncode is None

    async def call(self, call: Call, listen: Listener | None = None) -> dict[str, Any]:
        """See `Worker`."""
        number = next(self._ids)
        reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        if not self.alive:
            raise self._death(began=False)
        self._pending[number] = reply
        if listen:
            self._listeners[number] = listen
        self._send(
            {
                "id": number,
                "verb": call.verb,
                "body": call.body,
                "inputs": {name: str(path) for name, path in call.inputs.items()},
                "outputs": {name: str(path) for name, path in call.outputs.items()},
                "scratch": str(call.scratch) if call.scratch else None,
                "request_id": request_id.get(),
                "job_id": job_id.get(),
            }
        )
        try:
            return await asyncio.shield(reply)
        except asyncio.CancelledError:
            await self._cancel(number, reply)
            raise
        finally:
            self._pending.pop(number, None)
            self._begun.discard(number)
            self._listeners.pop(number, None)

    @property
    def pid(self) -> int:
        """See `ObservableWorker`."""
        return self._process.pid

    async def ping(self) -> None:
        """See `ObservableWorker`."""
        if not self.alive:
            raise self._death(began=False)
        number = next(self._ids)
        reply = self._pending[number] = asyncio.get_running_loop().create_future()
        self._send({"ping": number})
        try:
            await reply
        finally:
            self._pending.pop(number, None)

    def memory(self) -> int:
        """See `ObservableWorker`."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def tell(self, word: str) -> None:
        """See `Worker`."""
        self._send({"tell": word})

    async def stop(self) -> None:
        """See `Worker`. A worker holds nothing worth saving, so it is killed."""
        self._dead = True
        self._ended_for = self._ended_for or "its process was ended by the server"
        self._kill()
        await self._process.wait()
        # Not for ever: a process that a library forked off may keep the pipes open.
        _, open_still = await asyncio.wait(self._tasks, timeout=LOG_SECONDS)
        for task in open_still:
            task.cancel()

    def _kill(self) -> None:
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def _cancel(self, number: int, reply: asyncio.Future[dict[str, Any]]) -> None:
        """Stop a call and wait until its files are the worker's no more."""
        self._send({"cancel": number})
        while not (await asyncio.wait([reply], timeout=CANCEL_SECONDS))[0]:
            if number in self._begun or not self._begun:  # else it only waits for others, who are not to suffer
                await self.stop()
                return
        if not reply.cancelled():
            reply.exception()  # seen: nobody else will ask

    def _send(self, message: dict[str, Any]) -> None:
        if self._process.stdin and not self._process.stdin.is_closing():
            self._process.stdin.write(encode(message))

    async def _read_replies(self) -> None:
        stdout = self._process.stdout
        try:
            while stdout and (line := await stdout.readline()):
                self._settle(decode(line))
        except (ValueError, KeyError, TypeError):
            log.exception("a worker's reply makes no sense")
            self._ended_for = "its process was ended by the server, which could not make sense of what it said"
            self._kill()
        finally:
            self._dead = True
            await self._process.wait()
            await asyncio.wait(self._tasks[1:], timeout=LOG_SECONDS)  # its last words may tell the cause
            for number, reply in self._pending.items():
                if not reply.done():
                    reply.set_exception(self._death(began=number in self._begun))

    def _settle(self, message: dict[str, Any]) -> None:
        number = message["id"]
        reply = self._pending.get(number)
        if reply is None or reply.done():
            return
        if "began" in message:
            self._begun.add(number)
        elif "event" in message:
            if number in self._listeners:
                self._listeners[number](message["event"])
        elif "error" in message:
            reply.set_exception(SegserveError.from_wire(message["error"]))
        else:
            reply.set_result(message["reply"])

    async def _read_log(self) -> None:
        """Pass the worker's log on, line by line: its own lines carry their level and request already."""
        stderr = self._process.stderr
        while stderr:
            try:
                line = await stderr.readline()
            except ValueError:  # longer than the limit: its end is still to come
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self._last_lines.append(text)
            sys.stderr.write(f"{relayed(text, self._log_format, self.pid)}\n")

    def _death(self, *, began: bool) -> WorkerDiedError:
        return WorkerDiedError(self._cause(), began=began, killed=self._process.returncode in KILLED)

    def _cause(self) -> str:
        code = self._process.returncode
        if self._ended_for:
            return self._ended_for
        if code == KILLED_BY_FORCE:
            return "its process was killed, most likely because the machine ran out of memory"
        if code in KILLED:
            return "its process was ended from outside"
        if code is not None and code < 0:
            return f"its process crashed ({_signal_name(-code)})"
        if any("MemoryError" in line or "bad_alloc" in line for line in self._last_lines):
            return "its process ran out of memory"
        return f"its process ended unexpectedly (exit status {code})"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
