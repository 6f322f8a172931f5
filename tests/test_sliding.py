"""The rolling slab against the slow way: all logits of the whole volume, averaged, then decided."""

from __future__ import annotations

import math
import tracemalloc
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segserve.errors import BadInputError
from segserve.volumes.blend import window_weights
from segserve.volumes.grid import Grid, WindowStarts, choose_grid
from segserve.volumes.labels import above, highest_class
from segserve.volumes.memory import volume_need
from segserve.volumes.sliding import Decide, Sweep, Windows, check_finite

SMALL = st.integers(1, 9)


class PlaceNetwork:
    """An engine whose integer logits depend on value and place in the patch, so that any misplaced voxel shows."""

    name, device, precision = "test", "cpu", "float32"

    def __init__(self, batch: int, patch: tuple[int, int, int], classes: int) -> None:
        self.input_shape: tuple[int, ...] = (batch, 1, *patch)
        generator = np.random.default_rng(math.prod(patch) + classes)
        self._weights = generator.integers(-9, 9, (classes, *patch)).astype(np.float32)
        self.seen = 0

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        assert batch.shape == self.input_shape
        assert batch.dtype == np.float32
        self.seen += 1
        return batch * self._weights + self._weights[::-1]


def slow(engine: PlaceNetwork, volume: NDArray[np.float32], stride: tuple[int, int, int]) -> NDArray[np.float32]:
    """The mean logits (K, Z, Y, X) of every window, padding by repetition where the volume is smaller."""
    patch = engine.input_shape[2:]
    gaps = [max(size - length, 0) for size, length in zip(patch, volume.shape, strict=True)]
    padded = np.pad(volume, [(gap // 2, gap - gap // 2) for gap in gaps], mode="edge")
    starts = [WindowStarts(*axis) for axis in zip(padded.shape, patch, stride, strict=True)]
    total = np.zeros((engine(np.zeros(engine.input_shape, np.float32)).shape[1], *padded.shape), np.float32)
    count = np.zeros(padded.shape, np.float32)
    for corner in product(*starts):
        place = tuple(slice(start, start + size) for start, size in zip(corner, patch, strict=True))
        batch = np.zeros(engine.input_shape, np.float32)
        batch[0, 0] = padded[place]
        total[(slice(None), *place)] += engine(batch)[0]
        count[place] += 1
    inside = tuple(slice(gap // 2, gap // 2 + length) for gap, length in zip(gaps, volume.shape, strict=True))
    return np.asarray((total / count)[(slice(None), *inside)])


def fast(
    engine: PlaceNetwork,
    volume: NDArray[np.float32],
    grid: Grid,
    classes: int,
    decide: Decide,
    windows: Windows | None = None,
) -> NDArray[Any]:
    labels = np.full(volume.shape, 255, np.uint8)
    seen: list[int] = []

    def read(start: int, stop: int) -> NDArray[np.float32]:
        return volume.take(range(start, stop), axis=grid.sweep)

    def take(start: int, stop: int) -> NDArray[Any]:
        return np.moveaxis(labels, grid.sweep, 0)[start:stop]

    sweep = Sweep(engine, grid, classes, decide, windows or Windows(engine.input_shape[0]))
    sweep.run(read, take, lambda done, total: seen.append(done))
    assert seen == sorted(set(seen))
    assert seen[-1] == grid.patches
    return labels


@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(SMALL, SMALL, SMALL), patch=st.tuples(SMALL, SMALL, SMALL), batch=st.integers(1, 3), data=st.data()
)
def test_labels_equal_those_of_the_slow_way(
    shape: tuple[int, int, int], patch: tuple[int, int, int], batch: int, data: st.DataObject
) -> None:
    z, y, x = (data.draw(st.integers(1, size)) for size in patch)
    classes = data.draw(st.integers(2, 5))
    engine = PlaceNetwork(batch, patch, classes)
    volume = np.random.default_rng(0).integers(-9, 9, shape).astype(np.float32)
    mean = slow(engine, volume, (z, y, x))
    for sweep in range(3):
        labels = fast(engine, volume, Grid(shape, patch, (z, y, x), sweep), classes, highest_class)
        chosen = np.take_along_axis(mean, labels[None].astype(np.int64), 0)[0]
        # The mean divides, the slab does not: where both top classes are equal, rounding may prefer either.
        np.testing.assert_allclose(chosen, mean.max(axis=0), rtol=1e-6)


@pytest.mark.parametrize(
    ("decide", "threshold"),
    [
        (above(0.5, "sigmoid"), 0.0),
        (above(0.5, "none"), 0.5),
        (above(0.25, "none"), 0.25),
        (above(0.75, "sigmoid"), math.log(3)),
        (above(0.25, "sigmoid"), -math.log(3)),
    ],
)
def test_one_class_is_decided_by_its_mean(decide: Decide, threshold: float) -> None:
    engine = PlaceNetwork(1, (4, 4, 4), 1)
    volume = np.random.default_rng(1).integers(-9, 9, (7, 9, 6)).astype(np.float32)
    labels = fast(engine, volume, Grid((7, 9, 6), (4, 4, 4), (2, 2, 2), 1), 1, decide)
    np.testing.assert_array_equal(labels, slow(engine, volume, (2, 2, 2))[0] > threshold)


@given(classes=st.integers(1, 300), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_highest_class_is_numpys_argmax_ties_included(classes: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 4, (classes, 5, 6)).astype(np.float32)
    out = np.empty((5, 6), np.uint16)
    highest_class(scores, np.ones((5, 6), np.float32), out)
    np.testing.assert_array_equal(out, scores.argmax(axis=0))


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_network_that_gives_no_number_is_refused(odd: float) -> None:
    logits = np.zeros((2, 3, 3, 3), np.float32)
    logits[1, 2, 0, 1] = odd
    with pytest.raises(BadInputError, match="NaN or infinite"):
        check_finite(logits)


def test_large_logits_whose_sum_overflows_are_accepted() -> None:
    logits = np.full((2, 3, 3, 3), 3e38, np.float32)
    with np.errstate(over="ignore"):
        assert np.isinf(logits.sum())
    check_finite(logits)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(SMALL, SMALL, SMALL),
    patch=st.tuples(SMALL, SMALL, SMALL),
    batch=st.integers(1, 4),
    blend=st.sampled_from(["constant", "gaussian"]),
    data=st.data(),
)
def test_uniform_windows_change_nothing_but_the_work(
    shape: tuple[int, int, int], patch: tuple[int, int, int], batch: int, blend: str, data: st.DataObject
) -> None:
    z, y, x = (data.draw(st.integers(1, size)) for size in patch)
    sweep = data.draw(st.integers(0, 2))
    random = np.random.default_rng(data.draw(st.integers(0, 9)))
    volume = np.zeros(shape, np.float32)
    corner = tuple(slice(random.integers(0, size)) for size in shape)
    volume[corner] = random.integers(0, 3, volume[corner].shape)
    grid = Grid(shape, patch, (z, y, x), sweep)
    given = []
    for skip in (False, True):
        engine = PlaceNetwork(batch, patch, 3)
        labels = fast(engine, volume, grid, 3, highest_class, Windows(batch, window_weights(blend, patch), skip))
        given.append((labels, engine.seen))
    np.testing.assert_array_equal(given[0][0], given[1][0])
    assert given[1][1] <= given[0][1]


@pytest.mark.parametrize("batch", [1, 3])
def test_air_is_computed_once(batch: int) -> None:
    volume = np.full((24, 16, 16), -1.0, np.float32)
    volume[:4, :4, :4] = np.arange(64).reshape(4, 4, 4)
    engine = PlaceNetwork(batch, (4, 4, 4), 2)
    grid = Grid((24, 16, 16), (4, 4, 4), (4, 4, 4), 0)
    fast(engine, volume, grid, 2, highest_class, Windows(batch, None, skip_uniform=True))
    assert engine.seen <= 2  # one window with something in it, and one of air
    assert grid.patches == 96


class EnoughError(Exception):
    """The client has hung up."""


@pytest.mark.parametrize("blend", ["constant", "gaussian"])
def test_a_long_axis_takes_no_more_memory_than_was_foreseen(blend: str) -> None:
    patch = (1, 1, 960)
    grid = choose_grid((1, 1, 2**24), patch, (1, 1, 12), slowest=0)
    engine, weights = PlaceNetwork(1, patch, 2), window_weights(blend, patch)
    total: set[int] = set()

    def read(start: int, stop: int) -> NDArray[np.float32]:
        return np.zeros((1, 1, stop - start), np.float32)

    def take(start: int, stop: int) -> NDArray[Any]:
        return np.empty((stop - start, 1, 1), np.uint8)

    def progress(done: int, of: int) -> None:
        total.add(of)
        if done == 3:
            raise EnoughError

    tracemalloc.start()
    with pytest.raises(EnoughError):
        Sweep(engine, grid, 2, highest_class, Windows(1, weights)).run(read, take, progress)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == {(2**24 - 960 + 11) // 12 + 1}
    window = 4 * math.prod(patch)
    # What is foreseen, and a few windows on their way through the network.
    assert peak < volume_need(grid, 2, weighted=weights is not None) + 12 * window + 2**16


def test_negative_zero_is_not_taken_for_zero() -> None:
    volume = np.zeros((4, 4, 8), np.float32)
    volume[..., 4:] = -0.0
    engine = PlaceNetwork(1, (4, 4, 4), 2)
    fast(
        engine, volume, Grid((4, 4, 8), (4, 4, 4), (4, 4, 4), 0), 2, highest_class, Windows(1, None, skip_uniform=True)
    )
    assert engine.seen == 2
