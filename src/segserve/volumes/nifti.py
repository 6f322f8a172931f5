"""NIfTI files: reading voxels where they lie, and writing labels under the same header."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from segserve.errors import BadInputError
from segserve.volumes.frame import header_affine
from segserve.volumes.geometry import Affine

HEADER_SIZES = {348: Nifti1Header, 540: Nifti2Header}
MAGICS = {348: b"n+1\0", 540: b"n+2\0\r\n\032\n"}
MAGIC_PLACES = {348: 344, 540: 4}
LABEL_INTENT = 1002
MAX_HEADER = 64 * 2**20  # extensions included


@dataclass(frozen=True)
class NiftiHeader:
    """What a NIfTI header says of the voxels.

    Attributes:
        header: nibabel's header.
        shape: the array's (K, J, I): the slowest axis of the file first.
        dtype: of the stored values, the file's byte order included.
        offset: where the voxels begin, in bytes.
        slope, intercept: `stored * slope + intercept` are the values.
        affine: 4x4, (i, j, k) to RAS millimetres.
    """

    header: Nifti1Header
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    affine: Affine

    @property
    def voxels(self) -> int:
        """How many voxels there are."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes from the file's start to its last voxel."""
        return self.offset + self.voxels * self.dtype.itemsize


def parse_header(start: bytes) -> NiftiHeader:
    """Read a header from the first bytes of an uncompressed file (at least 540, or the whole file).

    Raises:
        BadInputError: it is no single-file NIfTI volume, or one that cannot be segmented, and why.
    """
    size = _header_size(start)
    try:
        header = HEADER_SIZES[size](binaryblock=start[:size], check=False)
        dtype = header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
    except (HeaderDataError, ValueError, KeyError) as error:
        raise BadInputError(f"The NIfTI header is damaged: {str(error).splitlines()[0]}.") from None
    if dtype.names or dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise BadInputError(
            f"The image holds {_type_name(header)} voxels; send a scalar integer or floating point image."
        )
    return NiftiHeader(
        header,
        _shape(header),
        dtype,
        _offset(header, size),
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
        header_affine(header),
    )


def label_header(source: NiftiHeader, dtype: np.dtype[Any]) -> Nifti1Header:
    """The header of the label map: the source's but for data type, scaling, display range, description, intent."""
    header = source.header.copy()
    header.set_data_dtype(dtype)
    for field, value in (
        ("scl_slope", 1),
        ("scl_inter", 0),
        ("cal_max", 0),
        ("cal_min", 0),
        ("intent_code", LABEL_INTENT),
    ):
        header[field] = value
    for field in ("intent_p1", "intent_p2", "intent_p3"):
        header[field] = 0
    header["intent_name"] = b""
    header["descrip"] = b"Segserve label map"
    return header


def read_planes(path: Path, source: NiftiHeader, axis: int, start: int, stop: int) -> NDArray[Any]:
    """Planes [start, stop) of an array axis, read-only and mapped, not loaded: memory holds what is touched."""
    return map_planes(path, source.dtype, source.offset, source.shape, axis, start, stop, "r")


def map_planes(
    path: Path,
    dtype: np.dtype[Any],
    offset: int,
    shape: tuple[int, int, int],
    axis: int,
    start: int,
    stop: int,
    mode: Literal["r", "r+"],
) -> NDArray[Any]:
    """Map planes [start, stop) of an axis of the (K, J, I) array that lies in `path` from `offset` on.

    Along the file's slowest axis only those planes are mapped, so that a sweep over a long volume keeps just
    its surroundings in memory.
    """
    if axis == 0:
        skipped = start * shape[1] * shape[2] * dtype.itemsize
        return np.memmap(path, dtype, mode, offset + skipped, (stop - start, *shape[1:]))
    chosen: list[slice] = [slice(None)] * 3
    chosen[axis] = slice(start, stop)
    return np.memmap(path, dtype, mode, offset, shape)[tuple(chosen)]


def _header_size(start: bytes) -> int:
    for size in HEADER_SIZES:
        if int.from_bytes(start[:4], "little") == size or int.from_bytes(start[:4], "big") == size:
            magic = start[MAGIC_PLACES[size] :][: len(MAGICS[size])]
            if len(start) >= size and magic == MAGICS[size]:
                return size
            if magic[:3] in {b"ni1", b"ni2"}:
                raise BadInputError(
                    "This is the .hdr half of a NIfTI pair: save the image as one .nii or .nii.gz file."
                )
            raise BadInputError(
                "This is an Analyze image or a damaged NIfTI header: save the image as .nii or .nii.gz."
            )
    raise BadInputError(
        "The image is not a NIfTI, NRRD or MetaImage file: save it as .nii, .nii.gz, .nrrd or .mha and send it again."
    )


def _shape(header: Nifti1Header) -> tuple[int, int, int]:
    count = int(header["dim"][0])
    sizes = [int(size) for size in header["dim"][1 : count + 1]]
    if not 2 <= count <= 7 or any(size < 1 for size in sizes):
        raise BadInputError(
            f"The image's dimensions {sizes or count} make no sense: a volume has 2 or 3 of at least 1."
        )
    if math.prod(sizes[3:]) != 1:
        raise BadInputError(f"The image has dimensions {sizes}: send one 3D volume, not a series or a vector image.")
    i, j, k = (*sizes[:3], 1)[:3]
    return k, j, i


def _offset(header: Nifti1Header, size: int) -> int:
    offset = float(header["vox_offset"])
    if not math.isfinite(offset) or not size + 4 <= offset <= MAX_HEADER:
        raise BadInputError(f"The NIfTI header says that the voxels begin at byte {offset:g}, which cannot be.")
    return int(offset)


def _type_name(header: Nifti1Header) -> str:
    return str(header.get_value_label("datatype"))
