"""NIfTI files of every kind, written byte by byte so that a header holds what the test says."""

from __future__ import annotations

import gzip
import io
from dataclasses import dataclass, field
from itertools import permutations, product
from typing import TYPE_CHECKING, Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

Array = npt.NDArray[Any]

_PAIRS = ("RL", "AP", "SI")
_DIRECTIONS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
ORIENTATIONS = ["".join(letters) for pairs in permutations(_PAIRS) for letters in product(*pairs)]
SPACING = (0.7, 1.25, 3.0)
ORIGIN = (-31.5, 17.25, 42.0)


def affine_of(letters: str, spacing: Sequence[float] = SPACING) -> Array:
    """The NIfTI affine (millimetres to the right, front, top) of a grid whose axes grow towards `letters`."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([_DIRECTIONS[letter] for letter in letters], dtype=float).T * spacing
    affine[:3, 3] = ORIGIN
    return affine


def rotation(degrees: Sequence[float]) -> Array:
    """A 4x4 rotation about the three patient axes, one after the other."""
    turned = np.eye(4)
    for axis, angle in enumerate(np.radians(degrees)):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(4)
        step[[first, second], [first, second]] = np.cos(angle)
        step[first, second], step[second, first] = -np.sin(angle), np.sin(angle)
        turned = step @ turned
    return turned


def shear(amount: float) -> Array:
    """A 4x4 shear that leans the patient's y and z axes over."""
    leaned = np.eye(4)
    leaned[0, 1], leaned[1, 2] = amount, -amount
    return leaned


def distinct(shape: Sequence[int], dtype: npt.DTypeLike = np.int16, seed: int = 0) -> Array:
    """Every voxel another whole number, shuffled, about half of them negative where the type allows."""
    count = int(np.prod(shape))
    lowest = 0 if np.dtype(dtype).kind == "u" else -(count // 2)
    values = np.random.default_rng(seed).permutation(count) + lowest
    return values.reshape(shape).astype(dtype)


@dataclass
class Header:
    """What a test wants to say about a file; the rest is ordinary. `fields` go into the header last, as they are."""

    sform: Array | None = None
    qform: Array | None = None
    sform_code: int = 1
    qform_code: int = 1
    version: int = 1
    endian: Literal["<", ">"] = "<"
    slope: float = float("nan")
    inter: float = float("nan")
    units: int = 10
    extensions: tuple[tuple[int, bytes], ...] = ()
    fields: Mapping[str, object] = field(default_factory=dict)


def build(header: Header, stored: Array) -> nib.Nifti1Header:
    """The nibabel header of `stored` with both transforms written exactly as asked."""
    kind = nib.Nifti2Header if header.version == 2 else nib.Nifti1Header
    made = kind(endianness=header.endian)
    made.set_data_dtype(stored.dtype.newbyteorder(header.endian))
    made.set_data_shape(stored.shape)
    made["pixdim"][1 : 1 + stored.ndim] = [0.7, 1.25, 3.0, 2.0, 1.0, 1.0, 1.0][: stored.ndim]
    if header.qform is not None:
        made.set_qform(header.qform, header.qform_code)
    if header.sform is not None:
        made.set_sform(header.sform, header.sform_code)
    made["xyzt_units"] = header.units
    made["scl_slope"], made["scl_inter"] = header.slope, header.inter
    made["descrip"], made["aux_file"], made["intent_name"] = b"made by a test", b"beside.txt", b"before"
    made["cal_min"], made["cal_max"] = -100, 400
    made["toffset"], made["slice_duration"] = 1.5, 0.25
    made["magic"] = b"n+2" if header.version == 2 else b"n+1"
    return made


def write(path: Path, stored: Array, header: Header | None = None) -> Path:
    """Write a .nii or .nii.gz (by suffix): header, extensions, then the voxels as they are."""
    wanted = header or Header(sform=affine_of("RAS"))
    made = build(wanted, stored)
    extensions = b"".join(_extension(code, content, wanted.endian) for code, content in wanted.extensions)
    flag = b"\1\0\0\0" if extensions else b"\0\0\0\0"
    made["vox_offset"] = len(made.binaryblock) + len(flag) + len(extensions)
    for name, value in wanted.fields.items():
        made[name] = value
    voxels = stored.astype(stored.dtype.newbyteorder(wanted.endian)).tobytes(order="F")
    content = made.binaryblock + flag + extensions + voxels
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def _extension(code: int, content: bytes, endian: str) -> bytes:
    size = -(-(8 + len(content)) // 16) * 16
    return np.array([size, code], endian + "i4").tobytes() + content.ljust(size - 8, b"\0")


def plain(content: bytes) -> bytes:
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def read(content: bytes) -> nib.Nifti1Image:
    """The nibabel image of a .nii or .nii.gz held in memory."""
    kind = nib.Nifti2Image if _is_second_version(content) else nib.Nifti1Image
    return kind.from_stream(io.BytesIO(plain(content)))


def header_of(content: bytes) -> nib.Nifti1Header:
    """The header as it stands in the file: the image's own has lost its offset and scaling."""
    kind = nib.Nifti2Header if _is_second_version(content) else nib.Nifti1Header
    return kind(plain(content)[: kind.template_dtype.itemsize], check=False)


def _is_second_version(content: bytes) -> bool:
    return plain(content)[:4] in {b"\x1c\x02\0\0", b"\0\0\x02\x1c"}


def labels_of(content: bytes) -> Array:
    """The label volume of an answer, as stored: array[i, j, k]."""
    return np.asarray(read(content).dataobj)
