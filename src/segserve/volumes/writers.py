"""Finished labels to files: NIfTI under the source's header, NRRD and MetaImage on the source's grid.

All are written as the labels come off the disk; ITK's writers would want the volume in memory, one of them thrice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
from isal import igzip, isal_zlib

from segserve.errors import BadInputError
from segserve.volumes.frame import LPS_TO_RAS
from segserve.volumes.geometry import Affine
from segserve.volumes.itk import is_sheared
from segserve.volumes.nifti import NiftiHeader, label_header
from segserve.volumes.source import Source
from segserve.volumes.unpack import read_chunks

COMPRESSION = 2  # isal's levels go from 0 to 3; 2 packs labels as tightly as 3 in less time
NRRD_TYPES = {"u1": "uchar", "u2": "ushort"}
META_TYPES = {"u1": "MET_UCHAR", "u2": "MET_USHORT"}
META_SIZE_DIGITS = 20  # its place is kept until the compressed size is known


@dataclass(frozen=True)
class Finished:
    """The labels of a source, complete, on disk in the source's own array order and native byte order."""

    path: Path
    dtype: np.dtype[Any]
    source: Source

    def chunks(self, order: Literal["<", ">"]) -> Iterator[bytes]:
        """The labels in the byte order `<` or `>`."""
        stored = self.dtype.newbyteorder(order)
        with self.path.open("rb") as stream:
            for chunk in read_chunks(stream):
                yield chunk if stored == self.dtype else np.frombuffer(chunk, self.dtype).astype(stored).tobytes()


def writer_for(name: str) -> Callable[[Finished, Path], None]:
    """What writes a file of that name.

    Raises:
        BadInputError: nothing does.
    """
    for suffix, write in WRITERS.items():
        if name.lower().endswith(suffix):
            return write
    raise BadInputError(
        f"Labels are written as {', '.join(WRITERS)}, told by the name's ending; {name} has none of them."
    )


@dataclass(frozen=True)
class _Grid:
    """A grid as ITK has it: `size` (i, j, k), and LPS millimetres."""

    size: list[int]
    spacing: Affine
    direction: Affine
    origin: Affine


def _grid(source: NiftiHeader) -> _Grid:
    lps = LPS_TO_RAS @ source.affine
    # As ITK does, a 2D image stays one where its plane is the patient's own.
    count = 2 if int(source.header["dim"][0]) == 2 and not lps[2, :2].any() else 3
    axes = lps[:count, :count]
    if is_sheared(axes):
        raise BadInputError(
            "The image's axes are not perpendicular, which .nrrd and .mha cannot tell: write the labels as .nii.gz."
        )
    spacing = np.linalg.norm(axes, axis=0)
    return _Grid(list(source.shape[::-1][:count]), spacing, axes / spacing, lps[:count, 3])


def _write_nifti(labels: Finished, target: Path) -> None:
    with target.open("wb") as out:
        _fill_nifti(labels, out)


def _write_gzipped_nifti(labels: Finished, target: Path) -> None:
    with target.open("wb") as raw, _gzip(raw) as out:
        _fill_nifti(labels, out)


def _fill_nifti(labels: Finished, out: BinaryIO) -> None:
    header = label_header(labels.source.nifti, labels.dtype)
    out.write(header.binaryblock)
    out.writelines(_extensions(labels.source, len(header.binaryblock)))
    out.writelines(labels.chunks(header.endianness))


def _extensions(source: Source, start: int) -> Iterator[bytes]:
    """What lies between the header and the voxels of the source."""
    if source.made:
        yield bytes(4)
        return
    with source.path.open("rb") as stream:
        stream.seek(start)
        left = source.nifti.offset - start
        for chunk in read_chunks(stream):
            yield chunk[:left]
            left -= len(chunk)
            if left <= 0:
                return


def _write_nrrd(labels: Finished, target: Path) -> None:
    grid = _grid(labels.source.nifti)
    count = len(grid.size)
    header = [
        "NRRD0004",
        f"type: {NRRD_TYPES[labels.dtype.str[1:]]}",
        f"dimension: {count}",
        "space: left-posterior-superior" if count == 3 else "space dimension: 2",
        f"sizes: {_row(grid.size)}",
        f"space directions: {' '.join(_vector(axis) for axis in (grid.direction * grid.spacing).T)}",
        f"kinds: {' '.join(['domain'] * count)}",
        "endian: little",
        "encoding: gzip",
        f"space origin: {_vector(grid.origin)}",
    ]
    with target.open("wb") as raw:
        raw.write(("\n".join(header) + "\n\n").encode())
        with _gzip(raw) as out:
            out.writelines(labels.chunks("<"))


def _write_metaimage(labels: Finished, target: Path) -> None:
    grid = _grid(labels.source.nifti)
    size = "CompressedDataSize = "
    head = [
        "ObjectType = Image",
        f"NDims = {len(grid.size)}",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
        size,
    ]
    rest = [
        f"TransformMatrix = {_row(grid.direction.T.ravel())}",
        f"Offset = {_row(grid.origin)}",
        f"ElementSpacing = {_row(grid.spacing)}",
        f"DimSize = {_row(grid.size)}",
        f"ElementType = {META_TYPES[labels.dtype.str[1:]]}",
        "ElementDataFile = LOCAL",
    ]
    with target.open("wb") as out:
        out.write("\n".join(head).encode())
        place = out.tell()
        out.write((" " * META_SIZE_DIGITS + "\n" + "\n".join(rest) + "\n").encode())
        began = out.tell()
        deflater = isal_zlib.compressobj(COMPRESSION)
        out.writelines(map(deflater.compress, labels.chunks("<")))
        out.write(deflater.flush())
        packed = out.tell() - began
        out.seek(place)
        out.write(f"{packed:<{META_SIZE_DIGITS}d}".encode())


def _gzip(raw: BinaryIO) -> BinaryIO:
    stream = igzip.IGzipFile(filename="", mode="wb", compresslevel=COMPRESSION, fileobj=raw, mtime=0)
    return cast("BinaryIO", stream)


def _row(values: Any) -> str:  # noqa: ANN401  # numbers, in a list or an array
    """Numbers as text that reads back exactly; no -0."""
    return " ".join(f"{value + 0:.17g}" for value in values)


def _vector(values: Affine) -> str:
    return f"({_row(values).replace(' ', ',')})"


WRITERS: dict[str, Callable[[Finished, Path], None]] = {
    ".nii.gz": _write_gzipped_nifti,
    ".nii": _write_nifti,
    ".nrrd": _write_nrrd,
    ".mha": _write_metaimage,
}
