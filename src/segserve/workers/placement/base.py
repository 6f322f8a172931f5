"""The seam between the supervisor and wherever processes are started.

Nothing above it may assume that a worker is a child process or sees the server's files: files cross it by being
named in a call, and a placement on another machine would carry them over and back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Kind = Literal["volume", "tiles", "inspector", "training"]
Listener = Callable[[dict[str, Any]], None]


class WorkerDiedError(Exception):
    """The worker ended while it was needed; the message is the likely cause, for a user to read.

    Attributes:
        began: whether it had begun the call. One that it had not begun may be asked of another worker.
        killed: whether somebody else ended it, so that what it was doing is not to blame.
    """

    def __init__(self, cause: str, *, began: bool, killed: bool = False) -> None:
        super().__init__(cause)
        self.began = began
        self.killed = killed


@dataclass(frozen=True)
class Call:
    """One thing asked of a worker.

    Attributes:
        verb: what to do, a key of the worker's verbs.
        body: JSON.
        inputs: files the worker reads, by the name the verb knows them under.
        outputs: files the worker writes before it replies.
        scratch: a folder on this side whose life is the call's; None if the verb needs none.
    """

    verb: str
    body: dict[str, Any]
    inputs: dict[str, Path] = field(default_factory=dict)
    outputs: dict[str, Path] = field(default_factory=dict)
    scratch: Path | None = None


class Worker(Protocol):
    """A process that computes for the server."""

    @property
    def alive(self) -> bool:
        """Whether it can still be called."""
        ...

    async def call(self, call: Call, listen: Listener | None = None) -> dict[str, Any]:
        """Ask, and wait for the reply. Cancelling this stops the worker's work within one patch.

        Args:
            call: what is asked.
            listen: hears the events that the verb emits before its reply.

        Raises:
            SegserveError: the verb failed in an expected way.
            WorkerDiedError: the worker ended first.
        """
        ...

    def tell(self, word: str) -> None:
        """Say something to the worker while it works, such as `pause`; the verb may heed it or not."""
        ...

    async def stop(self) -> None:
        """End the process, whatever it is doing, and wait until it is gone."""
        ...


class Placement(Protocol):
    """Starts workers."""

    async def start(self, label: str, kind: Kind) -> Worker:
        """Start a worker of a kind; `label` names it to whoever lists processes.

        Raises:
            OSError: it cannot be started now.
        """
        ...
