"""NRRD headers (teem.sourceforge.net/nrrd/format.html), taken apart."""

from __future__ import annotations

import re
from typing import Literal

from segserve.errors import BadInputError
from segserve.volumes.itk import MAX_AXES, AttachedData, check_axes

MAGIC = re.compile(r"NRRD(?:00\.01|000[1-5])")
# Atomic, so that \r\n is never taken for two line ends.
LINE_END = r"(?>\r\n|\r|\n)"
LONGEST_LINE = 4096  # of a field; a longer one is no list of a few numbers
PLACE = (
    *("type", "dimension", "space", "space dimension", "sizes", "spacings", "axis mins", "axis maxs"),
    *("centers", "centerings", "kinds", "space directions", "space origin"),
)
DATA = ("encoding", "endian", "line skip", "byte skip")
# Blanks and capitals do not matter in a name.
FIELDS = {name.replace(" ", ""): name for name in PLACE + DATA}
ENCODINGS: dict[str, Literal["raw", "deflated", "text"]] = {
    **dict.fromkeys(("raw",), "raw"),
    **dict.fromkeys(("gz", "gzip"), "deflated"),
    **dict.fromkeys(("txt", "text", "ascii"), "text"),
}
ORDERS: dict[str, Literal["<", ">"]] = {"little": "<", "big": ">"}
# ITK turns RAS and LAS to LPS in space alone, and takes these two as they are: left for right.
TURNED = ("rightanteriorsuperiortime", "rast", "leftanteriorsuperiortime", "last")


def is_nrrd(start: bytes) -> bool:
    """Whether a file begins as NRRD files do."""
    return start.startswith(b"NRRD")


def parse_nrrd(start: bytes) -> AttachedData:
    """Take a header apart.

    Args:
        start: the file's first `MAX_HEADER` bytes.

    Raises:
        BadInputError: its voxels are elsewhere or written in a way that is not read here, or it is damaged.
    """
    end = re.search(rf"{LINE_END}{LINE_END}".encode(), start)
    magic, *lines = re.split(LINE_END, start[: end.start() if end else None].decode("latin-1"))
    if not MAGIC.fullmatch(magic):
        raise BadInputError(f"The file begins with {magic[:20]!r}, which no known version of NRRD does: save it again.")
    fields = _fields(lines)
    if not end:
        raise BadInputError("The NRRD header has no end in this file: save the image as one .nrrd file.")
    _check(fields)
    place = "".join(f"{name}: {value}\n" for name, value in fields.items() if name in PLACE)
    return AttachedData(
        format="NRRD",
        reader="NrrdImageIO",
        suffix=".nrrd",
        header=f"{magic}\n{place}endian: little\nencoding: raw\n\n",
        encoding=_encoding(fields["encoding"].lower()),
        order=ORDERS.get(fields.get("endian", "").lower()),
        offset=end.end(),
    )


def _fields(lines: list[str]) -> dict[str, str]:
    """The known fields, in the order of the header."""
    fields: dict[str, str] = {}
    for line in lines:
        if _squeezed(line).startswith("datafile"):
            raise BadInputError("The NRRD header names another file for its voxels: save the image as one .nrrd file.")
        if line.startswith("#"):
            continue
        name, colon, value = line.partition(": ")
        known = FIELDS.get(_squeezed(name))
        if colon and known:
            if known in fields:
                raise BadInputError(f"The NRRD header gives its {known} twice: save the image again.")
            fields[known] = _plain(known, value)
        elif not colon and ":=" not in line:
            raise BadInputError(f"The NRRD header is damaged: {line[:40]!r} is no field. Save the image again.")
    return fields


def _plain(name: str, value: str) -> str:
    value = value.replace("\t", " ").strip()
    if len(value) > LONGEST_LINE or not (value.isascii() and value.isprintable()):
        raise BadInputError(f"The NRRD header is damaged: its {name} cannot be read. Save the image again.")
    return value


def _check(fields: dict[str, str]) -> None:
    missing = [key for key in ("type", "dimension", "sizes", "encoding") if key not in fields]
    if missing:
        raise BadInputError(f"The NRRD header does not tell the {' and the '.join(missing)}: save the image again.")
    words = fields["sizes"].split()
    if not all(re.fullmatch(r"\d{1,20}", word) for word in words) or fields["dimension"] != str(len(words)):
        raise BadInputError("The NRRD header is damaged: its sizes and its dimension do not agree. Save it again.")
    check_axes("NRRD", [int(word) for word in words[: MAX_AXES + 1]])
    for name in ("line skip", "byte skip"):
        if fields.get(name, "0") != "0":
            raise BadInputError(f"The NRRD header wants data skipped ({name}): save the image again.")
    if _squeezed(fields.get("space", "")).replace("-", "") in TURNED:
        raise BadInputError(f"The NRRD header's space is {fields['space']!r}: save the image as one 3D volume.")


def _encoding(name: str) -> Literal["raw", "deflated", "text"]:
    if name not in ENCODINGS:
        raise BadInputError(f"The NRRD file's encoding is {name[:40]!r}: save it with encoding raw or gzip.")
    return ENCODINGS[name]


def _squeezed(text: str) -> str:
    return "".join(text.split()).lower()
