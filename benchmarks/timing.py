"""How long things take, measured so that a machine whose speed drifts is fair to all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_turn(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of `rounds` measurements of each contender.

    They take turns: a machine that slows down slows all of them.

    Args:
        contenders: by name; each does its work and returns the seconds it took.
        rounds: how often each is asked.
    """
    measured = [[contender() for contender in contenders.values()] for _ in range(rounds)]
    return dict(zip(contenders, map(statistics.median, zip(*measured, strict=True)), strict=True))
