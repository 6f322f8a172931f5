"""PNG files, without the chunks that decoders warn about, and without surprise in size."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile

from segserve.errors import BadInputError
from segserve.tiles.header import Header, damaged

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEAD_SIZE = 33
CRITICAL = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
PALETTE = 3
CHANNELS = {0: 1, 2: 3, PALETTE: 3, 4: 2, 6: 4}  # by colour type, palettes looked up
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), PALETTE: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


@dataclass(frozen=True)
class PngHeader(Header):
    """A PNG's header, with the bits of a sample and the colour type of the standard."""

    bits: int
    colour: int


def png_header(start: bytes, name: str) -> PngHeader:
    """Read the first 33 bytes of a PNG.

    Raises:
        BadInputError: they are not a PNG's.
    """
    if len(start) < HEAD_SIZE or start[12:16] != b"IHDR":
        raise damaged(name, "it is a PNG that is cut short")
    width, height = (int.from_bytes(start[at : at + 4], "big") for at in (16, 20))
    bits, colour = start[24], start[25]
    if bits not in DEPTHS.get(colour, ()):
        raise damaged(name, f"its PNG header declares {bits} bits of colour type {colour}")
    return PngHeader(height, width, CHANNELS[colour], np.dtype(np.uint16 if bits == 16 else np.uint8), bits, colour)


def read_png(data: bytes, header: PngHeader, name: str) -> NDArray[Any]:
    """The picture: (H, W) or (H, W, C), uint8 or uint16; few bits stretched to 0..255, palettes looked up."""
    if header.bits == 16:
        return np.asarray(imagecodecs.png_decode(_bare(data, name)))
    picture = _open(data, name)
    if header.colour == PALETTE:
        return np.asarray(picture.convert("RGB"))
    values = np.asarray(picture)
    return values * np.uint8(255) if values.dtype == np.bool_ else values


def read_png_numbers(data: bytes, header: PngHeader, name: str) -> NDArray[Any]:
    """The stored numbers: palette indices as they are, few bits not stretched; (H, W) or (H, W, C)."""
    if header.bits == 16:
        return read_png(data, header, name)
    values = np.asarray(_open(data, name)).astype(np.uint8)
    if header.colour != PALETTE and header.bits in {2, 4}:
        values //= 255 // (2**header.bits - 1)
    return values


def _open(data: bytes, name: str) -> PngImageFile:
    picture = PngImageFile(io.BytesIO(_bare(data, name)))
    picture.load()
    return picture


def _bare(data: bytes, name: str) -> bytes:
    """The file with its critical chunks alone: no transparency, text, profiles or animation."""
    parts, at = [SIGNATURE], len(SIGNATURE)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if end > len(data):
            break
        if kind in CRITICAL:
            parts.append(data[at:end])
        if kind == b"IEND":
            return b"".join(parts)
        at = end
    raise damaged(name, "it is a PNG that is cut short")


def one_channel(values: NDArray[Any], name: str) -> NDArray[Any]:
    """The one channel of numbers in a mask that a program saved as grey with alpha or as equal red, green and blue.

    Raises:
        BadInputError: the colours differ, so that no channel is the mask.
    """
    if values.ndim == 2:
        return values
    colours = values[..., :3] if values.shape[2] >= 3 else values[..., :1]
    if (colours != colours[..., :1]).any():
        raise BadInputError(
            f"{name} is a colour picture: a mask has one channel whose values are class numbers; save it as grey PNG."
        )
    return np.asarray(colours[..., 0])
