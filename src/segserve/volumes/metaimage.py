"""MetaImage headers (.mha, .mhd; itk.org/Wiki/ITK/MetaIO/Documentation), taken apart."""

from __future__ import annotations

import math
import re
from typing import Literal

from segserve.errors import BadInputError
from segserve.volumes.itk import MAX_AXES, AttachedData, check_axes

FIRST_FIELD = re.compile(rb"\s*[A-Za-z]\w*[ \t]*[=:]")
NEAR = 8192  # bytes in which MetaIO itself looks for the number of dimensions
SEPARATORS = "=: \t"
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?")
TRUE = ("T", "t", "1")
ONE, EACH, MATRIX = 0, 1, 2  # numbers: the number of axes to this power
PLACE = {
    "FileFormatVersion": ONE,
    "ElementNumberOfChannels": ONE,
    **dict.fromkeys(("DimSize", "ElementSpacing", "ElementSize"), EACH),
    **dict.fromkeys(("Offset", "Position", "Origin", "ImagePosition"), EACH),
    **dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), MATRIX),
}
OTHERS = (
    *("ObjectType", "NDims", "ElementType", "HeaderSize", "BinaryData", "CompressedData"),
    *("ElementByteOrderMSB", "BinaryDataByteOrderMSB"),
)
DETACHED = "The MetaImage header names another file for its voxels: save the image as one .mha file."


def is_metaimage(start: bytes) -> bool:
    """Whether a file begins as MetaImage headers do: with a field, and soon the number of dimensions."""
    return bool(FIRST_FIELD.match(start)) and b"NDims" in start[:NEAR]


def parse_metaimage(start: bytes) -> AttachedData:
    """Take a header apart.

    Args:
        start: the file's first `MAX_HEADER` bytes.

    Raises:
        BadInputError: its voxels are elsewhere, or it is damaged.
    """
    fields, offset = _fields(start)
    axes = _axes(fields)
    if fields.get("ObjectType", "Image") != "Image":
        raise BadInputError(f"The MetaImage file holds a {fields['ObjectType'][:40]!r}, not an image.")
    if fields.get("HeaderSize", "0") != "0":
        raise BadInputError("The MetaImage header wants data skipped (HeaderSize): save the image again.")
    binary = fields.get("BinaryData", "True").startswith(TRUE)
    packed = fields.get("CompressedData", "False").startswith(TRUE)
    big = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")).startswith(TRUE)
    order: Literal["<", ">"] = ">" if big else "<"
    return AttachedData(
        format="MetaImage",
        reader="MetaImageIO",
        suffix=".mha",
        header=_header(fields, axes),
        encoding=("deflated" if packed else "raw") if binary else "text",
        order=order,
        offset=offset,
    )


def _fields(start: bytes) -> tuple[dict[str, str], int]:
    """The known fields before the voxels, and where the voxels begin."""
    fields: dict[str, str] = {}
    offset = 0
    while (end := start.find(b"\n", offset)) >= 0:
        line = start[offset:end].decode("latin-1").strip()
        offset = end + 1
        name, value = _split(line)
        if name.lower() == "elementdatafile":
            if (name, value) != ("ElementDataFile", "LOCAL"):
                raise BadInputError(DETACHED)
            return fields, offset
        if name in fields:
            raise BadInputError(f"The MetaImage header gives its {name} twice: save the image again.")
        if name in PLACE or name in OTHERS:
            fields[name] = value
    raise BadInputError("The MetaImage header has no end in this file: save the image as one .mha file.")


def _split(line: str) -> tuple[str, str]:
    """A line's field and value; both empty for an empty line."""
    separator = re.search("[=:]", line)
    if separator:
        return line[: separator.start()].strip(), line[separator.start() :].lstrip(SEPARATORS)
    if line:
        raise BadInputError(f"The MetaImage header is damaged: {line[:40]!r} is no field. Save the image again.")
    return "", ""


def _axes(fields: dict[str, str]) -> int:
    count = fields.get("NDims", "")
    if not re.fullmatch(r"\d{1,4}", count) or "DimSize" not in fields or "ElementType" not in fields:
        raise BadInputError("The MetaImage header lacks NDims, DimSize or ElementType: save the image again.")
    words = fields["DimSize"].split()
    if int(count) != len(words) or not all(re.fullmatch(r"\d{1,20}", word) for word in words):
        raise BadInputError("The MetaImage header is damaged: DimSize and NDims do not agree. Save it again.")
    check_axes("MetaImage", [int(word) for word in words[: MAX_AXES + 1]])
    return len(words)


def _header(fields: dict[str, str], axes: int) -> str:
    if not re.fullmatch(r"MET_[A-Z_]{1,40}", fields["ElementType"]):
        raise BadInputError(f"The MetaImage header's ElementType {fields['ElementType'][:40]!r} is no type of voxels.")
    place = "".join(
        f"{name} = {_numbers(name, value, axes ** PLACE[name])}\n" for name, value in fields.items() if name in PLACE
    )
    return f"NDims = {axes}\n{place}ElementType = {fields['ElementType']}\nElementDataFile = LOCAL\n"


def _numbers(name: str, value: str, count: int) -> str:
    """A list of numbers, once it is one."""
    words = value.split()
    if len(words) != count or not all(NUMBER.fullmatch(word) and math.isfinite(float(word)) for word in words):
        raise BadInputError(f"The MetaImage header is damaged: {name} is not {count} numbers. Save the image again.")
    return " ".join(f"{float(word):.17g}" for word in words)
