"""The messages between the server and a worker: one JSON object a line.

To the worker: `{"id", "verb", "body", "request_id", "job_id"}`, `{"cancel": id}`, `{"tell": word}`, or `{"ping": id}`.
From the worker: `{"id", "began"}` when it turns to a request, any number of `{"id", "event"}`, then `{"id", "reply"}`
or `{"id", "error"}` with an error's wire form; a line has `MAX_LINE` bytes at most. A ping is replied to at once,
whatever else is going on.
"""

from __future__ import annotations

import json
from typing import Any

from segserve.errors import TooLargeError, human_bytes

MAX_LINE = 16 * 2**20


def encode(message: dict[str, Any]) -> bytes:
    """A message as a line of bytes."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def encode_reply(message: dict[str, Any]) -> bytes:
    """The same for what ends in answers and records: text that no UTF-8 can carry is told with question marks.

    A reply that is too long for a line becomes an error: a line that could not be read would end the process.
    """
    line = _reply_line(message)
    if len(line) > MAX_LINE and "reply" in message:
        error = TooLargeError(
            f"The answer takes {human_bytes(len(line))}, and {human_bytes(MAX_LINE)} are the most: ask for less at a "
            "time."
        )
        return _reply_line({"id": message["id"], "error": error.to_wire()})
    return line


def _reply_line(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The message in a line."""
    message: dict[str, Any] = json.loads(line)
    return message
