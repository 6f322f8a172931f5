"""NRRD and MetaImage: where their voxels lie, as ITK reads it from a header of ours that holds nothing else.

ITK never sees an uploaded file. Both of its readers open files that a header names and trust lengths that it gives;
one takes damaged voxels for good ones. `nrrd` and `metaimage` therefore copy the known fields of shape, type and
place into a short header for ITK; the voxels are read by `source`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from segserve.errors import BadInputError
from segserve.volumes.frame import LPS_TO_RAS
from segserve.volumes.geometry import Affine, directions
from segserve.volumes.nifti import NiftiHeader

MAX_HEADER = 2**20
MAX_AXES = 5  # more than ITK's readers take would be read past the end of their tables
LONGEST_AXIS = 2**31 - 1  # ITK keeps lengths in 32 bits and cuts off the rest
LONGEST_NIFTI1_AXIS = 2**15 - 1
LEAN = 1e-3  # directions written with few digits are that far from perpendicular; beyond, it is shear
KINDS = {"signed integer": "i", "unsigned integer": "u", "float": "f"}
SCANNER = 1  # NIfTI's code for a place in the scanner's frame


@dataclass(frozen=True)
class AttachedData:
    """A header, taken apart, with its voxels in the same file.

    Attributes:
        format: as people call it.
        reader, suffix: what ITK calls its reader, and the ending that the reader wants.
        header: for ITK, the fields of shape, type and place alone.
        encoding: how the voxels are written; `deflated` is in zlib or gzip.
        order: the voxels' byte order; None where the header does not tell.
        offset: where the voxels begin, in bytes.
    """

    format: str
    reader: str
    suffix: str
    header: str
    encoding: Literal["raw", "deflated", "text"]
    order: Literal["<", ">"] | None
    offset: int


def check_axes(format_name: str, sizes: list[int]) -> None:
    """Refuse a header whose lengths ITK would not take as they are.

    Raises:
        BadInputError: there are too many, or one is no length.
    """
    if not 2 <= len(sizes) <= MAX_AXES or not all(1 <= size <= LONGEST_AXIS for size in sizes):
        raise BadInputError(
            f"The {format_name} file's dimensions {sizes} make no sense: a volume has 2 or 3 of at least 1."
        )


def is_sheared(axes: Affine) -> bool:
    """Whether the columns of a square matrix are far from perpendicular."""
    cosines = axes / np.linalg.norm(axes, axis=0)
    return bool(np.abs(cosines.T @ cosines - np.eye(len(axes))).max() > LEAN)


def nifti_header(data: AttachedData, scratch: Path) -> NiftiHeader:
    """The NIfTI header of a NRRD or MetaImage file: its grid, in the scanner's frame, in millimetres.

    Args:
        data: the file's own header.
        scratch: a folder for a small file.

    Returns:
        A header whose offset and data type are those of the file's voxels, or of the numbers that text stands for,
        and whose affine has not gone through the float32 of NIfTI.

    Raises:
        BadInputError: it cannot be segmented, and why.
    """
    import SimpleITK as sitk  # noqa: N813  # a third of a second, which a worker that never meets such files saves

    path = scratch / f"header{data.suffix}"
    path.write_bytes(data.header.encode("ascii"))
    reader = sitk.ImageFileReader()
    reader.SetImageIO(data.reader)
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise BadInputError(
            f"The {data.format} header is damaged or holds what ITK cannot read: save the image again, as .nii.gz."
        ) from None
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    dtype = _dtype(data, kind, reader.GetNumberOfComponents())
    sizes = list(reader.GetSize())
    check_axes(data.format, sizes)
    if math.prod(sizes[3:]) != 1:
        raise BadInputError(f"The image has dimensions {sizes}: send one 3D volume, not a series or a vector image.")
    affine = _affine(data, reader)
    i, j, k = (*sizes[:3], 1)[:3]
    offset = data.offset if data.encoding == "raw" else 0
    return NiftiHeader(_header(sizes[:3], affine), (k, j, i), dtype, offset, 1.0, 0.0, affine)


def _dtype(data: AttachedData, kind: str, components: int) -> np.dtype[Any]:
    found = re.fullmatch(rf"(?:vector of )?(\d+)-bit ({'|'.join(KINDS)})", kind)
    if components != 1 or not found:
        values = f"{components} values" if components != 1 else "one value"
        raise BadInputError(
            f"The image holds {values} a voxel ({kind}); send a scalar integer or floating point image."
        )
    dtype = np.dtype(f"{KINDS[found[2]]}{int(found[1]) // 8}")
    if data.order is None and data.encoding != "text" and dtype.itemsize > 1:
        raise BadInputError(f"The {data.format} header does not tell the byte order (endian): save the image again.")
    return dtype.newbyteorder(data.order or "=")


def _affine(data: AttachedData, reader: Any) -> Affine:  # noqa: ANN401  # SimpleITK has no types
    """Voxel indices to RAS millimetres; a third axis that a 2D image lacks is added."""
    count = reader.GetDimension()
    axes = np.array(reader.GetDirection(), np.float64).reshape(count, count) @ np.diag(reader.GetSpacing())
    kept = min(count, 3)
    affine = np.eye(4)
    affine[:kept, :kept] = axes[:kept, :kept]
    affine[:kept, 3] = reader.GetOrigin()[:kept]
    with np.errstate(over="ignore"):
        stored = affine.astype(np.float32)
    if not np.isfinite(stored).all() or np.linalg.matrix_rank(directions(stored.astype(np.float64))) < 4:
        raise BadInputError(
            f"The {data.format} header's orientation makes no sense: an axis has no direction or spacing."
        )
    if is_sheared(affine[:3, :3]):
        raise BadInputError(
            f"The {data.format} header's axes are not perpendicular: resample the image, or save it as .nii.gz."
        )
    return np.asarray(LPS_TO_RAS @ affine)


def _header(sizes: list[int], affine: Affine) -> Nifti1Header:
    header = (Nifti1Header if max(sizes) <= LONGEST_NIFTI1_AXIS else Nifti2Header)()
    header.set_data_shape(sizes)
    header.set_qform(affine, SCANNER)
    header.set_sform(affine, SCANNER)
    header.set_xyzt_units("mm")
    header["vox_offset"] = header.single_vox_offset
    return header
