"""Image files that are broken, or made to hurt: a sentence, before memory is taken."""

from __future__ import annotations

import io
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from segserve.errors import BadInputError, SegserveError, TooLargeError
from segserve.tiles.io import read_image, read_mask
from tests.test_tile_io import DEEP, PICTURE, REAL, chunk


def huge_png() -> bytes:
    head = struct.pack(">IIBBBBB", 2**30, 2**30, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def huge_jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "JPEG")
    data = file.getvalue()
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + b"\xff\xdc\xff\xdc" + data[at + 4 :]


def huge_tiff(tag: bytes = b"", compression: str = "deflate", **options: Any) -> bytes:
    """A small TIFF whose width, or the tag given, is declared to be enormous."""
    file = io.BytesIO()
    tifffile.imwrite(file, PICTURE, photometric="rgb", compression=compression, metadata=None, **options)
    data = bytearray(file.getvalue())
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as parsed:
        entry = parsed.pages[0].tags[tag.decode() or "ImageWidth"]  # type: ignore[union-attr]
    data[entry.offset + 2 : entry.offset + 12] = struct.pack("<HII", 4, 1, 2**30)
    return bytes(data)


def bomb_in_jpeg_tiff() -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((64, 64, 3), np.uint8), photometric="rgb", compression="jpeg", metadata=None)
    data = file.getvalue()
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + b"\xff\xdc\xff\xdc" + data[at + 4 :]


def tiff_of_many_widths() -> bytes:
    """The width tag is declared to hold 10 000 values, the length to be enormous."""
    data = bytearray(huge_tiff(b"ImageLength"))
    with tifffile.TiffFile(io.BytesIO(bytes(data) + bytes(50_000))) as parsed:
        entry = parsed.pages[0].tags["ImageWidth"]  # type: ignore[union-attr]
    data[entry.offset + 2 : entry.offset + 12] = struct.pack("<HII", 3, 10_000, 0)
    return bytes(data) + bytes(50_000)


def tiff_in_a_circle() -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, PICTURE, photometric="rgb", metadata=None)
    data = bytearray(file.getvalue())
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    struct.pack_into("<I", data, start + 2 + 12 * count, start)
    return bytes(data)


HOSTILE = {
    "png": huge_png(),
    "jpeg": huge_jpeg(),
    "tiff": huge_tiff(),
    "tiff length": huge_tiff(b"ImageLength"),
    "tiff in a circle": tiff_in_a_circle(),
    "tiff of many widths": tiff_of_many_widths(),
    "tiff tile": huge_tiff(b"TileWidth", tile=(16, 16)),
    "tiff jpeg": bomb_in_jpeg_tiff(),
    "raw": struct.pack("<3i", 2**30, 2**30, 3) + bytes(100),
    "raw of negative size": struct.pack("<3i", -4, -4, 1) + bytes(64),
    "raw without values": struct.pack("<3i", 0, 5, 1),
    "raw with too much": struct.pack("<3i", 2, 2, 1) + bytes(17),
    "nothing": b"",
    "text": b"hello, world",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_before_memory_is_taken(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("a.raw" if kind.startswith("raw") else "a.tif")
    path.write_bytes(HOSTILE[kind])
    tracemalloc.start()
    with pytest.raises(SegserveError, match="patches/one") as caught:
        read_image(path, name="patches/one")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20
    assert str(tmp_path) not in caught.value.message


def test_the_limit_on_pixels_is_the_callers(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", max_pixels=960).shape == (40, 24, 3)
    with pytest.raises(TooLargeError, match=r"40 x 24 pixels with 3 channels, more than the 959"):
        read_image(tmp_path / "a.png", max_pixels=959)


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "tiff":
        tifffile.imwrite(file, PICTURE, photometric="rgb", rowsperstrip=10)
    elif kind == "deflate":
        tifffile.imwrite(file, PICTURE, photometric="rgb", compression="deflate")
    elif kind == "png16":
        file.write(imagecodecs.png_encode(DEEP))
    else:
        Image.fromarray(PICTURE).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["tiff", "deflate", "png", "png16", "jpeg"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_cut_anywhere_is_a_sentence(
    tmp_path: Path, kind: str, data: st.DataObject, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = encoded(kind)
    (tmp_path / "a.bin").write_bytes(whole[: data.draw(st.integers(0, len(whole) - 40))])
    with pytest.raises(BadInputError, match=r"a\.bin"):
        read_image(tmp_path / "a.bin")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["tiff", "deflate", "png", "png16", "jpeg"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_spoilt_file_is_an_image_or_a_sentence(
    tmp_path: Path, kind: str, data: st.DataObject, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = bytearray(encoded(kind))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(4, min(len(whole) - 1, 400)))] = data.draw(st.integers(0, 255))
    (tmp_path / "a.bin").write_bytes(whole)
    outcome = ""
    try:
        outcome = f"{read_image(tmp_path / 'a.bin', max_pixels=2**16).ndim} dimensions"
    except (BadInputError, TooLargeError) as error:
        outcome = error.message
    assert "a.bin" in outcome or outcome == "3 dimensions"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    image = REAL.astype(np.float64)
    image[3, 4, 1] = value
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb")
    with pytest.raises(BadInputError, match=r"a\.tif holds values that are not finite"):
        read_image(tmp_path / "a.tif")


def test_pages_of_different_sizes_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(PICTURE, photometric="rgb")
        writer.write(PICTURE[:20], photometric="rgb")
    with pytest.raises(BadInputError, match="images of different sizes"):
        read_image(tmp_path / "a.tif")


def test_a_file_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"a\.tif cannot be opened by the server \(No such file"):
        read_image(tmp_path / "a.tif")


def test_a_jpeg_is_no_mask(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "m.png", "JPEG")
    with pytest.raises(BadInputError, match=r"m\.png is a JPEG file: masks are PNG"):
        read_mask(tmp_path / "m.png")
