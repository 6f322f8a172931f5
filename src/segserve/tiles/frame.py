"""The one place where odd sizes are padded to what a network takes, and cropped back."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Cropped = TypeVar("Cropped", bound=Any)  # numpy's and torch's arrays alike
Size = tuple[int, int]


def padded_size(height: int, width: int, divisor: int, least: int) -> Size:
    """The smallest multiples of `divisor` that hold `height` x `width` and are at least `least`."""
    return _up(max(height, least), divisor), _up(max(width, least), divisor)


def pad(image: NDArray[Any], divisor: int, least: int) -> NDArray[Any]:
    """Pad on the right and at the bottom to `padded_size`.

    Reflected, the edge pixel not repeated, along an axis that is longer than its padding; else the edge is repeated.

    Args:
        image: (..., H, W, C).
        divisor: of the padded sides.
        least: the smallest padded side.

    Returns:
        (..., H', W', C); the image itself where nothing is to be padded.
    """
    size = padded_size(image.shape[-3], image.shape[-2], divisor, least)
    for axis, length in zip((-3, -2), size, strict=True):
        if image.shape[axis] != length:
            image = image.take(_places(image.shape[axis], length), axis)
    return image


def pad_mask(mask: NDArray[Any], divisor: int, least: int, *, fill: int) -> NDArray[Any]:
    """Pad a (..., H, W) mask on the right and at the bottom with `fill`, the unlabelled value."""
    height, width = mask.shape[-2:]
    size = padded_size(height, width, divisor, least)
    if (height, width) == size:
        return mask
    padded = np.full((*mask.shape[:-2], *size), fill, mask.dtype)
    padded[..., :height, :width] = mask
    return padded


def crop(array: Cropped, height: int, width: int) -> Cropped:
    """The (..., height, width) part of a (..., H', W') array or tensor that is the unpadded image."""
    return array[..., :height, :width]  # type: ignore[no-any-return]


def _up(length: int, divisor: int) -> int:
    return -(-length // divisor) * divisor


def _places(length: int, padded: int) -> NDArray[np.intp]:
    """For each padded position the one that its value comes from."""
    places = np.arange(padded)
    beyond = 2 * (length - 1) - places if padded - length < length else length - 1
    return np.where(places < length, places, beyond)
