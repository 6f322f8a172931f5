"""What a story says on the terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def step(title: str) -> Iterator[None]:
    """A part of the story, with how long it took."""
    print(f"\n{title}", flush=True)
    start = time.monotonic()
    yield
    say(f"took {time.monotonic() - start:.1f} s")


def say(line: str) -> None:
    """One line of a part."""
    print(f"   {line}", flush=True)
