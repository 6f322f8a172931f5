"""Log lines: one format for every process, each line carrying the id of the request it belongs to."""

from __future__ import annotations

import logging
import re
import sys
from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("request_id", default="-")

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
FORMAT = "%(asctime)s %(levelname)-7s [%(request_id)s] %(name)s: %(message)s"


class _RequestIdFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


class _OneLine(logging.Formatter):
    """Writes control characters as escapes, so that nothing a client sends can look like a line of ours."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the base class's name
        return one_line(super().formatMessage(record))


def one_line(text: str) -> str:
    """The text with control characters written as escapes."""
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def configure(*, debug: bool = False) -> None:
    """Send this process's log to stderr, at level DEBUG or INFO."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(FORMAT))
    handler.addFilter(_RequestIdFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # Only our own log gets louder: other libraries' debug lines (multipart parsing, asyncio) drown what matters.
    logging.getLogger("segserve").setLevel(logging.DEBUG if debug else logging.INFO)
