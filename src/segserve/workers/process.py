"""The program of a worker process: it does what its standard input asks.

Started as `python -m segserve.workers.process --kind KIND -- LABEL`. Standard output belongs to the replies, so
whatever else prints there, native libraries included, is sent to standard error.
"""

from __future__ import annotations

import argparse
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from segserve import logs
from segserve.errors import SegserveError, TooLargeError, disk_trouble
from segserve.state import StateDir
from segserve.workers.verbs import Cancelled, Request
from segserve.workers.wire import decode, encode_reply

log = logging.getLogger("segserve.worker")


def _verbs(kind: str, state: StateDir) -> object:
    """The verbs of a kind of worker; only what it needs is imported."""
    if kind == "training":
        from segserve.workers.verbs.training import TrainingVerbs

        return TrainingVerbs()
    if kind == "tiles":
        from segserve.workers.verbs.tiles import TileVerbs

        return TileVerbs(state.cache)
    if kind == "inspector":
        from segserve.workers.verbs.inspection import InspectionVerbs

        return InspectionVerbs()
    from segserve.workers.verbs.volume import VolumeVerbs

    return VolumeVerbs(state.cache)


class Loop:
    """Reads requests in a thread, serves them in the main one, or several at once where the verbs allow it."""

    def __init__(self, requests: BinaryIO, replies: BinaryIO, state: StateDir, verbs: object) -> None:
        self._state = state
        self._gone = False
        self._requests = requests
        self._replies = replies
        self._waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._cancelled: set[int] = set()
        self._told: set[str] = set()
        self._speaking = threading.Lock()
        self._verbs = verbs

    def run(self) -> None:
        """Serve until the server closes its end."""
        reader = threading.Thread(target=self._read, name="requests", daemon=True)
        reader.start()
        at_once = getattr(self._verbs, "at_once", 1)
        if at_once == 1:
            while True:
                self._serve(self._waiting.get())
        with ThreadPoolExecutor(at_once, "serve") as pool:
            while True:
                pool.submit(self._serve, self._waiting.get()).add_done_callback(_end_on_failure)

    def _read(self) -> None:
        """Take in what the server says; once it is gone, and be it in the middle of a line, end this process."""
        try:
            while (line := self._requests.readline()).endswith(b"\n"):
                self._hear(decode(line))
        except Exception:  # whatever it is, nobody would hear the server any more
            log.exception("the server's messages cannot be read")
        finally:
            # The server is gone, and what it kept of its requests, patients' images among them, is nobody's now.
            self._gone = True
            try:
                self._state.sweep()
            finally:
                os._exit(0)

    def _hear(self, message: dict[str, Any]) -> None:
        if "cancel" in message:
            self._cancelled.add(message["cancel"])
        elif "tell" in message:
            self._told.add(message["tell"])
        elif "ping" in message:
            # Not here: whoever writes may wait for a server that is gone, and this thread is to notice that.
            answer = {"id": message["ping"], "reply": {}}
            threading.Thread(target=self._say, args=(answer,), name="ping", daemon=True).start()
        else:
            self._waiting.put(message)

    def _serve(self, message: dict[str, Any]) -> None:
        number = int(message["id"])
        request = Request(
            body=message["body"],
            inputs={name: Path(path) for name, path in message["inputs"].items()},
            outputs={name: Path(path) for name, path in message["outputs"].items()},
            scratch=Path(message["scratch"]) if message["scratch"] else None,
            cancelled=lambda: self._gone or number in self._cancelled,
            told=self._told.__contains__,
            emit=lambda event: self._say({"id": number, "event": event}),
        )
        logs.request_id.set(message["request_id"])
        logs.job_id.set(message["job_id"])
        self._say({"id": number, "began": True})
        answer = _answer(getattr(self._verbs, message["verb"]), request)
        self._cancelled.discard(number)
        self._say({"id": number, **answer})

    def _say(self, message: dict[str, Any]) -> None:
        with self._speaking:
            try:
                self._replies.write(encode_reply(message))
                self._replies.flush()
            except BrokenPipeError:
                threading.Event().wait()  # nobody listens: the reader finds that out too, and ends the process


def _end_on_failure(served: Future[None]) -> None:
    """A request that got no answer would be waited for for ever: whoever waits is told by the end of the process."""
    if error := served.exception():
        log.error("a request could not be answered", exc_info=error)
        os._exit(1)


def _answer(verb: Callable[[Request], dict[str, Any]], request: Request) -> dict[str, Any]:
    """The verb's reply, or its failure in words that may leave the server."""
    try:
        return {"reply": verb(request)}
    except Exception as error:  # a bug must not take the model's process with it
        return {"error": _failure(error).to_wire()}


def _failure(error: Exception) -> SegserveError:
    """What is said of an exception; its details, where it is not an expected one, stay in the log."""
    if isinstance(error, SegserveError):
        return error
    if isinstance(error, Cancelled):
        return SegserveError("The request was cancelled.", status=503)
    if trouble := disk_trouble(error):
        return trouble
    if isinstance(error, MemoryError):
        log.error("out of memory", exc_info=error)
        return TooLargeError("This needs more memory than the server has free.")
    log.error("unexpected failure", exc_info=error)
    return SegserveError(
        f"An unexpected failure in a process of the server; its log tells more ({logs.cause()}).",
        status=500,
    )


def main() -> None:
    """Run a worker."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    parser.add_argument("--kind", choices=("volume", "tiles", "inspector", "training"), required=True)
    parser.add_argument("label", help="names the process to whoever lists them")
    parser.add_argument("--state-dir", type=Path, required=True, help="swept when the server dies")
    arguments = parser.parse_args()
    logs.configure(debug=arguments.debug, form=arguments.log_format)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    state = StateDir(arguments.state_dir)
    Loop(sys.stdin.buffer, replies, state, _verbs(arguments.kind, state)).run()


if __name__ == "__main__":
    main()
