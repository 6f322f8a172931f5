"""Which channels of a tile a network sees, and by whose statistics they are normalised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from segserve.errors import BadInputError
from segserve.tiles.channels import deblock, match
from segserve.tiles.prepare import prepare
from segserve.tiles.recipe import Needs, Recipe
from segserve.tiles.statistics import ChannelStats
from tests.tile_recipes import ANY, RAW, needs, recipe, tile


def test_channels_are_selected_after_common_figures_are_taken_of_all() -> None:
    image = np.array([[[0, 100, 200], [50, 100, 150]]], np.uint8)
    seen = prepare(image, recipe(selected=[2, 1], per_channel=False), needs(2), "t")
    np.testing.assert_allclose(seen.values, [[[1, 0.75]], [[0.5, 0.5]]])


@pytest.mark.parametrize(("selected", "channels"), [((1, 5, 7), 3), ((0, 1, 2), 3), ((2, 1, 0), 3)])
def test_a_tile_that_was_reduced_by_the_client_is_taken_as_it_is(selected: tuple[int, ...], channels: int) -> None:
    image = tile(4, 5, channels)
    seen = prepare(image, Recipe(selected, RAW.normalization, RAW.stats, 0), needs(channels), "t")
    np.testing.assert_array_equal(seen.values, image.transpose(2, 0, 1))


def test_an_alpha_band_is_dropped_before_anything_counts() -> None:
    image = np.dstack([tile(6, 7, 3, "uint8") // 2, np.full((6, 7), 255, np.uint8)])
    for per_channel in (True, False):
        wish = recipe(per_channel=per_channel)
        expected = prepare(np.ascontiguousarray(image[..., :3]), wish, needs(3), "t")
        np.testing.assert_array_equal(prepare(image, wish, needs(3), "t").values, expected.values)
    assert prepare(image, recipe(), needs(4), "t").values.shape == (4, 6, 7)
    assert prepare(image, recipe(), ANY, "t").values.shape == (4, 6, 7)
    assert prepare(image, recipe(selected=[0, 1, 2]), needs(3), "t").values.shape == (3, 6, 7)


def blob(detail: NDArray[Any], wider: NDArray[Any]) -> NDArray[Any]:
    """As a client sends them: one block after the other, said to be one image of all channels."""
    height, width, channels = detail.shape
    return np.concatenate([detail.ravel(), wider.ravel()]).reshape(height, width, 2 * channels)


@given(height=st.integers(1, 9), width=st.integers(1, 9), channels=st.integers(1, 5))
def test_a_wider_view_is_put_beside_its_tile(height: int, width: int, channels: int) -> None:
    detail, wider = tile(height, width, channels), tile(height, width, channels, seed=1)
    sent = blob(detail, wider)
    np.testing.assert_array_equal(deblock(sent, height, width, channels), np.dstack([detail, wider]))
    plain = Recipe((), RAW.normalization, RAW.stats, 0)
    seen = prepare(sent, plain, needs(2 * channels, context=True), "t", blocked=True)
    np.testing.assert_array_equal(seen.values, np.dstack([detail, wider]).transpose(2, 0, 1))
    beside = prepare(np.dstack([detail, wider]), plain, needs(2 * channels, context=True), "t")
    np.testing.assert_array_equal(beside.values, seen.values)
    other = prepare(sent, plain, needs(2 * channels), "t", blocked=True)
    np.testing.assert_array_equal(other.values, sent.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("bands", "selected", "kept"),
    [
        (3, (), (0, 1, 2)),
        (3, (0, 1, 2), (0, 1, 2)),
        (4, (), (0, 1, 2)),
        (5, (4, 0, 2), (4, 0, 2)),
        (3, (7, 8, 9), (0, 1, 2)),
    ],
)
def test_channels_are_selected_in_tile_and_wider_view(
    bands: int, selected: tuple[int, ...], kept: tuple[int, ...]
) -> None:
    detail, wider = tile(3, 4, bands), tile(3, 4, bands, seed=1)
    wish = Recipe(selected, RAW.normalization, RAW.stats, 0)
    seen = prepare(blob(detail, wider), wish, needs(6, context=True), "t", blocked=True)
    expected = np.dstack([detail[..., list(kept)], wider[..., list(kept)]])
    np.testing.assert_array_equal(seen.values, expected.transpose(2, 0, 1))


def figures(*highest: int) -> list[ChannelStats]:
    return [ChannelStats(min=0, max=high) for high in highest]


@pytest.mark.parametrize(
    ("channels", "selected", "stats", "highest"),
    [
        (3, (), (10, 20, 40), (10, 20, 40)),
        (4, (3, 1), (10, 20, 40, 80), (80, 20)),  # by the tile's channels
        (4, (3, 1), (10, 20), (10, 20)),  # by those selected
        (4, (3, 1), (10, 20, 40), (10, 20)),  # neither: entry c for channel c, the first beyond
        (2, (5, 7), (10, 20), (10, 20)),  # reduced by the client
        (3, (), (10,), (10, 10, 10)),
        (3, (), (10, 20, 40, 80), (10, 20, 40)),
    ],
)
def test_whose_statistics_a_channel_has(
    channels: int, selected: tuple[int, ...], stats: tuple[int, ...], highest: tuple[int, ...]
) -> None:
    image = np.full((1, 1, channels), 40, np.uint8)
    seen = prepare(image, recipe(selected=selected, stats=figures(*stats)), ANY, "t")
    np.testing.assert_allclose(seen.values.ravel(), 40 / np.array(highest))
    common = prepare(image, recipe(selected=selected, stats=figures(*stats), per_channel=False), ANY, "t")
    np.testing.assert_allclose(common.values.ravel(), 40 / stats[0])


@pytest.mark.parametrize(
    ("selected", "stats", "highest"),
    [
        ((), (10, 20, 40, 80, 5, 4), (10, 20, 40, 80, 5, 4)),
        ((), (10, 20, 40), (10, 20, 40, 10, 20, 40)),
        ((2, 0), (10, 20, 40, 80), (10, 20, 40, 80)),
        ((2, 0), (10, 20), (10, 20, 10, 20)),
        ((2, 0), (10, 20, 40, 80, 5, 4), (40, 10, 4, 80)),
    ],
)
def test_statistics_of_a_wider_view(
    selected: tuple[int, ...], stats: tuple[int, ...], highest: tuple[int, ...]
) -> None:  # fmt: skip
    image = np.full((1, 1, 6), 40, np.uint8)
    network = needs(2 * (len(selected) or 3), context=True)
    seen = prepare(image, recipe(selected=selected, stats=figures(*stats)), network, "t")
    np.testing.assert_allclose(seen.values.ravel(), 40 / np.array(highest))


def test_matching_repeats_for_a_wider_view_only() -> None:
    two = figures(1, 2)
    assert match(two, 4, [0, 1, 2, 3], context=True) == two * 2
    assert match(two, 4, [0, 1, 2, 3], context=False) == [two[0], two[1], two[0], two[0]]


@pytest.mark.parametrize(
    ("channels", "selected", "network", "words"),
    [
        (1, (), needs(3), ["1 channel ", "takes 3"]),
        (4, (), needs(5), ["4 channels", "takes 5"]),
        (4, (0, 1, 2, 3), needs(3), ["4 channels", "takes 3"]),
        (5, (1, 2), needs(3), ["5 channels", "2 of them selected", "takes 3"]),
        (4, (0, 9), needs(2), ["4 channels", "channel 9"]),
        (3, (), needs(6, context=True), ["3 channels", "takes 6", "3 of the wider view"]),
        (4, (), needs(6, context=True), ["4 channels", "takes 6"]),
        (8, (0, 1), needs(6, context=True), ["8 channels", "4 of them selected", "takes 6"]),
    ],
)
def test_channels_that_do_not_fit(channels: int, selected: tuple[int, ...], network: Needs, words: list[str]) -> None:
    with pytest.raises(BadInputError) as caught:
        prepare(tile(4, 4, channels), recipe(selected=selected), network, "0_0_4_4", blocked=True)
    for word in [*words, "Tile 0_0_4_4"]:
        assert word in caught.value.message
