"""Tile values to the range that a network is trained on: one place, for training and inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segserve.tiles.percentile import percentiles
from segserve.tiles.statistics import ChannelStats

Strategy = Literal["min_max", "percentile_99", "z_score", "fixed_range"]
Z_LIMIT = 5  # standard deviations either side of the mean that become 0 and 1

EPSILON = float(np.finfo(np.float32).eps)
SMALLEST_SPAN = 1e-30  # its inverse is a float32
LARGEST = 1e37  # whose differences are float32


@dataclass(frozen=True)
class Normalization:
    """How values are brought to about 0..1.

    Attributes:
        strategy: min_max, percentile_99, z_score or fixed_range.
        per_channel: each channel by its own figures; otherwise all by common ones.
        clip_percentile: of percentile_99; the lower one is 100 minus it.
        min, max: of fixed_range; 0 and 255 where they are None.
    """

    strategy: Strategy = "percentile_99"
    per_channel: bool = True
    clip_percentile: float = 99.0
    min: float | None = None
    max: float | None = None

    @property
    def fixed_range(self) -> tuple[float, float]:
        """The values that `fixed_range` takes to 0 and 1."""
        return (0.0 if self.min is None else self.min, 255.0 if self.max is None else self.max)


@dataclass(frozen=True)
class _Line:
    """`(x - low) / (high - low)`, held to 0..1 where `clipped`; `flat` where there is no span."""

    low: float
    high: float
    clipped: bool
    flat: float = 0.0

    @property
    def is_flat(self) -> bool:
        """True where float32 values cannot differ by the span: a computed deviation of 0 is often 1e-17."""
        return not self.high - self.low > max(SMALLEST_SPAN, EPSILON * max(abs(self.low), abs(self.high)))

    @property
    def is_extreme(self) -> bool:
        """True where float32 arithmetic would overflow."""
        return max(abs(self.low), abs(self.high)) > LARGEST


def normalize(
    image: NDArray[Any], normalization: Normalization, stats: Sequence[ChannelStats] | None = None
) -> NDArray[np.float32]:
    """Normalise one tile.

    Args:
        image: (H, W, C) uint8, uint16 or float32, finite, in the file's units.
        normalization: the strategy and its figures.
        stats: of the training set. Entry c counts for channel c with `per_channel`; the first for the channels
            beyond, and for all without. What is missing from an entry, or None as a whole, is the tile's own.

    Returns:
        (H, W, C) float32. A channel without contrast is 0, with z_score 0.5.
    """
    channels = image.shape[2]
    if normalization.per_channel and channels > 1:
        lines = [_line(image[..., c], normalization, _entry(stats, c)) for c in range(channels)]
    else:
        lines = [_line(image, normalization, _entry(stats, 0))]
    return _apply(image, lines)


def _entry(stats: Sequence[ChannelStats] | None, channel: int) -> ChannelStats:
    if not stats:
        return ChannelStats()
    return stats[channel] if channel < len(stats) else stats[0]


def _line(values: NDArray[Any], normalization: Normalization, known: ChannelStats) -> _Line:
    if normalization.strategy == "fixed_range":
        low, high = normalization.fixed_range
        return _Line(low if known.min is None else known.min, high if known.max is None else known.max, clipped=True)
    if normalization.strategy == "min_max":
        return _Line(_or_own(known.min, values.min), _or_own(known.max, values.max), clipped=False)
    if normalization.strategy == "percentile_99":
        return _Line(*_percentiles(values, normalization.clip_percentile, known), clipped=True)
    mean = _or_own(known.mean, lambda: values.mean(dtype=np.float64))
    reach = Z_LIMIT * _or_own(known.std, lambda: values.std(dtype=np.float64))
    return _Line(mean - reach, mean + reach, clipped=True, flat=0.5)


def _percentiles(values: NDArray[Any], clip: float, known: ChannelStats) -> tuple[float, float]:
    if known.p1 is not None and known.p99 is not None:
        return known.p1, known.p99
    own = percentiles(values, (100 - clip, clip))
    return _or_own(known.p1, lambda: own[0]), _or_own(known.p99, lambda: own[1])


def _or_own(known: float | None, own: Callable[[], Any]) -> float:
    return float(own()) if known is None else known


def _apply(image: NDArray[Any], lines: list[_Line]) -> NDArray[np.float32]:
    """Whole rows at a time: numpy is slow where the innermost axis is a few channels."""
    height, width, channels = image.shape
    per_value = width * channels // len(lines) if len(lines) > 1 else 1
    dtype = np.float64 if any(line.is_extreme for line in lines) else np.float32
    low = np.array([0.0 if line.is_flat else line.low for line in lines], dtype)
    scale = np.array([0.0 if line.is_flat else 1 / (line.high - line.low) for line in lines], dtype)
    rows: NDArray[Any] = image.reshape(height, -1).astype(dtype)
    with np.errstate(over="ignore"):  # far outside a training set's range: infinite is what it is
        rows -= np.tile(low, per_value)
        rows *= np.tile(scale, per_value)
        if lines[0].clipped:
            np.clip(rows, 0, 1, out=rows)
        result = rows.astype(np.float32, copy=False).reshape(height, width, channels)
    for channel, line in enumerate(lines):
        if line.is_flat:
            result[..., channel if len(lines) > 1 else slice(None)] = line.flat
    return result
