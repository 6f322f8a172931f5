"""An uploaded image made ready: decompressed onto disk within limits, its header read, its odd values found."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip
from numpy.typing import NDArray

from segserve.errors import BadInputError, TooLargeError, by, human_bytes
from segserve.volumes.itk import MAX_HEADER, AttachedData, nifti_header
from segserve.volumes.metaimage import NEAR, is_metaimage, parse_metaimage
from segserve.volumes.nifti import NiftiHeader, parse_header, read_planes
from segserve.volumes.nrrd import is_nrrd, parse_nrrd
from segserve.volumes.unpack import DAMAGED, GZIP_MAGIC, inflated, numbers, read_chunks, unpack
from segserve.volumes.window import Intensities

LOOK_VOXELS = 2**18
"""Looked at together, so that an axis of many small planes takes no longer than one of few large ones."""


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
        made: the header was made for it: the file itself is no NIfTI file.
    """

    path: Path
    nifti: NiftiHeader
    made: bool = False

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
        planes = max(1, LOOK_VOXELS * nifti.shape[0] // nifti.voxels)
        for start in range(0, nifti.shape[0], planes):
            values = plain.values(self.planes(0, start, min(start + planes, nifti.shape[0])))
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
        path: .nii, .nii.gz, .nrrd, .mha or .mhd, told apart by content.
        scratch: a folder for the decompressed copy.
        limits: checked against the header's claims before anything is decompressed or allocated.

    Raises:
        BadInputError: the file is empty, damaged, truncated, or no volume.
        TooLargeError: it is over a limit.
    """
    with path.open("rb") as stream:
        start = stream.read(MAX_HEADER)
    if not start:
        raise BadInputError("The image file is empty.")
    if start.startswith(GZIP_MAGIC):
        return _open_gzipped(path, scratch, limits)
    data = _attached(start)
    if data:
        return _open_attached(path, data, scratch, limits)
    nifti = parse_header(start)
    _check_limits(nifti, limits)
    _check_complete(path.stat().st_size, nifti)
    return Source(path, nifti)


def _attached(start: bytes) -> AttachedData | None:
    """The header of a NRRD or MetaImage file; None for anything else."""
    if is_nrrd(start):
        return parse_nrrd(start)
    return parse_metaimage(start) if is_metaimage(start) else None


def _open_gzipped(path: Path, scratch: Path, limits: Limits) -> Source:
    target = scratch / "image.nii"
    try:
        with igzip.open(path, "rb") as stream:
            start = stream.read(NEAR)
            if is_nrrd(start) or is_metaimage(start):
                raise BadInputError(
                    "This is a NRRD or MetaImage file in a gzip file: unpack it, or save the image again as .nii.gz."
                )
            nifti = parse_header(start)
            _check_limits(nifti, limits)
            written = unpack(chain([start], read_chunks(stream)), target, nifti.size)
    except DAMAGED as error:
        raise BadInputError(f"The image's gzip compression is damaged: {error}. Save it again and resend it.") from None
    _check_complete(written, nifti)
    return Source(target, nifti)


def _open_attached(path: Path, data: AttachedData, scratch: Path, limits: Limits) -> Source:
    nifti = nifti_header(data, scratch)
    _check_limits(nifti, limits)
    if data.encoding == "raw":
        _check_complete(path.stat().st_size, nifti)
        return Source(path, nifti, made=True)
    target = scratch / "image.raw"
    try:
        with path.open("rb") as stream:
            stream.seek(data.offset)
            chunks = numbers(stream, nifti.dtype) if data.encoding == "text" else inflated(stream)
            written = unpack(chunks, target, nifti.size)
    except DAMAGED:
        raise BadInputError("The image's compressed voxels are damaged or cut short: save the image again.") from None
    _check_complete(written, nifti)
    return Source(target, nifti, made=True)


def _check_limits(nifti: NiftiHeader, limits: Limits) -> None:
    if nifti.voxels > limits.max_voxels:
        raise TooLargeError(
            f"The image has {by(nifti.shape[::-1])} = {nifti.voxels} voxels; "
            f"the limit is {limits.max_voxels} (max_voxels)."
        )
    if nifti.size > limits.max_decompressed:
        raise TooLargeError(
            f"The image is {human_bytes(nifti.size)} once decompressed; "
            f"this server takes at most {human_bytes(limits.max_decompressed)} (max_decompressed)."
        )


def _check_complete(size: int, nifti: NiftiHeader) -> None:
    if size < nifti.size:
        raise BadInputError(
            f"The image file is cut short: its header promises {nifti.size} bytes, {size} are there. Save it again."
        )
