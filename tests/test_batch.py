"""Tiles that share an engine: order, company, and nobody left waiting."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from segserve.engines.base import EngineError
from segserve.tiles.batch import Batcher, Limits
from tests.serving import wait_until

Values = NDArray[np.float32]


class Gate:
    """An engine that waits until it is let through, and remembers what it was given; logits are the values plus one."""

    name, device, precision = "test", "cpu", "float32"

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []
        self.open = threading.Semaphore(0)
        self._buffer: Values = np.zeros(0, np.float32)

    def __call__(self, batch: Values) -> Values:
        self.seen.append(batch.shape)
        assert self.open.acquire(timeout=30)
        if batch.min() < 0:
            raise EngineError("below zero")
        if self._buffer.shape != batch.shape:
            self._buffer = np.empty_like(batch)
        self._buffer[...] = batch + 1  # one buffer for all answers, as engines have
        return self._buffer


class Setting:
    """A gated engine behind a batcher, and threads to ask it."""

    def __init__(self, limits: Limits, pool: ThreadPoolExecutor) -> None:
        self.gate = Gate()
        self._batcher = Batcher(self.gate, limits)
        self._pool = pool

    def ask(
        self, value: float, edge: int = 4, abandoned: threading.Event | None = None, most: int = 99
    ) -> Future[Values]:
        waiting = len(self._batcher._queue)
        given = np.full((2, edge, edge), value, np.float32)
        gone = (abandoned or threading.Event()).is_set
        asked = self._pool.submit(self._batcher.run, given, gone, most=most)
        wait_until(lambda: len(self._batcher._queue) > waiting, 10)
        return asked

    def first(self, value: float = 0.0) -> Future[Values]:
        """Ask for one tile, and wait until the engine is busy with it."""
        asked = self._pool.submit(self._batcher.run, np.full((2, 4, 4), value, np.float32), lambda: False)
        wait_until(lambda: self.gate.seen, 10)
        return asked


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


def through(setting: Setting, batches: int) -> None:
    for _ in range(batches):
        setting.gate.open.release()


def test_what_waits_rides_in_the_next_batch(pool: ThreadPoolExecutor) -> None:
    setting = Setting(Limits(16, 10**6), pool)
    asked = [setting.first(), *(setting.ask(value) for value in (1, 2, 3))]
    through(setting, 2)
    for value, future in enumerate(asked):
        np.testing.assert_array_equal(future.result(10), np.full((2, 4, 4), value + 1))
    assert setting.gate.seen == [(1, 2, 4, 4), (3, 2, 4, 4)]


def test_shapes_travel_apart_oldest_first(pool: ThreadPoolExecutor) -> None:
    setting = Setting(Limits(16, 10**6), pool)
    asked = [setting.first(), setting.ask(1, 8), setting.ask(2, 4), setting.ask(3, 8)]
    through(setting, 3)
    for value, future in enumerate(asked):
        assert future.result(10)[0, 0, 0] == value + 1
    assert setting.gate.seen == [(1, 2, 4, 4), (2, 2, 8, 8), (1, 2, 4, 4)]


@pytest.mark.parametrize(
    ("limits", "sizes"), [(Limits(2, 10**6), [2, 2, 1]), (Limits(16, 40), [2, 2, 1]), (Limits(16, 1), [1] * 5)]
)
def test_batches_are_bounded_in_tiles_and_pixels(pool: ThreadPoolExecutor, limits: Limits, sizes: list[int]) -> None:
    setting = Setting(limits, pool)
    asked = [setting.first(), *(setting.ask(value) for value in range(5))]
    through(setting, 1 + len(sizes))
    assert all(future.result(10).shape == (2, 4, 4) for future in asked)
    assert [shape[0] for shape in setting.gate.seen[1:]] == sizes


def test_a_request_may_ask_for_less_company(pool: ThreadPoolExecutor) -> None:
    setting = Setting(Limits(16, 10**6), pool)
    asked = [setting.first(), setting.ask(1, most=2), setting.ask(2), setting.ask(3)]
    through(setting, 3)
    assert all(future.result(10).shape == (2, 4, 4) for future in asked)
    assert [shape[0] for shape in setting.gate.seen] == [1, 2, 1]


def test_a_fixed_batch_is_filled_up(pool: ThreadPoolExecutor) -> None:
    setting = Setting(Limits(16, 1, fixed=4), pool)
    asked = [setting.first(5), setting.ask(6), setting.ask(7)]
    through(setting, 2)
    assert [future.result(10)[0, 0, 0] for future in asked] == [6, 7, 8]
    assert setting.gate.seen == [(4, 2, 4, 4)] * 2


def test_who_has_gone_is_not_computed_for(pool: ThreadPoolExecutor) -> None:
    setting = Setting(Limits(1, 10**6), pool)
    gone = threading.Event()
    first, abandoned, last = setting.first(), setting.ask(1, abandoned=gone), setting.ask(2)
    gone.set()
    through(setting, 2)
    assert (first.result(10)[0, 0, 0], last.result(10)[0, 0, 0]) == (1, 3)
    with pytest.raises(CancelledError):
        abandoned.result(10)
    assert len(setting.gate.seen) == 2


def test_a_tile_that_fails_is_told_so_and_the_others_of_its_batch_are_computed(pool: ThreadPoolExecutor) -> None:
    setting = Setting(Limits(2, 10**6), pool)
    first = setting.first()
    failing, beside, after = setting.ask(-1), setting.ask(1), setting.ask(2)
    through(setting, 5)  # the first, the two together, each of them alone, the last
    with pytest.raises(EngineError, match="below zero"):
        failing.result(10)
    assert [future.result(10)[0, 0, 0] for future in (first, beside, after)] == [1, 2, 3]
    assert [shape[0] for shape in setting.gate.seen] == [1, 2, 1, 1, 1]
