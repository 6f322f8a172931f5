"""`.raw` patches: 12 bytes of int32 LE height, width, channels, then float32 LE values, channels interleaved."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segserve.tiles.header import Header, damaged

HEAD = struct.Struct("<3i")
FLOAT32 = np.dtype("<f4")


def raw_header(path: Path, name: str) -> Header:
    """The size that the first 12 bytes declare, if the file is exactly that long.

    Raises:
        BadInputError: it is not; with both lengths.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(HEAD.size)
    if len(start) < HEAD.size:
        raise damaged(name, f"it has {len(start)} bytes where a .raw image begins with {HEAD.size}")
    height, width, channels = HEAD.unpack(start)
    expected = HEAD.size + height * width * channels * FLOAT32.itemsize
    if min(height, width, channels) < 1 or size != expected:
        raise damaged(
            name, f"it declares {height} x {width} pixels with {channels} channels, which does not fit its {size} bytes"
        )
    return Header(height, width, channels, np.dtype(np.float32))


def read_raw(path: Path, header: Header) -> NDArray[Any]:
    """The values, (H, W, C) float32."""
    values = np.fromfile(path, FLOAT32, offset=HEAD.size)
    return values.reshape(header.height, header.width, header.channels)
