"""Memory for tiles in hand: never more than there is, and never for ever without."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait

import numpy as np
import pytest

from segserve.errors import TooLargeError
from segserve.tiles import room
from segserve.tiles.header import Header
from segserve.tiles.room import Room, tile_need

MOST = 100


def test_those_at_work_have_no_more_than_there_is_together() -> None:
    place, lock = Room(), threading.Lock()
    held, together = [0], []

    def work(need: int) -> None:
        with place.taken(need, MOST, "t"):
            with lock:
                held[0] += need
                together.append(held[0])
            threading.Event().wait(0.001)
            with lock:
                held[0] -= need

    needs = [30, 60, 500, 10, 100, 1] * 10  # one that needs more than there is has all of it
    with ThreadPoolExecutor(len(needs)) as pool:
        list(pool.map(work, needs))
    assert len(together) == len(needs)
    assert max(size for size in together if size != 500) <= MOST
    assert any(size not in needs for size in together)


def test_room_is_left_by_those_who_fail() -> None:
    place = Room()
    for _ in range(3):
        with pytest.raises(KeyError), place.taken(MOST, MOST, "t"):
            raise KeyError


def test_what_the_machine_has_not_is_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "available_memory", lambda: 2**26)
    place = Room()
    with (
        pytest.raises(TooLargeError, match=r"Tile t needs 128\.0 MiB .* 64\.0 MiB are free"),
        place.taken(2**27, MOST, "t"),
    ):
        raise AssertionError
    with place.taken(2**26, MOST, "t"):
        pass


def test_memory_that_others_hold_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    large, most = 2**26, 2**27
    free, looked = [most], threading.Event()

    def look() -> int:
        looked.set()
        return free[0]

    monkeypatch.setattr(room, "available_memory", look)
    place = Room()

    def work() -> None:
        with place.taken(large, most, "t"):
            pass

    with ThreadPoolExecutor(1) as pool:
        with place.taken(10, most, "first"):
            free[0] = large - 1
            waiting = pool.submit(work)
            assert looked.wait(10)
            free[0] = most
        waiting.result(10)


def test_a_tile_that_nobody_wants_leaves_the_line() -> None:
    place, hung_up = Room(), threading.Event()

    def work(abandoned: Callable[[], bool]) -> None:
        with place.taken(MOST, MOST, "t", abandoned):
            raise AssertionError

    with ThreadPoolExecutor(1) as pool, place.taken(10, MOST, "first"):
        waiting = pool.submit(work, hung_up.is_set)
        assert not wait([waiting], 0.2).done
        hung_up.set()
        with pytest.raises(CancelledError):
            waiting.result(10)
        with place.taken(10, MOST, "behind it"):
            pass


def test_a_tile_needs_room_for_its_values_and_its_map() -> None:
    assert tile_need(Header(10, 20, 3, np.dtype(np.uint8)), 5) == 10 * 20 * (3 + 5) * 4
    assert tile_need(Header(10, 20, 3, np.dtype(np.float64)), 5) == 10 * 20 * (3 * 8 + 5 * 4)
