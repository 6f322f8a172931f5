"""Planes shared among threads: numpy lets others run while it works on one that is large enough."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

from segserve.devices import compute_threads

LEAST_VALUES = 2**17
"""Below this many values in all, handing them to threads takes longer than it saves."""


def over_planes(planes: int, values: int, work: Callable[[int, int], None]) -> None:
    """Do something to every plane, by as many threads as there are cores.

    Args:
        planes: how many there are.
        values: how many numbers all of them hold.
        work: does planes [start, stop); called from several threads, never twice for a plane.
    """
    parts = min(compute_threads(), planes) if values >= LEAST_VALUES else 1
    edges = [planes * part // parts for part in range(parts + 1)]
    if parts == 1:
        work(0, planes)
        return
    for done in [_pool().submit(work, start, stop) for start, stop in pairwise(edges)]:
        done.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(compute_threads(), "planes")
