"""What is known of a training set's values, channel by channel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from segserve.tiles.normalize import Normalization

MAX_PATCHES = 200
MAX_SAMPLES = 500_000  # per channel


@dataclass(frozen=True)
class ChannelStats:
    """The statistics of one channel, in the images' own units; None where a client left one out.

    Attributes:
        p1, p99: the (100 - clip_percentile)th and clip_percentile-th percentiles.
        min, max: the extremes; for `fixed_range` the range in force.
        mean, std: of the population.
    """

    p1: float | None = None
    p99: float | None = None
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    std: float | None = None

    def to_wire(self) -> dict[str, float]:
        """The known figures as JSON."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @staticmethod
    def from_wire(wire: Mapping[str, Any]) -> ChannelStats:
        """The entry that a client or a model file holds; what is not a finite number counts as left out."""
        return ChannelStats(**{field.name: _number(wire.get(field.name)) for field in fields(ChannelStats)})


def measure(images: Sequence[NDArray[Any]], normalization: Normalization, seed: int) -> list[ChannelStats]:
    """The statistics of a training set, from at most 200 patches spread evenly over it.

    Percentiles (linear interpolation), mean and standard deviation are those of at most 500 000 pixels, drawn with
    `seed`; the extremes are those of every pixel of the patches.

    Args:
        images: (H, W, C) each, any sizes, one C.
        normalization: gives the percentiles, the fixed range, and whether channels are pooled.
        seed: of the draw.

    Returns:
        C entries, all figures finite; all alike where `per_channel` is false.
    """
    chosen = np.unique(np.linspace(0, len(images) - 1, min(len(images), MAX_PATCHES)).round().astype(int))
    share = MAX_SAMPLES // len(chosen)
    generator = np.random.default_rng(seed % 2**64)
    samples, lows, highs = [], [], []
    for index in chosen:
        pixels = images[index].reshape(-1, images[index].shape[2])
        lows.append(pixels.min(axis=0))
        highs.append(pixels.max(axis=0))
        if len(pixels) > share:
            pixels = pixels[generator.choice(len(pixels), share, replace=False, shuffle=False)]
        samples.append(pixels)
    values = np.concatenate(samples).astype(np.float64)
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    channels = values.shape[1]
    if normalization.per_channel and channels > 1:
        return [_describe(values[:, c], low[c], high[c], normalization) for c in range(channels)]
    return [_describe(values, low.min(), high.max(), normalization)] * channels


def _describe(values: NDArray[Any], low: float, high: float, normalization: Normalization) -> ChannelStats:
    clip = normalization.clip_percentile
    first, last = np.percentile(values, [100 - clip, clip])
    if normalization.strategy == "fixed_range":
        low, high = normalization.fixed_range
    return ChannelStats(
        float(first), float(last), float(low), float(high), float(values.mean()), float(values.std())
    )  # fmt: skip


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
