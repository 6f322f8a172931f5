"""A call as the worker sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Cancelled(Exception):  # noqa: N818  # not a failure: whoever asked has gone
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Request:
    """One call; see `placement.Call`.

    Attributes:
        cancelled: whether nobody waits for the answer any more.
        told: whether a word has been said to this worker while it works.
        emit: sends an event, JSON, to whoever listens to the call; from any thread.
    """

    body: dict[str, Any]
    inputs: dict[str, Path]
    outputs: dict[str, Path]
    scratch: Path | None
    cancelled: Callable[[], bool]
    told: Callable[[str], bool]
    emit: Callable[[dict[str, Any]], None]
