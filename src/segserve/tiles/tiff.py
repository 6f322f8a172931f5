"""TIFF files: which of their dimensions are height, width and channels, then the values."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tifffile import COMPRESSION, PHOTOMETRIC, TiffFile, TiffPage

from segserve.errors import BadInputError
from segserve.tiles.header import Header, check_size, damaged, unsupported
from segserve.tiles.jpeg import jpeg_header

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_PAGES = 2**12
LARGEST_SEGMENT = 2**26  # bytes of a tile within a TIFF that is mostly padding
COMPRESSIONS = frozenset(
    {
        COMPRESSION.NONE,
        COMPRESSION.CCITTRLE,
        COMPRESSION.CCITT_T4,
        COMPRESSION.CCITT_T6,
        COMPRESSION.LZW,
        COMPRESSION.JPEG,
        COMPRESSION.ADOBE_DEFLATE,
        COMPRESSION.DEFLATE,
        COMPRESSION.PACKBITS,
        COMPRESSION.LZMA,
        COMPRESSION.ZSTD,
    }
)  # those whose decoders stop at the declared size
COLOURS = frozenset(
    {PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB, PHOTOMETRIC.PALETTE, PHOTOMETRIC.SEPARATED}
)

# What cannot be read is said in our own sentence; the library's lines would only repeat it on the console.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Stack:
    """The pages that hold one image.

    Attributes:
        pages: all of one size and type.
        shape: of the stored array, all dimensions.
        axes: a letter for each: Y, X, S (samples) and others.
    """

    pages: list[TiffPage]
    shape: tuple[int, ...]
    axes: str


def tiff_header(path: Path, name: str) -> Header:
    """The image's size, without decoding it.

    Raises:
        BadInputError: it holds no image, several of different sizes, or is of a kind that is not read.
    """
    with TiffFile(path) as file:
        stack = _stack(file, name)
        for page in stack.pages:
            _check_extent(page, path.stat().st_size, name)
        return _header(stack)


def read_tiff(path: Path, name: str, max_pixels: int) -> NDArray[Any]:
    """The values, (H, W, C) as stored; palettes looked up, few bits stretched to 0..255, CMYK converted.

    Raises:
        BadInputError: as `tiff_header`, or it is cut short.
        TooLargeError: it is larger than `max_pixels`.
    """
    with TiffFile(path) as file:
        stack = _stack(file, name)
        check_size(_header(stack), name, max_pixels)
        for page in stack.pages:
            _check_extent(page, path.stat().st_size, name)
            _check_segments(page, name)
        first = stack.pages[0]
        values = np.empty((len(stack.pages), *first.shape), first.dtype)
        for page, place in zip(stack.pages, values, strict=True):
            page.asarray(out=place, maxworkers=1)
        values = _channels_last(values.reshape(stack.shape), stack.axes)
        return _as_shown(values, stack.pages[0], name)


def _stack(file: TiffFile, name: str) -> Stack:
    pages: list[TiffPage] = []
    for page in _pages(file, name):
        first = pages[0] if pages else page
        _check_kind(page, name)
        if (page.shape, page.dtype, page.photometric) != (first.shape, first.dtype, first.photometric):
            raise BadInputError(f"{name} holds images of different sizes or kinds: save one image in a file.")
        pages.append(page)
    first = pages[0]
    shape, axes = (len(pages), *first.shape), "I" + first.axes
    declared = _declared(first, math.prod(shape))
    return Stack(pages, *(declared or (shape, axes)))


def _pages(file: TiffFile, name: str) -> Iterator[TiffPage]:
    """The pages one by one, smaller copies of the first left out; what follows a bad one is never looked at."""
    seen: set[int] = set()
    for page in file.pages:
        if not isinstance(page, TiffPage) or page.offset in seen:
            raise damaged(name, "it is a TIFF whose pages run in a circle")
        if len(seen) == MAX_PAGES:
            raise unsupported(name, f"has more than {MAX_PAGES} pages")
        if not (seen and page.is_reduced):
            yield page
        seen.add(page.offset)


def _check_kind(page: TiffPage, name: str) -> None:
    if not all(isinstance(size, int) for size in (*page.shape, page.tilelength, page.tilewidth)):
        raise damaged(name, "its TIFF header declares no size")  # tags of many values arrive as tuples
    if page.compression not in COMPRESSIONS or page.jpegheader is not None:
        raise unsupported(name, f"is a TIFF with compression {_label(page.compression)}")
    of_jpeg = page.compression == COMPRESSION.JPEG and page.photometric == PHOTOMETRIC.YCBCR
    if page.photometric not in COLOURS and not of_jpeg:
        raise unsupported(name, f"is a TIFF in the colour space {_label(page.photometric)}")
    if page.dtype is None or page.dtype.kind not in "buif":
        raise unsupported(name, f"is a TIFF of {page.bitspersample} bit values of an unknown kind")


def _label(value: object) -> str:
    return str(getattr(value, "name", value))


def _declared(page: TiffPage, count: int) -> tuple[tuple[int, ...], str] | None:
    """The array's shape as the description that tifffile itself writes has it, and its axes, where they matter.

    Arrays of (H, W, C) and (C, H, W) without named axes are both written as pages. Fewer in the first than in the
    last dimension means that the first is the channels'.
    """
    try:
        found = json.loads(page.shaped_description or "{}")
        shape = tuple(int(size) for size in found["shape"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    axes = found.get("axes")
    sizes = shape if len(shape) == 3 else tuple(size for size in shape if size != 1)
    if math.prod(shape) != count or min(shape) < 1:
        return None
    if isinstance(axes, str) and len(axes) == len(shape) and axes.count("Y") == axes.count("X") == 1:
        return shape, axes
    if "S" not in page.axes and len(sizes) == 3:
        return sizes, "CYX" if sizes[0] < sizes[2] else "YXC"
    return None


def _header(stack: Stack) -> Header:
    sizes = dict(zip(stack.axes, stack.shape, strict=True))
    page = stack.pages[0]
    channels = math.prod(stack.shape) // max(1, sizes["Y"] * sizes["X"])
    if page.photometric in {PHOTOMETRIC.PALETTE, PHOTOMETRIC.SEPARATED}:
        channels = 3
    return Header(sizes["Y"], sizes["X"], channels, np.dtype(page.dtype))


def _check_extent(page: TiffPage, size: int, name: str) -> None:
    """Refuse a page whose values are not all in the file: they would read as 0."""
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    missing = not segments or len(segments) < math.prod(page.chunked)
    if missing or any(count < 1 or offset + count > size for offset, count in segments):
        raise damaged(name, "it is a TIFF that is cut short")
    if page.compression == COMPRESSION.NONE and sum(page.databytecounts) * 8 < page.size * _bits(page):
        raise damaged(name, "it is a TIFF that is cut short")


def _check_segments(page: TiffPage, name: str) -> None:
    """Refuse tiles and strips that declare more than the image holds."""
    size = page.tilewidth * page.tilelength * page.samplesperpixel * np.dtype(page.dtype).itemsize
    if page.is_tiled and size > max(LARGEST_SEGMENT, 4 * page.nbytes):
        raise damaged(name, f"its tiles declare {page.tilelength} x {page.tilewidth} pixels")
    if page.compression != COMPRESSION.JPEG:
        return
    limit = math.prod(page.chunks)
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        page.parent.filehandle.seek(offset)
        header = jpeg_header(page.parent.filehandle.read(count), name)
        if header.height * header.width > limit:
            raise damaged(name, f"one of its strips declares {header.height} x {header.width} pixels")


def _bits(page: TiffPage) -> int:
    return page.bitspersample if isinstance(page.bitspersample, int) else 1


def _channels_last(values: NDArray[Any], axes: str) -> NDArray[Any]:
    values = np.moveaxis(values, (axes.index("Y"), axes.index("X")), (0, 1))
    return values.reshape(*values.shape[:2], -1)


def _as_shown(values: NDArray[Any], page: TiffPage, name: str) -> NDArray[Any]:
    """(H, W, C) as a viewer shows them, where the stored numbers mean something else than brightness."""
    if page.photometric == PHOTOMETRIC.PALETTE:
        if page.colormap is None or values.shape[2] != 1:
            raise damaged(name, "it is a TIFF with a palette that is missing")
        shift = 8 if page.colormap.max() > 255 else 0
        return np.asarray((page.colormap >> shift).astype(np.uint8)[:, values[..., 0]].transpose(1, 2, 0))
    bits = page.bitspersample
    if values.dtype.kind in "bu" and isinstance(bits, int) and bits < 8:
        values = (values.astype(np.uint16) * 255 // (2**bits - 1)).astype(np.uint8)
        bits = 8
    if page.photometric == PHOTOMETRIC.MINISWHITE and values.dtype.kind == "u":
        values = values.dtype.type(2**bits - 1) - values
    if page.photometric == PHOTOMETRIC.SEPARATED:
        return _from_cmyk(values, name)
    return values


def _from_cmyk(values: NDArray[Any], name: str) -> NDArray[Any]:
    if values.shape[2] != 4 or values.dtype != np.uint8:
        raise unsupported(name, "is a TIFF in inks other than 8-bit CMYK")
    paper = 255 - values.astype(np.uint16)
    return (paper[..., :3] * paper[..., 3:] // 255).astype(np.uint8)
