"""Tiles, recipes and networks' needs, made short for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segserve.tiles.normalize import Normalization, Strategy
from segserve.tiles.recipe import Needs, Recipe
from segserve.tiles.statistics import ChannelStats

ANY = Needs(channels=None, context=False, divisor=1, least=1, fixed=None)


def needs(channels: int | None = None, **others: Any) -> Needs:
    return Needs(**{**vars(ANY), "channels": channels, **others})


def recipe(
    strategy: Strategy = "min_max",
    *,
    selected: Sequence[int] = (),
    stats: Sequence[ChannelStats] = (),
    padding: int = 0,
    per_channel: bool = True,
) -> Recipe:
    return Recipe(tuple(selected), Normalization(strategy, per_channel), tuple(stats), padding)


RAW = recipe("min_max", stats=[ChannelStats(min=0, max=1)])  # values stay what they are


def tile(height: int, width: int, channels: int, kind: str = "float32", seed: int = 0) -> NDArray[Any]:
    generator = np.random.default_rng(seed)
    if kind == "float32":
        return generator.normal(40, 25, (height, width, channels)).astype(np.float32)
    return generator.integers(0, np.iinfo(kind).max, (height, width, channels), dtype=kind, endpoint=True)
