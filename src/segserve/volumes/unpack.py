"""Voxels as files pack them, to plain bytes: chunk by chunk, so that a bomb costs neither memory nor disk."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from isal import igzip, igzip_lib, isal_zlib

from segserve.errors import BadInputError

CHUNK = 2**20
TEXT_CHUNK = 2**16
LONGEST_NUMBER = 64
MARK = b"|"
GZIP_MAGIC = b"\x1f\x8b"
# isal's stubs call its errors instances, not classes.
DAMAGED = cast(
    "tuple[type[Exception], ...]", (igzip.BadGzipFile, igzip_lib.IsalError, isal_zlib.error, zlib.error, EOFError)
)


def read_chunks(stream: BinaryIO) -> Iterator[bytes]:
    """The stream as it is."""
    while chunk := stream.read(CHUNK):
        yield chunk


def inflated(stream: BinaryIO) -> Iterator[bytes]:
    """A zlib or gzip stream decompressed, to its end; what follows it does not matter.

    Raises:
        Exception: one of `DAMAGED`.
    """
    magic = stream.read(len(GZIP_MAGIC))
    flag = igzip_lib.DECOMP_GZIP if magic == GZIP_MAGIC else igzip_lib.DECOMP_ZLIB
    inflater = igzip_lib.IgzipDecompressor(flag=flag)
    packed = magic
    while True:
        yield inflater.decompress(packed, CHUNK)
        if inflater.eof:
            return
        packed = stream.read(CHUNK) if inflater.needs_input else b""
        if inflater.needs_input and not packed:
            raise EOFError("the compressed data end too early")


def numbers(stream: BinaryIO, dtype: np.dtype[Any]) -> Iterator[bytes]:
    """Numbers written as text, between blanks or commas, as the bytes of `dtype`.

    Raises:
        BadInputError: something is no number, or none that fits the type.
    """
    rest = b""
    while len(rest) <= LONGEST_NUMBER and (chunk := stream.read(TEXT_CHUNK)):
        # The mark makes a word of what may go on in the next chunk, even where there is nothing.
        *words, marked = (rest + chunk.replace(b",", b" ") + MARK).split()
        rest = marked.removesuffix(MARK)
        yield _values(words, dtype)
    yield _values(rest.split(), dtype)


def unpack(chunks: Iterable[bytes], target: Path, size: int) -> int:
    """Write the first `size` bytes of `chunks` to a file.

    One chunk more is asked for: where the data end in time, whatever checks them has then seen their end.

    Returns:
        How many bytes there were, at most `size`.
    """
    written = 0
    with target.open("wb") as out:
        for chunk in chunks:
            if written == size:
                break
            written += out.write(chunk[: size - written])
    return written


def _values(words: list[bytes], dtype: np.dtype[Any]) -> bytes:
    # The longest word sets the width of numpy's whole table.
    if all(len(word) <= LONGEST_NUMBER for word in words):
        try:
            return np.array(words, f"S{LONGEST_NUMBER}").astype(dtype).tobytes()
        except (ValueError, OverflowError):
            pass
    raise BadInputError(f"The image's text holds what is no number of the type {dtype.name}: save the image again.")
