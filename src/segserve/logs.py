"""Log lines: one format for every process, each line carrying the id of the request or the job it belongs to."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]

NOBODY = "-"
request_id: ContextVar[str] = ContextVar("request_id", default=NOBODY)
job_id: ContextVar[str] = ContextVar("job_id", default="")

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
TEXT = "%(asctime)s %(levelname)-7s [%(cause)s] %(name)s: %(message)s"
PRINTED = "segserve.worker.stderr"


def about_job(identity: str) -> None:
    """From here on this task's lines belong to a job, and to no request: jobs outlive those who sent them."""
    request_id.set(NOBODY)
    job_id.set(identity)


def cause() -> str:
    """What the line at hand belongs to: `job ID`, `request ID`, or `-`."""
    if job_id.get():
        return f"job {job_id.get()}"
    return NOBODY if request_id.get() == NOBODY else f"request {request_id.get()}"


def one_line(text: str) -> str:
    """The text with control characters written as escapes."""
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def configure(*, debug: bool = False, form: LogFormat = "text") -> None:
    """Send this process's log to stderr, at level DEBUG or INFO, as text or as a JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _OneLine(TEXT))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # Only our own log gets louder: other libraries' debug lines (multipart parsing, asyncio) drown what matters.
    logging.getLogger("segserve").setLevel(logging.DEBUG if debug else logging.INFO)
    logging.captureWarnings(form == "json")


def relayed(line: str, form: LogFormat, pid: int) -> str:
    """A line of another process's stderr as it goes into this one's.

    Args:
        line: a log line, or whatever a native library or a dying interpreter prints.
        form: of both processes' logs.
        pid: of the other process.
    """
    if form == "text" or _is_json_line(line):
        return line
    return json.dumps({**_heading(datetime.now(UTC), "INFO", PRINTED), "message": line, "pid": pid})


class _OneLine(logging.Formatter):
    """Writes control characters as escapes, so that nothing a client sends can look like a line of ours."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the base class's name
        record.cause = cause().removeprefix("request ")
        return one_line(super().formatMessage(record))


class _Json(logging.Formatter):
    """One JSON object a line; a record's `fields` become fields."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC)
        line = {**_heading(when, record.levelname, record.name), "message": record.getMessage()}
        if request_id.get() != NOBODY:
            line["request_id"] = request_id.get()
        if job_id.get():
            line["job_id"] = job_id.get()
        line |= {"pid": os.getpid(), **getattr(record, "fields", {})}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _heading(when: datetime, level: str, logger: str) -> dict[str, Any]:
    time = when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"time": time, "level": level, "logger": logger}


def _is_json_line(line: str) -> bool:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"time", "level", "logger", "message"} <= found.keys()
