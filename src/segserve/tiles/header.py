"""What an image file says of itself, and the sentences for files that cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from segserve.errors import BadInputError, SegserveError, TooLargeError, human_bytes

MAX_PIXELS = 2**28
MAX_VALUES_PER_PIXEL = 4  # over max_pixels: a picture of many channels must be smaller


@dataclass(frozen=True)
class Header:
    """The size of an image as its file declares it.

    Attributes:
        height, width: pixels.
        channels: values in a pixel, as `read_image` returns them.
        dtype: of the values as stored; `read_image` may return a smaller one that holds them.
    """

    height: int
    width: int
    channels: int
    dtype: np.dtype[Any]


def check_tile(header: Header, name: str, max_pixels: int, max_bytes: int) -> None:
    """Refuse a tile that would need too much memory, before it is decoded.

    Raises:
        BadInputError: there is nothing in it.
        TooLargeError: with the size, the limit and the setting.
    """
    _check_some(header, f"tile {name}")
    pixels = header.height * header.width
    if pixels > max_pixels:
        raise TooLargeError(
            f"Tile {name} has {header.height} x {header.width} pixels; this server classifies at most {max_pixels} at "
            f"a time (max_tile_pixels): choose a smaller tile size."
        )
    size = pixels * header.channels * header.dtype.itemsize
    if size > max_bytes:
        raise TooLargeError(
            f"Tile {name} takes {human_bytes(size)} once it is decoded ({header.height} x {header.width} pixels with "
            f"{header.channels} channels of {header.dtype.itemsize} bytes); this server takes at most "
            f"{human_bytes(max_bytes)} (max_tile_bytes): choose a smaller tile size or fewer channels."
        )


def check_size(header: Header, name: str, max_pixels: int) -> Header:
    """The header, if an array of its size may be allocated.

    Raises:
        BadInputError: there is nothing in it.
        TooLargeError: with the size and the limit.
    """
    _check_some(header, name)
    height, width, channels = header.height, header.width, header.channels
    pixels = height * width
    if pixels > max_pixels or pixels * channels > max_pixels * MAX_VALUES_PER_PIXEL:
        raise TooLargeError(
            f"{name} declares {height} x {width} pixels with {channels} channels, more than the {max_pixels} pixels "
            f"({max_pixels * MAX_VALUES_PER_PIXEL} values) that are read: cut it into smaller patches."
        )
    return header


def _check_some(header: Header, name: str) -> None:
    height, width, channels = header.height, header.width, header.channels
    if min(height, width, channels) < 1:
        raise damaged(name, f"it declares {height} x {width} pixels with {channels} channels")


def damaged(name: str, why: str) -> BadInputError:
    """The error for a file whose content makes no sense."""
    return BadInputError(f"{name} cannot be read, {why}: export it again.")


def unsupported(name: str, what: str) -> BadInputError:
    """The error for a sound file of a kind that is not read."""
    return BadInputError(f"{name} {what}, which is not read: save it as an ordinary TIFF or PNG.")


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a hostile or broken file into a sentence that names it."""
    try:
        yield
    except (SegserveError, MemoryError):
        raise
    except OSError as error:
        if error.errno is None:
            raise damaged(name, "it is damaged or cut short") from error
        raise BadInputError(f"{name} cannot be opened by the server ({error.strerror}): check that it is there and "
                            "that the server may read it.") from error  # fmt: skip
    except Exception as error:
        raise damaged(name, "it is damaged or cut short") from error
