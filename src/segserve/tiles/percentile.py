"""Percentiles of a tile's values, as `numpy.percentile` has them (linear interpolation), several times faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

COUNTABLE = 2**16
Around = Callable[[int], tuple[float, float]]  # place in the order -> the values there and next to it


def percentiles(values: NDArray[Any], percents: Sequence[float]) -> list[float]:
    """Linearly interpolated percentiles.

    Args:
        values: of any shape, uint8, uint16 or finite float32, at least one.
        percents: 0 to 100.

    Returns:
        One number each, in float64 arithmetic: the value at place (size - 1) * percent / 100 of the sorted values.
    """
    flat = values.ravel()
    whole = _whole(flat)
    around = _sorting(flat) if whole is None else _counting(whole)
    result = []
    for percent in percents:
        place = (flat.size - 1) * percent / 100
        low, high = around(int(place))
        result.append(low + (high - low) * (place % 1))
    return result


def _whole(flat: NDArray[Any]) -> NDArray[Any] | None:
    """The values as small whole numbers; None if they are not. Clients send most 8-bit pictures as float32."""
    if flat.dtype.kind == "u":
        return flat
    if flat.min() < 0 or flat.max() >= COUNTABLE:
        return None
    whole = flat.astype(np.uint16)
    return whole if (whole == flat).all() else None


def _counting(whole: NDArray[Any]) -> Around:
    ends = np.bincount(whole).cumsum()  # of each value's run in the sorted values

    def around(place: int) -> tuple[float, float]:
        low, high = np.searchsorted(ends, [place, min(place + 1, whole.size - 1)], side="right")
        return float(low), float(high)

    return around


def _sorting(flat: NDArray[Any]) -> Around:
    def around(place: int) -> tuple[float, float]:
        parted = np.partition(flat, place)  # numpy is slower for several places at once than for one after the other
        return float(parted[place]), float(parted[place + 1 :].min() if place + 1 < flat.size else parted[place])

    return around
