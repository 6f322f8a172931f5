"""An uploaded image made ready: decompressed onto disk within limits, its header read, its odd values found."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from isal import igzip, isal_zlib
from numpy.typing import NDArray

from segserve.errors import BadInputError, TooLargeError, human_bytes
from segserve.volumes.nifti import NiftiHeader, parse_header, read_planes
from segserve.volumes.window import Intensities

GZIP_MAGIC = b"\x1f\x8b"
CHUNK = 2**20
# isal's stubs call its error an instance, not a class.
DAMAGED_GZIP = cast("tuple[type[Exception], ...]", (igzip.BadGzipFile, isal_zlib.error, zlib.error, EOFError))


@dataclass(frozen=True)
class Limits:
    """What is refused before any memory is taken for it."""

    max_decompressed: int
    max_voxels: int
    memory_limit: int = 0


@dataclass(frozen=True)
class Source:
    """An image on disk whose voxels can be mapped.

    Attributes:
        path: the uncompressed file.
        nifti: its header.
    """

    path: Path
    nifti: NiftiHeader

    def planes(self, axis: int, start: int, stop: int) -> NDArray[Any]:
        """Stored voxels of planes [start, stop) of an axis of the (K, J, I) array, read-only."""
        return read_planes(self.path, self.nifti, axis, start, stop)

    def intensities(self) -> tuple[Intensities, list[str]]:
        """How stored values become the image's, and warnings: NaN and infinity count as the lowest finite value.

        Raises:
            BadInputError: no voxel is finite.
        """
        nifti = self.nifti
        plain = Intensities(nifti.slope, nifti.intercept)
        if nifti.dtype.kind in "iu" and not plain.scaled:
            return plain, []
        lowest, odd = np.inf, 0
        for plane in range(nifti.shape[0]):
            values = plain.values(self.planes(0, plane, plane + 1))
            finite = np.isfinite(values)
            odd += int(values.size - np.count_nonzero(finite))
            lowest = min(lowest, float(values.min(where=finite, initial=np.inf)))
        if not odd:
            return plain, []
        if odd == nifti.voxels:
            raise BadInputError("Every voxel of the image is NaN or infinite.")
        warning = f"{odd} voxels were NaN or infinite and count as the lowest finite value, {lowest:g}"
        return Intensities(nifti.slope, nifti.intercept, fill=lowest), [warning]


def open_image(path: Path, scratch: Path, limits: Limits) -> Source:
    """Make an uploaded file ready for reading.

    Args:
        path: .nii or .nii.gz, told apart by content.
        scratch: a folder for the decompressed copy.
        limits: checked against the header's claims before anything is decompressed or allocated.

    Raises:
        BadInputError: the file is empty, damaged, truncated, or not a NIfTI volume.
        TooLargeError: it is over a limit.
    """
    with path.open("rb") as stream:
        magic = stream.read(2)
    if not magic:
        raise BadInputError("The image file is empty.")
    if magic != GZIP_MAGIC:
        with path.open("rb") as stream:
            nifti = _checked_header(stream.read(544), limits)
        _check_complete(path.stat().st_size, nifti)
        return Source(path, nifti)
    try:
        with igzip.open(path, "rb") as stream:
            return _decompress(stream, scratch / "image.nii", limits)
    except DAMAGED_GZIP as error:
        raise BadInputError(f"The image's gzip compression is damaged: {error}. Save it again and resend it.") from None


def _decompress(stream: BinaryIO, target: Path, limits: Limits) -> Source:
    start = stream.read(544)
    nifti = _checked_header(start, limits)
    written = 0
    with target.open("wb") as out:
        chunk = start
        while chunk and written < nifti.size:
            written += out.write(chunk[: nifti.size - written])
            chunk = stream.read(CHUNK)
    _check_complete(written, nifti)
    return Source(target, nifti)


def _checked_header(start: bytes, limits: Limits) -> NiftiHeader:
    nifti = parse_header(start)
    if nifti.voxels > limits.max_voxels:
        shape = " x ".join(str(size) for size in nifti.shape[::-1])
        raise TooLargeError(
            f"The image has {shape} = {nifti.voxels} voxels; the limit is {limits.max_voxels} (max_voxels)."
        )
    if nifti.size > limits.max_decompressed:
        raise TooLargeError(
            f"The image is {human_bytes(nifti.size)} once decompressed; "
            f"this server takes at most {human_bytes(limits.max_decompressed)} (max_decompressed)."
        )
    return nifti


def _check_complete(size: int, nifti: NiftiHeader) -> None:
    if size < nifti.size:
        raise BadInputError(
            f"The image file is cut short: its header promises {nifti.size} bytes, {size} are there. Save it again."
        )
