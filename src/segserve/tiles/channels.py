"""Which channels of a tile the network sees, and whose statistics are theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segserve.errors import BadInputError
from segserve.tiles.recipe import Needs
from segserve.tiles.statistics import ChannelStats


def deblock(values: NDArray[Any], height: int, width: int, channels: int) -> NDArray[Any]:
    """Interleave the channels of a buffer that holds a tile and then its wider view.

    Args:
        values: of any shape; in memory the tile's height x width x channels values, then as many of the view.
        height: in pixels.
        width: in pixels.
        channels: of one of the two.

    Returns:
        (H, W, 2 * channels): for each pixel the tile's channels, then the view's.
    """
    parts = values.reshape(2, height, width, channels)
    return np.stack([part[..., channel] for part in parts for channel in range(channels)], axis=2)


def halves(channels: int, needs: Needs) -> int:
    """2 for a tile that holds a wider view of its place beside itself, else 1."""
    return 2 if needs.context and channels % 2 == 0 else 1


def choose(channels: int, selected: Sequence[int], needs: Needs, name: str) -> list[int]:
    """The channels of a tile that the network sees, in order.

    A tile that has as many as are selected was reduced to them by the client. One too many after three, when nothing
    is selected, is an alpha band.

    Args:
        channels: of the tile.
        selected: numbers of those to keep; empty for all. With context they hold in both halves.
        needs: of the network.
        name: of the tile, for the error.

    Raises:
        BadInputError: the tile lacks a selected channel, or the network takes another number; with both numbers.
    """
    parts = halves(channels, needs)
    bands = channels // parts
    if len(selected) in {0, bands, channels}:
        has_alpha = not selected and bands == 4 and needs.channels == 3 * parts
        picked: Sequence[int] = range(3 if has_alpha else bands)
    else:
        picked = selected
    if max(picked) >= bands:
        raise BadInputError(
            f"Tile {name} has {_told(channels, parts)}, but channel {max(picked)} (counted from 0) is selected: select "
            "channels that the image has."
        )
    if needs.channels not in {None, len(picked) * parts}:
        raise BadInputError(_misfit(name, channels, parts, len(picked), needs))
    return [part * bands + band for part in range(parts) for band in picked]


def pick(image: NDArray[Any], chosen: Sequence[int]) -> NDArray[Any]:
    """The chosen channels of an (H, W, C) image, in order; the image itself where those are all."""
    if list(chosen) == list(range(image.shape[2])):
        return image
    return np.stack([image[..., channel] for channel in chosen], axis=2)


def match(
    stats: Sequence[ChannelStats], channels: int, chosen: Sequence[int], *, context: bool
) -> list[ChannelStats]:  # fmt: skip
    """The statistics of the chosen channels.

    Entries as many as the tile's channels are by its channels, entries as many as are chosen are theirs; otherwise
    entry c is channel c's, and the first one that of the channels beyond.

    Args:
        stats: at least one.
        channels: of the tile.
        chosen: their numbers.
        context: the second half of the channels is a wider view: entries for one half serve both.
    """
    if context and len(stats) not in {channels, len(chosen)} and 2 * len(stats) in {channels, len(chosen)}:
        stats = [*stats, *stats]
    if len(stats) == len(chosen) != channels:
        return list(stats)
    return [stats[channel] if channel < len(stats) else stats[0] for channel in chosen]


def _misfit(name: str, channels: int, parts: int, picked: int, needs: Needs) -> str:
    advice = "select as many channels as the model was trained on"
    if needs.context and needs.channels:
        each = needs.channels // 2
        advice = f"send {each} of the tile itself and {each} of the wider view around it"
    chosen = "" if picked * parts == channels else f", {picked * parts} of them selected,"
    return f"Tile {name} has {_told(channels, parts)}{chosen} and the model takes {needs.channels}: {advice}."


def _told(channels: int, parts: int) -> str:
    counted = f"{channels} channel{'s' * (channels != 1)}"
    return counted if parts == 1 else f"{counted} ({channels // 2} and as many of the wider view)"
