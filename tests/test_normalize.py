"""Normalisation and training-set statistics against formulas written out with numpy in float64."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from segserve.tiles.normalize import Normalization, Strategy, normalize
from segserve.tiles.statistics import MAX_SAMPLES, ChannelStats, measure

STRATEGIES = get_args(Strategy)
GENERATOR = np.random.default_rng(0)
TILES: dict[str, NDArray[Any]] = {
    "uint8": GENERATOR.integers(0, 200, (30, 20, 3), dtype=np.uint8),
    "uint16": GENERATOR.integers(0, 60000, (30, 20, 3), dtype=np.uint16),
    "float32": (GENERATOR.normal(size=(30, 20, 3)) * [1, 10, 100]).astype(np.float32),
}


def on_paper(values: NDArray[Any], rule: Normalization, known: ChannelStats) -> NDArray[np.float64]:
    """One channel, or all at once, as the protocol's text has it."""
    x = values.astype(np.float64)

    def figure(name: str, own: float) -> float:
        given = getattr(known, name)
        return float(own if given is None else given)

    if rule.strategy == "min_max":
        low, high = figure("min", x.min()), figure("max", x.max())
        return (x - low) / (high - low)
    if rule.strategy == "percentile_99":
        low = figure("p1", np.percentile(x, 100 - rule.clip_percentile))
        high = figure("p99", np.percentile(x, rule.clip_percentile))
        return (np.clip(x, low, high) - low) / (high - low)
    if rule.strategy == "z_score":
        z = (x - figure("mean", x.mean())) / figure("std", x.std())
        return (np.clip(z, -5, 5) + 5) / 10
    low = figure("min", 0 if rule.min is None else rule.min)
    high = figure("max", 255 if rule.max is None else rule.max)
    return (np.clip(x, low, high) - low) / (high - low)


def close(result: NDArray[np.float32], expected: NDArray[np.float64]) -> None:
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", TILES)
@pytest.mark.parametrize("clip", [99.0, 90.0])
def test_a_tile_by_its_own_figures(strategy: Strategy, kind: str, clip: float) -> None:
    tile, nothing = TILES[kind], ChannelStats()
    together = Normalization(strategy, per_channel=False, clip_percentile=clip)
    close(normalize(tile, together), on_paper(tile, together, nothing))
    apart = Normalization(strategy, per_channel=True, clip_percentile=clip)
    close(normalize(tile, apart), np.dstack([on_paper(tile[..., c], apart, nothing) for c in range(3)]))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", TILES)
def test_a_tile_by_given_figures(strategy: Strategy, kind: str) -> None:
    tile = TILES[kind]
    stats = [ChannelStats(3, 120, 1, 150, 60 + c, 20 + c) for c in range(2)]
    apart = Normalization(strategy)
    expected = [on_paper(tile[..., c], apart, stats[c if c < 2 else 0]) for c in range(3)]
    close(normalize(tile, apart, stats), np.dstack(expected))
    together = Normalization(strategy, per_channel=False)
    close(normalize(tile, together, stats), on_paper(tile, together, stats[0]))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("missing", ["p1", "p99", "min", "max", "mean", "std"])
def test_what_an_entry_lacks_is_the_tiles_own(strategy: Strategy, missing: str) -> None:
    tile = TILES["uint8"]
    wire = ChannelStats(3, 120, 1, 150, 60, 20).to_wire()
    del wire[missing]
    known = ChannelStats.from_wire(wire)
    rule = Normalization(strategy, per_channel=False)
    close(normalize(tile, rule, [known]), on_paper(tile, rule, known))


def test_fixed_range_is_what_was_asked_for() -> None:
    rule = Normalization("fixed_range", min=-1, max=3)
    tile = np.array([[[-2.0], [-1.0], [1.0], [5.0]]], np.float32)
    np.testing.assert_array_equal(normalize(tile, rule).ravel(), [0, 0, 0.5, 1])
    (measured,) = measure([tile], rule, seed=0)
    np.testing.assert_array_equal(normalize(tile, rule, [measured]), normalize(tile, rule))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("value", [0, 0.1, 200])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("measured", [True, False])
def test_a_tile_without_contrast(dtype: type[np.generic], value: float, per_channel: bool, measured: bool) -> None:
    tile = np.full((50, 60, 3), value, dtype)
    for strategy, expected in (("min_max", 0), ("percentile_99", 0), ("z_score", 0.5)):
        rule = Normalization(strategy, per_channel=per_channel)  # type: ignore[arg-type]
        stats = measure([tile], rule, seed=0) if measured else None
        np.testing.assert_array_equal(normalize(tile, rule, stats), np.full(tile.shape, expected))


def test_one_flat_channel_does_not_touch_the_others() -> None:
    tile = TILES["float32"].copy()
    tile[..., 1] = 7
    result = normalize(tile, Normalization("z_score"))
    np.testing.assert_array_equal(result[..., 1], 0.5)
    close(result[..., 2], on_paper(tile[..., 2], Normalization("z_score"), ChannelStats()))


@given(
    tile=arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    strategy=st.sampled_from(STRATEGIES),
    per_channel=st.booleans(),
)
def test_any_tile_comes_out_between_0_and_1(
    tile: NDArray[np.float32], strategy: Strategy, per_channel: bool
) -> None:  # fmt: skip
    before = tile.copy()
    result = normalize(tile, Normalization(strategy, per_channel=per_channel))
    assert result.shape == tile.shape
    assert (result >= 0).all()
    assert (result <= 1 + 1e-6).all()
    np.testing.assert_array_equal(tile, before)


def test_wire_form_is_the_protocols_and_forgives() -> None:
    stats = ChannelStats(1, 2, 0, 3, 1.5, 0.5)
    assert list(stats.to_wire()) == ["p1", "p99", "min", "max", "mean", "std"]
    assert ChannelStats.from_wire(stats.to_wire()) == stats
    odd = {"p1": "x", "p99": float("nan"), "min": True, "max": None, "mean": 10**400, "unknown": 1, "std": 2}
    assert ChannelStats.from_wire(odd) == ChannelStats(std=2)


@pytest.mark.parametrize("per_channel", [True, False])
def test_statistics_of_a_small_set_are_those_of_all_its_pixels(per_channel: bool) -> None:
    images = [GENERATOR.integers(0, 255, (9 + i, 7, 2), dtype=np.uint8) * (i + 1) for i in range(5)]
    found = measure(images, Normalization(per_channel=per_channel, clip_percentile=95), seed=0)
    pixels = np.concatenate([image.reshape(-1, 2) for image in images]).astype(float)
    for channel in range(2):
        values = pixels[:, channel] if per_channel else pixels
        low, high = np.percentile(values, [5, 95])
        expected = [low, high, values.min(), values.max(), values.mean(), values.std()]
        np.testing.assert_allclose(list(found[channel].to_wire().values()), expected)
    assert len(found) == 2


def test_statistics_of_a_large_set_are_sampled_evenly_and_repeatably() -> None:
    images = [np.full((80, 80, 1), index, np.uint16) for index in range(1000)]
    found = measure(images, Normalization(), seed=3)
    assert found == measure(images, Normalization(), seed=3)
    assert (found[0].min, found[0].max) == (0, 999)
    assert found[0].mean == pytest.approx(499.5, abs=1)
    large = [GENERATOR.normal(5, 2, (1000, 1000, 1)).astype(np.float32)]
    (sampled,) = measure(large, Normalization("z_score"), seed=0)
    assert large[0].size > MAX_SAMPLES
    assert sampled.mean != pytest.approx(large[0].mean(dtype=float), abs=1e-9)
    assert sampled.mean == pytest.approx(5, abs=0.03)
    assert sampled.std == pytest.approx(2, abs=0.03)


def test_statistics_of_extreme_values_are_finite() -> None:
    image = np.array([[[-3e38], [3e38], [1e-40]]], np.float32)
    assert np.isfinite(list(measure([image], Normalization(), seed=0)[0].to_wire().values())).all()
