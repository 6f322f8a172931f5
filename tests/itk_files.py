"""NRRD and MetaImage files: ITK's own, and ones written by hand so that a header holds what the test says."""

from __future__ import annotations

import gzip
import zlib
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import SimpleITK

from tests import volumes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.volumes import Array

Encoding = Literal["raw", "gzip", "zlib", "text"]

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
NRRD_TYPES = {
    "i1": "signed char",
    "u1": "uchar",
    "i2": "short",
    "u2": "ushort",
    "i4": "int",
    "u4": "uint",
    "i8": "longlong",
    "u8": "ulonglong",
    "f4": "float",
    "f8": "double",
}
META_TYPES = {
    "i1": "MET_CHAR",
    "u1": "MET_UCHAR",
    "i2": "MET_SHORT",
    "u2": "MET_USHORT",
    "i4": "MET_INT",
    "u4": "MET_UINT",
    "i8": "MET_LONG_LONG",
    "u8": "MET_ULONG_LONG",
    "f4": "MET_FLOAT",
    "f8": "MET_DOUBLE",
}
DTYPES = list(NRRD_TYPES)


def image_of(stored: Array, affine: Array) -> SimpleITK.Image:
    """ITK's image of array[i, j, k] under a NIfTI affine."""
    count = stored.ndim
    lps = (LPS @ affine)[:count, [*range(count), 3]]
    spacing = np.linalg.norm(lps[:, :count], axis=0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(stored.T), isVector=False)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:, :count] / spacing).ravel().tolist())
    image.SetOrigin(lps[:, count].tolist())
    return image


def save(path: Path, image: SimpleITK.Image, *, compress: bool = False) -> Path:
    SimpleITK.WriteImage(image, str(path), useCompression=compress)
    return path


def load(path: Path, content: bytes | None = None) -> SimpleITK.Image:
    """What ITK reads from a file, or from bytes that are first put there."""
    if content is not None:
        path.write_bytes(content)
    return SimpleITK.ReadImage(str(path))


def array_of(image: SimpleITK.Image) -> Array:
    """ITK's voxels as array[i, j, k]."""
    return np.asarray(SimpleITK.GetArrayFromImage(image).T)


def assert_same_place(one: SimpleITK.Image, other: SimpleITK.Image, tolerance: float = 1e-5) -> None:
    assert one.GetSize() == other.GetSize()
    for name in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(one, name)(), getattr(other, name)(), rtol=tolerance, atol=tolerance)


def nrrd(
    stored: Array,
    encoding: Encoding = "raw",
    order: Literal["<", ">"] = "<",
    end: str = "\n",
    fields: Mapping[str, str | None] | None = None,
) -> bytes:
    """A .nrrd of array[i, j, k], oriented as RAS; `fields` replace the header's, and leave out those that are None."""
    count = stored.ndim
    directions = np.diag(volumes.SPACING)[:count, :count]
    header: dict[str, str | None] = {
        "type": NRRD_TYPES[stored.dtype.str[1:]],
        "dimension": str(count),
        "space": "right-anterior-superior" if count == 3 else None,
        "space dimension": None if count == 3 else str(count),
        "sizes": row(stored.shape),
        "space directions": " ".join(f"({row(vector, ',')})" for vector in directions),
        "endian": {"<": "little", ">": "big"}[order],
        "encoding": encoding,
        "space origin": f"({row([*volumes.ORIGIN, 0][:count], ',')})",
        **(fields or {}),
    }
    lines = ["NRRD0004", "# written by a test", *(f"{name}: {value}" for name, value in header.items() if value)]
    return end.join([*lines, "note:=a key and a value", "", ""]).encode() + packed(stored, encoding, order)


def meta(
    stored: Array,
    encoding: Encoding = "raw",
    order: Literal["<", ">"] = "<",
    end: str = "\n",
    fields: Mapping[str, str | None] | None = None,
) -> bytes:
    """A .mha of array[i, j, k], oriented as LPS; `fields` as for NRRD."""
    count = stored.ndim
    voxels = packed(stored, encoding, order)
    header: dict[str, str | None] = {
        "ObjectType": "Image",
        "NDims": str(count),
        "BinaryData": str(encoding != "text"),
        "BinaryDataByteOrderMSB": str(order == ">"),
        "CompressedData": str(encoding in {"zlib", "gzip"}),
        "CompressedDataSize": str(len(voxels)) if encoding in {"zlib", "gzip"} else None,
        "TransformMatrix": row(np.eye(count).ravel()),
        "Offset": row([*volumes.ORIGIN, 0][:count]),
        "ElementSpacing": row([*volumes.SPACING, 1][:count]),
        "DimSize": row(stored.shape),
        "ElementType": META_TYPES[stored.dtype.str[1:]],
        **(fields or {}),
    }
    lines = [f"{name} = {value}" for name, value in header.items() if value]
    return end.join([*lines, "Note = of a test", "ElementDataFile = LOCAL", ""]).encode() + voxels


def packed(stored: Array, encoding: Encoding, order: Literal["<", ">"] = "<") -> bytes:
    if encoding == "text":
        values = stored.ravel(order="F").tolist()
        return "".join(
            " ".join(map(str, values[first : first + 9])) + "\n" for first in range(0, len(values), 9)
        ).encode()
    plain = stored.astype(stored.dtype.newbyteorder(order)).tobytes(order="F")
    if encoding == "gzip":
        return gzip.compress(plain, mtime=0)
    return zlib.compress(plain) if encoding == "zlib" else plain


def row(values: npt.ArrayLike, separator: str = " ") -> str:
    return separator.join(str(value) for value in np.asarray(values).tolist())
