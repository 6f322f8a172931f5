"""Stored voxel values to the intensities a network is fed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segserve.errors import BadInputError


@dataclass(frozen=True)
class Window:
    """An intensity window: `level` its centre, `width` > 0."""

    level: float
    width: float

    def __call__(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """`(clip(x, L - W/2, L + W/2) - (L - W/2)) / W` in float32, to [0, 1]."""
        low, high = self.level - self.width / 2, self.level + self.width / 2
        np.clip(values, low, high, out=values)
        values -= np.float32(low)
        values /= np.float32(self.width)
        return values


def choose_window(level: float | None, width: float | None) -> Window | None:
    """The window of a level and a width; None when neither is known.

    Raises:
        BadInputError: only one of the two is known, or they make no window in float32.
    """
    if level is None and width is None:
        return None
    if level is None or width is None:
        known, missing = ("window_level", "window_width") if width is None else ("window_width", "window_level")
        raise BadInputError(
            f"Only {known} is known: send {missing} too, or neither to use the intensities as they are."
        )
    with np.errstate(over="ignore"):
        edges = np.array([level - width / 2, level + width / 2, width], np.float32)
    if not np.isfinite(edges).all() or edges[2] <= 0:
        raise BadInputError(f"window_level {level:g} and window_width {width:g} make no window: width must be above 0.")
    return Window(level, width)


@dataclass(frozen=True)
class Intensities:
    """Stored values to network input: scaled, mended, windowed.

    Attributes:
        slope, intercept: `stored * slope + intercept` are the image's values.
        fill: what stands in for NaN and infinity; None where there are none.
        window: applied last.
    """

    slope: float
    intercept: float
    fill: float | None = None
    window: Window | None = None

    @property
    def scaled(self) -> bool:
        """Whether stored values differ from the image's."""
        return (self.slope, self.intercept) != (1.0, 0.0)

    def values(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """The image's values in float32, a new array; scaled in float64 as ITK and nibabel do."""
        if not self.scaled:
            with np.errstate(over="ignore"):  # float64 beyond float32's range becomes infinite, and is mended
                return stored.astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            return (stored.astype(np.float64) * self.slope + self.intercept).astype(np.float32)

    def __call__(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """What the network is fed, float32, the shape of `stored`."""
        values = self.values(stored)
        if self.fill is not None:
            values[~np.isfinite(values)] = self.fill
        return self.window(values) if self.window else values
