"""Image files of every kind against Pillow and tifffile."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from segserve.errors import BadInputError
from segserve.tiles.io import Header, read_header, read_image, read_mask

GENERATOR = np.random.default_rng(0)


PICTURE = GENERATOR.integers(0, 256, (40, 24, 3), dtype=np.uint8)


DEEP = GENERATOR.integers(300, 65536, (40, 24, 3), dtype=np.uint16)


REAL = GENERATOR.normal(size=(40, 24, 3)).astype(np.float32)


def check(path: Path, expected: NDArray[Any], dtype: type[np.generic] | None = None) -> None:
    """The file reads as `expected`, and its header agrees."""
    values = read_image(path)
    assert values.dtype == (dtype or expected.dtype)
    np.testing.assert_array_equal(values, expected)
    header = read_header(path)
    assert (header.height, header.width, header.channels) == expected.shape


@pytest.mark.parametrize("options", [
    {},
    {"compression": "deflate", "predictor": True},
    {"compression": "lzw"},
    {"compression": "packbits"},
    {"compression": "zstd"},
    {"tile": (16, 16)},
    {"planarconfig": "separate"},
    {"byteorder": ">"},
    {"bigtiff": True},
    {"metadata": None},
    {"rowsperstrip": 7},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("image", [PICTURE, DEEP, REAL], ids=["uint8", "uint16", "float32"])
def test_tiff_round_trips(tmp_path: Path, options: dict[str, Any], image: NDArray[Any]) -> None:
    stored = image.transpose(2, 0, 1) if options.get("planarconfig") == "separate" else image
    if options.get("predictor") and image.dtype == np.float32:
        options = options | {"predictor": 3}
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", **options)
    check(tmp_path / "a.tif", image)


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 9])
@pytest.mark.parametrize("writer", ["chunky", "pages", "pages with axes", "imagej", "ome", "bare pages"])
def test_channels_are_found_whichever_way_they_are_laid_out(tmp_path: Path, channels: int, writer: str) -> None:
    image = GENERATOR.integers(300, 65536, (40, 24, channels), dtype=np.uint16)
    planes, path = image.transpose(2, 0, 1), tmp_path / "a.tif"
    if writer == "chunky":
        planar = "contig" if channels > 1 else None
        tifffile.imwrite(path, image, photometric="minisblack", planarconfig=planar)
    else:
        kinds: dict[str, dict[str, Any]] = {
            "pages": {},
            "pages with axes": {"metadata": {"axes": "CYX"}},
            "imagej": {"imagej": True},
            "ome": {"ome": True},
            "bare pages": {"metadata": None},
        }
        tifffile.imwrite(path, planes, photometric="minisblack", **kinds[writer])
    check(path, image)


def test_rows_that_were_written_as_pages_are_rows(tmp_path: Path) -> None:
    image = GENERATOR.integers(0, 256, (40, 24, 2), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert len(file.pages) == 40
    check(tmp_path / "a.tif", image)


def test_a_stack_of_more_pages_than_pixels_is_channels(tmp_path: Path) -> None:
    planes = GENERATOR.integers(0, 256, (30, 8, 8), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="minisblack", metadata=None)
    check(tmp_path / "a.tif", planes.transpose(1, 2, 0))


@pytest.mark.parametrize("shape", [(40, 24), (1, 40, 24), (40, 24, 1), (1, 1, 40, 24), (1, 40, 24, 3)])
def test_axes_of_one_do_not_count(tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = GENERATOR.integers(0, 256, shape, dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb" if shape[-1] == 3 else "minisblack")
    check(tmp_path / "a.tif", image.reshape(40, 24, -1))


def test_jpeg_tiff_reads_as_tifffile_reads_it(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 64 * 48 * 3).reshape(64, 48, 3).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", smooth, photometric="ycbcr", compression="jpeg", tile=(32, 32))
    check(tmp_path / "a.tif", tifffile.imread(tmp_path / "a.tif"))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_tiffs_that_pillow_wrote_look_as_pillow_shows_them(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(PICTURE).convert(mode)
    picture.save(tmp_path / "a.tif")
    shown = np.asarray(picture.convert("RGB" if mode in {"P", "CMYK"} else "L"))
    values = read_image(tmp_path / "a.tif").squeeze()
    assert np.abs(values.astype(int) - shown).max() <= (1 if mode == "CMYK" else 0)


def test_white_that_is_zero_is_turned_round(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", PICTURE[..., 0], photometric="miniswhite")
    check(tmp_path / "a.tif", 255 - PICTURE[..., :1])


@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        (PICTURE.astype(np.float64), np.uint8),
        (PICTURE.astype(np.float16), np.uint8),
        (PICTURE.astype(np.int64), np.uint8),
        (DEEP.astype(np.float32), np.uint16),
        (DEEP.astype(np.uint32), np.uint16),
        (DEEP.astype(np.int32) - 40000, np.float32),
        (PICTURE.astype(np.float32) + 0.5, np.float32),
        (REAL.astype(np.float64), np.float32),
        (-np.zeros((4, 4, 3), np.float32), np.uint8),
    ],
)
def test_whole_numbers_are_kept_small_and_equal(
    tmp_path: Path, stored: NDArray[Any], kept: type[np.generic]
) -> None:  # fmt: skip
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig="contig")
    check(tmp_path / "a.tif", stored.astype(np.float32), kept)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    image=arrays.arrays(
        np.float32,
        st.tuples(*[st.integers(1, 5)] * 3),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
def test_raw_keeps_every_value(tmp_path: Path, image: NDArray[np.float32]) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(struct.pack("<3i", *image.shape) + image.astype("<f4").tobytes())
    np.testing.assert_array_equal(read_image(path), image)
    height, width, channels = image.shape
    assert read_header(path) == Header(height, width, channels, np.dtype(np.float32))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_looks_as_pillow_shows_it(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(PICTURE).convert(mode)
    picture.save(tmp_path / "a.png", transparency=3) if mode == "P" else picture.save(tmp_path / "a.png")
    shown = picture.convert({"1": "L", "P": "RGB"}.get(mode, mode))
    check(tmp_path / "a.png", np.asarray(shown).reshape(40, 24, -1))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits_keeps_them(tmp_path: Path, channels: int) -> None:
    image = GENERATOR.integers(0, 65536, (40, 24, channels), dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(image))
    check(tmp_path / "a.png", image)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_reads_as_stored_and_not_as_exif_turns_it(tmp_path: Path, mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PICTURE).convert(mode).save(tmp_path / "a.jpg", exif=exif)
    shown = np.asarray(Image.open(tmp_path / "a.jpg").convert("L" if mode == "L" else "RGB"))
    check(tmp_path / "a.jpg", shown.reshape(40, 24, -1))


def test_content_decides_what_a_file_is(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png", "JPEG")
    tifffile.imwrite(tmp_path / "b.raw", PICTURE, photometric="rgb")
    check(tmp_path / "b.raw", PICTURE)
    assert read_image(tmp_path / "a.png").shape == (40, 24, 3)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("palette", [False, True])
def test_masks_give_the_stored_numbers(tmp_path: Path, bits: int, palette: bool) -> None:
    numbers = (np.arange(40 * 24) % 2**bits).astype(np.uint8).reshape(40, 24)
    (tmp_path / "m.png").write_bytes(few_bits_png(numbers, bits, palette))
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), numbers)


def test_masks_of_equal_colours_or_16_bits_are_numbers_too(tmp_path: Path) -> None:
    numbers = GENERATOR.integers(0, 3, (40, 24), dtype=np.uint8)
    for image in (np.dstack([numbers] * 3), np.dstack([numbers, numbers * 9]), numbers.astype(np.uint16)):
        (tmp_path / "m.png").write_bytes(imagecodecs.png_encode(image))
        np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), numbers)
    (tmp_path / "m.png").write_bytes(imagecodecs.png_encode(numbers.astype(np.uint16) * 300))
    with pytest.raises(BadInputError, match=r"m\.png holds the value 600"):
        read_mask(tmp_path / "m.png")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def few_bits_png(numbers: NDArray[np.uint8], bits: int, palette: bool) -> bytes:
    """Written by the standard: no library here writes every depth."""
    height, width = numbers.shape
    rows = np.unpackbits(numbers[..., None], axis=2)[..., 8 - bits :].reshape(height, -1)
    packed = np.packbits(rows, axis=1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))
    head = struct.pack(">IIBBBBB", width, height, bits, 3 if palette else 0, 0, 0, 0)
    colours = chunk(b"PLTE", bytes(3 * (index % 5) for index in range(3 * 2**bits))) if palette else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + colours + chunk(b"IDAT", data) + chunk(b"IEND", b"")
