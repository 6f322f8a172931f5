"""JPEG files, pixels as stored: metadata segments are dropped before decoding, EXIF orientation with them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile

from segserve.tiles.header import Header, damaged, unsupported

MAGIC = b"\xff\xd8\xff"
SCAN = 0xDA
ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
METADATA = frozenset({0xFE, *range(0xE1, 0xEE), 0xEF})  # comments and applications' own, but JFIF and Adobe


def jpeg_header(data: bytes, name: str) -> Header:
    """The size that a JPEG's one frame declares. `data` may be a memory map: only the segments' starts are touched.

    Raises:
        BadInputError: there is no frame or more than one, or it is of a kind that is not read.
    """
    frames = [start for marker, start, _ in _segments(data, name) if marker in FRAMES]
    if len(frames) != 1:
        raise damaged(name, f"it is a JPEG with {len(frames)} frame headers")
    start = frames[0]
    height, width = (int.from_bytes(data[start + at : start + at + 2], "big") for at in (5, 7))
    precision, components = data[start + 4], data[start + 9]
    if precision != 8 or components not in {1, 3, 4}:
        raise unsupported(name, f"is a JPEG of {precision} bits with {components} components")
    return Header(height, width, 1 if components == 1 else 3, np.dtype(np.uint8))


def read_jpeg(data: bytes, name: str) -> NDArray[Any]:
    """The picture, (H, W) grey or (H, W, 3) RGB, uint8; CMYK is converted."""
    picture = JpegImageFile(io.BytesIO(_bare(data, name)))
    picture.load()
    return np.asarray(picture if picture.mode in {"L", "RGB"} else picture.convert("RGB"))


def _bare(data: bytes, name: str) -> bytes:
    kept = (data[start:end] for marker, start, end in _segments(data, name) if marker not in METADATA)
    return data[:2] + b"".join(kept)


def _segments(data: bytes, name: str) -> Iterator[tuple[int, int, int]]:
    """Each segment as (marker, start, end), the scan last, with all that follows it."""
    at = 2
    while at + 4 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF:
            break
        if marker == SCAN:
            yield marker, at, len(data)
            return
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        end = at + 2 + (0 if marker in ALONE else int.from_bytes(data[at + 2 : at + 4], "big"))
        yield marker, at, end
        at = end
    raise damaged(name, "it is a JPEG that is cut short")
