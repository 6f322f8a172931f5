"""Image and mask files to arrays, told apart by their content."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segserve.errors import BadInputError
from segserve.tiles import jpeg, png, tiff
from segserve.tiles.header import MAX_PIXELS, Header, check_size, damaged, reading, unsupported
from segserve.tiles.raw import raw_header, read_raw

__all__ = ["Header", "read_header", "read_image", "read_mask"]

METADATA_ROOM = 2**26  # bytes of profiles, thumbnails and the like that a PNG or JPEG may carry
LARGEST = float(np.finfo(np.float32).max)
COMPACT = (np.dtype(np.uint8), np.dtype(np.uint16))


def read_image(path: Path, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> NDArray[Any]:
    """Read a TIFF, PNG, JPEG or `.raw` image.

    Args:
        path: the file; what it is decides, not its suffix, except for `.raw`, which has no mark of its own.
        name: what error sentences call it; its file name if not given.
        max_pixels: the largest height x width; four times as many values.

    Returns:
        (H, W, C) uint8, uint16 or float32, in the stored units: whole numbers of 0..255 or 0..65535 kept in floats
        or wide integers come back as uint8 or uint16, equal in value; what else does not fit is rounded to float32.

    Raises:
        BadInputError: the file is missing, broken, not finite or of a kind that is not read.
        TooLargeError: it is larger than that.
    """
    name = name or path.name
    with reading(name):
        kind, start = _identify(path, name)
        if kind == "tiff":
            values = tiff.read_tiff(path, name, max_pixels)
        else:
            values = _read_single(path, kind, start, name, max_pixels)
        return _compact(np.ascontiguousarray(values if values.ndim == 3 else values[..., None]), name)


def read_header(path: Path, *, name: str | None = None) -> Header:
    """What `read_image` would return, from the first bytes of the file.

    Raises:
        BadInputError: there is no header to read.
    """
    name = name or path.name
    with reading(name):
        kind, start = _identify(path, name)
        return _header(path, kind, start, name)


def read_mask(path: Path, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read a mask: the numbers that a PNG stores, palette indices included.

    Returns:
        (H, W) uint8.

    Raises:
        BadInputError: it is no PNG, broken, in colour, or has a value above 255.
        TooLargeError: it is larger than `max_pixels`.
    """
    name = name or path.name
    with reading(name):
        kind, start = _identify(path, name)
        if kind != "png":
            raise BadInputError(
                f"{name} is a {kind.upper()} file: masks are PNG files, whose values are class numbers."
            )
        header = png.png_header(start, name)
        check_size(header, name, max_pixels)
        values = png.one_channel(png.read_png_numbers(_contents(path, header, name), header, name), name)
        if values.dtype != np.uint8 and values.max() > 255:
            raise BadInputError(f"{name} holds the value {values.max()}: class numbers in a mask are 0 to 255.")
        return np.ascontiguousarray(values, np.uint8)


def _identify(path: Path, name: str) -> tuple[str, bytes]:
    with path.open("rb") as file:
        start = file.read(png.HEAD_SIZE)
    if not start:
        raise damaged(name, "it is empty")
    if start[:4] in tiff.MAGICS:
        return "tiff", start
    if start.startswith(png.SIGNATURE):
        return "png", start
    if start.startswith(jpeg.MAGIC):
        return "jpeg", start
    if path.suffix.lower() == ".raw":
        return "raw", start
    raise unsupported(name, "is neither a TIFF, a PNG, a JPEG nor a .raw image")


def _header(path: Path, kind: str, start: bytes, name: str) -> Header:
    if kind == "tiff":
        return tiff.tiff_header(path, name)
    if kind == "png":
        return png.png_header(start, name)
    if kind == "raw":
        return raw_header(path, name)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return jpeg.jpeg_header(data, name)  # type: ignore[arg-type]  # a map is read like bytes


def _read_single(path: Path, kind: str, start: bytes, name: str, max_pixels: int) -> NDArray[Any]:
    header = check_size(_header(path, kind, start, name), name, max_pixels)
    if kind == "raw":
        return read_raw(path, header)
    data = _contents(path, header, name)
    return png.read_png(data, header, name) if isinstance(header, png.PngHeader) else jpeg.read_jpeg(data, name)


def _contents(path: Path, header: Header, name: str) -> bytes:
    """The whole file, unless it is larger than any file of such an image could be."""
    size = path.stat().st_size
    pixels = header.height * header.width * header.channels * header.dtype.itemsize
    if size > 2 * pixels + METADATA_ROOM:
        raise damaged(name, f"it has {size} bytes for {header.height} x {header.width} pixels")
    return path.read_bytes()


def _compact(values: NDArray[Any], name: str) -> NDArray[Any]:
    """The same numbers in the smallest of uint8, uint16 and float32 that holds them."""
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)) or max(-float(low), float(high)) > LARGEST:
        raise BadInputError(
            f"{name} holds values that are not finite 32-bit numbers (NaN or infinity): export it again."
        )
    for dtype in COMPACT:
        if low >= 0 and high <= np.iinfo(dtype).max:
            whole = values.astype(dtype)
            if (whole == values).all():
                return whole
    return values.astype(np.float32, copy=False)
