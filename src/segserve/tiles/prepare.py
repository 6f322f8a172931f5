"""A tile as it comes to what a network is fed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segserve.errors import BadInputError, by
from segserve.tiles.channels import choose, deblock, halves, match, pick
from segserve.tiles.frame import pad
from segserve.tiles.normalize import normalize
from segserve.tiles.recipe import Needs, Recipe


@dataclass(frozen=True)
class Prepared:
    """A tile ready for the network, and what is needed to cut the answer back.

    Attributes:
        values: float32 (C, H', W'), contiguous.
        height, width: of the tile, in pixels.
        padding: pixels above it and to its left; what is more is below and to its right.
    """

    values: NDArray[np.float32]
    height: int
    width: int
    padding: int


def prepare(image: NDArray[Any], recipe: Recipe, needs: Needs, name: str, *, blocked: bool = False) -> Prepared:
    """Normalise a tile, select its channels and pad it, in this order.

    Args:
        image: (H, W, C) uint8, uint16 or float32, in the file's units.
        recipe: how it is to be read.
        needs: of the network.
        name: the tile's id, for errors.
        blocked: it is a client's buffer, in which a wider view lies behind the tile rather than beside it.

    Raises:
        BadInputError: the tile is not finite, too large for the network, or has not the channels that it takes.
    """
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise BadInputError(f"Tile {name} holds values that are not finite (NaN or infinity): export the image again.")
    height, width, channels = image.shape
    padding = _padding(recipe.padding, height, width, needs.fixed, name)
    if blocked and halves(channels, needs) == 2:
        image = deblock(image, height, width, channels // 2)
    values = _normalized(image, choose(channels, recipe.selected, needs, name), recipe, needs)
    planes = np.ascontiguousarray(values.transpose(2, 0, 1))  # whole rows are padded faster than pixels of a few values
    if padding:
        planes = np.pad(planes, ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
    return Prepared(np.ascontiguousarray(_fill(planes, needs)), height, width, padding)


def padded_more(tile: Prepared, needs: Needs) -> Prepared:
    """A prepared tile as it would have been for a network that differs in what it pads to."""
    height, width = tile.height + 2 * tile.padding, tile.width + 2 * tile.padding
    return replace(tile, values=np.ascontiguousarray(_fill(tile.values[:, :height, :width], needs)))


def _normalized(image: NDArray[Any], chosen: list[int], recipe: Recipe, needs: Needs) -> NDArray[np.float32]:
    """All channels count for common statistics, but for an alpha band; otherwise only those chosen are looked at."""
    rule, channels = recipe.normalization, image.shape[2]
    if not rule.per_channel and recipe.selected:
        return pick(normalize(image, rule, recipe.stats), chosen)
    stats = recipe.stats
    if rule.per_channel and stats:
        stats = tuple(match(stats, channels, chosen, context=halves(channels, needs) == 2))
    return normalize(pick(image, chosen), rule, stats)


def _padding(asked: int, height: int, width: int, fixed: tuple[int, int] | None, name: str) -> int:
    """As much as the tile can give, and as a network of one size has room for."""
    most = min(height, width) // 2
    if fixed is not None:
        room = min(fixed[0] - height, fixed[1] - width)
        if room < 0:
            raise BadInputError(
                f"Tile {name} has {by((height, width))} pixels and the model takes {by(fixed)}: choose a smaller tile "
                "size."
            )
        most = min(most, room // 2)
    return min(asked, most)


def _fill(planes: NDArray[np.float32], needs: Needs) -> NDArray[np.float32]:
    """Pad (C, H, W) on the right and at the bottom to a size that the network takes."""
    images = planes[..., None]  # one of one channel for each plane
    if needs.fixed is None:
        return pad(images, needs.divisor, needs.least)[..., 0]
    height, width = needs.fixed
    images = pad(images, 1, height)[..., : planes.shape[2], :]  # each axis by itself: it has its own least size
    return pad(images, 1, width)[:, :height, :, 0]
