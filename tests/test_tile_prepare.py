"""Tiles to network input, against the protocol's text written out plainly in numpy."""

from __future__ import annotations

import random
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from segserve.errors import BadInputError
from segserve.models.catalog.architectures import architecture
from segserve.tiles.normalize import Normalization, Strategy, normalize
from segserve.tiles.percentile import percentiles
from segserve.tiles.prepare import Prepared, padded_more, prepare
from segserve.tiles.recipe import Needs, Recipe
from segserve.tiles.statistics import measure
from segserve.training.data.patches import Patches
from segserve.training.feed import Feed
from tests.tile_recipes import ANY, RAW, needs, recipe, tile

STRATEGIES = get_args(Strategy)
KINDS = ("uint8", "uint16", "float32")


def scaled(values: NDArray[np.float64], strategy: str) -> NDArray[np.float64]:
    """By its own figures, as the protocol's section on normalisation has it."""
    if strategy == "z_score":
        low, high = values.mean() - 5 * values.std(), values.mean() + 5 * values.std()
    elif strategy == "min_max":
        low, high = values.min(), values.max()
    elif strategy == "percentile_99":
        low, high = np.percentile(values, 1), np.percentile(values, 99)
    else:
        low, high = 0.0, 255.0
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        return np.full(values.shape, 0.5 if strategy == "z_score" else 0.0)
    return np.asarray((np.clip(values, low, high) - low) / (high - low))


def mirrored(values: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """More rows and columns after the last: mirrored in it, or repeating it where there are not enough to mirror."""
    for axis, length in ((0, height), (1, width)):
        more = length - values.shape[axis]
        edges = [(0, 0)] * values.ndim
        edges[axis] = (0, more)
        values = np.pad(values, edges, mode="reflect" if more < values.shape[axis] else "edge")
    return values


def on_paper(image: NDArray[Any], wish: Recipe, network: Needs) -> NDArray[Any]:
    values = image.astype(np.float64)
    strategy = wish.normalization.strategy
    if wish.normalization.per_channel:
        values = np.dstack([scaled(values[..., c], strategy) for c in range(values.shape[2])])
    else:
        values = scaled(values, strategy)
    if wish.selected:
        values = values[:, :, list(wish.selected)]
    p = min(wish.padding, min(image.shape[:2]) // 2)
    values = np.pad(values, ((p, p), (p, p), (0, 0)), mode="reflect")
    sides = [-(-max(side, network.least) // network.divisor) * network.divisor for side in values.shape[:2]]
    return mirrored(values, *sides).transpose(2, 0, 1)


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    channels=st.integers(1, 5),
    kind=st.sampled_from(KINDS),
    strategy=st.sampled_from(STRATEGIES),
    per_channel=st.booleans(),
    padding=st.integers(0, 40),
    divisor=st.sampled_from([1, 8, 32]),
    least=st.sampled_from([1, 32, 100]),
    pick=st.randoms(use_true_random=False),
)
def test_any_tile(
    height: int, width: int, channels: int, kind: str, strategy: Strategy, per_channel: bool, padding: int,
    divisor: int, least: int, pick: random.Random,
) -> None:  # fmt: skip
    selected = [pick.randrange(channels) for _ in range(pick.randrange(channels))]
    image = tile(height, width, channels, kind, seed=height * width)
    before = image.copy()
    wish = recipe(strategy, selected=selected, padding=padding, per_channel=per_channel)
    network = needs(len(selected) or channels, divisor=divisor, least=least)
    prepared = prepare(image, wish, network, "t")
    np.testing.assert_allclose(prepared.values, on_paper(image, wish, network), atol=3e-6)
    assert prepared.values.dtype == np.float32
    assert prepared.values.flags.c_contiguous
    assert (prepared.height, prepared.width) == (height, width)
    assert prepared.padding == min(padding, min(height, width) // 2)
    np.testing.assert_array_equal(image, before)
    as_it_is = prepare(image, wish, needs(len(selected) or channels, least=least), "t")
    np.testing.assert_array_equal(padded_more(as_it_is, network).values, prepared.values)


@given(
    size=st.integers(1, 5000),
    kind=st.sampled_from([*KINDS, "whole", "halves", "below zero"]),
    percents=st.lists(st.floats(0, 100), min_size=1, max_size=3),
    most=st.integers(0, 65535),
    seed=st.integers(0, 2**32),
)
def test_percentiles_are_numpys(size: int, kind: str, percents: list[float], most: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    if kind == "float32":
        values = generator.normal(0, most, size).astype(np.float32)
    elif kind in KINDS:
        values = generator.integers(0, min(most, np.iinfo(kind).max), size, endpoint=True).astype(kind)
    else:
        values = generator.integers(0, most, size, endpoint=True).astype(np.float32)
        values -= kind == "below zero"
        values /= 2 if kind == "halves" else 1
    expected = np.percentile(values.astype(np.float64), percents)
    np.testing.assert_allclose(percentiles(values, percents), expected, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", ["uint8", "float32"])
@pytest.mark.parametrize("name", ["unet", "pan"])
@pytest.mark.parametrize("measured", [True, False])
def test_a_network_sees_what_it_was_trained_on(strategy: Strategy, kind: str, name: str, measured: bool) -> None:
    rule, network = Normalization(strategy), architecture(name)
    images = [tile(45, 70, 3, kind, seed) for seed in range(2)]
    stats = measure(images, rule, seed=0) if measured else None
    masks = [np.zeros((45, 70), np.uint8)] * 2
    feed = Feed(Patches(images, masks, ["a", "b"]), rule, stats, network)
    ((fed, _),) = feed.batches([[0, 1]])
    limits = needs(3, divisor=network.size_divisor, least=network.size_least)
    for image, trained in zip(images, fed.numpy(), strict=True):
        seen = prepare(image, Recipe((), rule, tuple(stats or ()), 0), limits, "t")
        np.testing.assert_array_equal(seen.values, trained)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value: float) -> None:
    image = tile(4, 5, 2)
    image[3, 4, 1] = value
    with pytest.raises(BadInputError, match="Tile 7_8 holds values that are not finite"):
        prepare(image, recipe(), ANY, "7_8")


@given(height=st.integers(1, 40), width=st.integers(1, 48), padding=st.integers(0, 30))
def test_a_network_of_one_size(height: int, width: int, padding: int) -> None:
    image = tile(height, width, 2)
    wish = Recipe((), RAW.normalization, RAW.stats, padding)
    seen = prepare(image, wish, needs(2, fixed=(40, 48)), "t")
    assert seen.values.shape == (2, 40, 48)
    p = seen.padding
    assert p == min(padding, min(height, width) // 2, (40 - height) // 2, (48 - width) // 2)
    expected = mirrored(np.pad(image, ((p, p), (p, p), (0, 0)), mode="reflect"), 40, 48)
    np.testing.assert_array_equal(seen.values, expected.transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(41, 8), (8, 49)])
def test_a_tile_larger_than_a_networks_one_size(size: tuple[int, int]) -> None:
    with pytest.raises(BadInputError, match=rf"{size[0]} x {size[1]} pixels and the model takes 40 x 48"):
        prepare(tile(*size, 1), recipe(), needs(1, fixed=(40, 48)), "t")


def test_padding_does_not_change_how_a_tile_is_normalised() -> None:
    image = tile(20, 30, 3, "uint8")
    seen: Prepared = prepare(image, recipe("percentile_99", padding=8), needs(3, divisor=32), "t")
    alone = normalize(image, Normalization("percentile_99"))
    np.testing.assert_array_equal(seen.values[:, 8:28, 8:38], alone.transpose(2, 0, 1))
