"""`config.json` of a training folder, as QuPath's exporter and as people write it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from segserve.errors import BadInputError
from segserve.training.spec import UNLABELLED

NAME = "config.json"
MAX_BYTES = 16 * 2**20
WEIGHTS = re.compile(r'("class_weights"\s*:\s*)\[([^\[\]]*)\]')
COMMA_DECIMAL = re.compile(r"(\d+),(\d{6})(?!\d)")
WITH_POINT = r"\1.\2"
WITHOUT_VALUE = r"\1null"
COMMA_DECIMALS = re.compile(r"\s*\d+,\d{6}(\s*,\s*\d+,\d{6})*\s*")

MENDED = f"class_weights in {NAME} were written with decimal commas and are read as such."


@dataclass(frozen=True)
class ClassInfo:
    """A class: its name and, if the exporter knew one, its colour as `#RRGGBB`."""

    name: str
    color: str | None = None


@dataclass(frozen=True)
class DataConfig:
    """What `config.json` says, None where it says nothing that makes sense.

    Attributes:
        classes: in the order of their numbers in the masks.
        class_weights: one for each class.
        unlabeled_index: the mask value of pixels without a label.
        channel_names: of the bands in the image files.
        context_scale: how much more than a patch its context shows, along a side.
        patch_size: pixels.
        downsample: of the patches against the slide.
        source_images: names of the slides.
        warnings: what was mended or left out.
    """

    classes: list[ClassInfo] | None = None
    class_weights: list[float] | None = None
    unlabeled_index: int = UNLABELLED
    channel_names: list[str] | None = None
    context_scale: int = 1
    patch_size: int | None = None
    downsample: float | None = None
    source_images: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_config(folder: Path) -> DataConfig:
    """Read a training folder's `config.json`; defaults and a warning if there is none.

    Raises:
        BadInputError: it is too large, no JSON (and where not), or its classes or `unlabeled_index` make no sense.
    """
    path = folder / NAME
    if not path.is_file():
        return DataConfig(
            warnings=[f"There is no {NAME}: 255 is taken as unlabelled and class weights are computed from the masks."]
        )
    warnings: list[str] = []
    content = _parse(_text(path), warnings)
    classes = _classes(content.get("classes"), warnings)
    channels, metadata = _object(content, "channel_config"), _object(content, "metadata")
    sources = _strings(metadata.get("source_images")) or _strings([metadata.get("source_image")])
    return DataConfig(
        classes=classes,
        class_weights=_weights(content.get("class_weights"), classes, warnings),
        unlabeled_index=_unlabeled(content.get("unlabeled_index", UNLABELLED)),
        channel_names=_strings(channels.get("channel_names")),
        context_scale=_whole(channels.get("context_scale")) or 1,
        patch_size=_whole(content.get("patch_size")),
        downsample=_positive(content.get("downsample")),
        source_images=sources or [],
        warnings=warnings,
    )


def usable_weights(weights: list[float], count: int) -> str | None:
    """Why these class weights cannot be used for `count` classes; None if they can."""
    if len(weights) != count:
        return f"there are {len(weights)} of them for {count} classes"
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        return "they must be finite, not negative, and not all zero"
    return None


def dropped_weights(why: str) -> str:
    """The warning that says so."""
    return f"class_weights in {NAME} are not used, because {why}; they are computed from the labelled pixels instead."


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadInputError(f"{NAME} has more than {MAX_BYTES // 2**20} MiB: it holds settings, not data.")
        data = path.read_bytes()
    except OSError as error:
        raise BadInputError(f"{NAME} cannot be opened by the server ({error.strerror}).") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")  # Java writes in the system's own encoding


def _parse(text: str, warnings: list[str]) -> dict[str, Any]:
    """The JSON object, with class weights mended that were written with decimal commas."""
    try:
        content = _load(text)
    except ValueError as error:
        return _parse_mended(text, error, warnings)
    classes, weights = content.get("classes"), content.get("class_weights")
    doubled = isinstance(classes, list) and isinstance(weights, list) and len(weights) == 2 * len(classes) > 0
    mended = WEIGHTS.sub(_with_points, text) if doubled else text
    if mended == text:
        return content
    warnings.append(MENDED)
    return _load(mended)


def _parse_mended(text: str, error: ValueError, warnings: list[str]) -> dict[str, Any]:
    """What is no JSON, with its class weights mended, or else without them: they may be in any language's digits."""
    for mended, warning in (
        (WEIGHTS.sub(_with_points, text), MENDED),
        (WEIGHTS.sub(WITHOUT_VALUE, text), dropped_weights("they are not numbers")),
    ):
        if mended == text:
            continue
        try:
            content = _load(mended)
        except ValueError as remaining:
            error = remaining
        else:
            warnings.append(warning)
            return content
    raise BadInputError(_place(error))


def _load(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text, strict=False)
    except RecursionError:
        raise BadInputError(f"{NAME} is nested too deeply to be read.") from None
    if not isinstance(content, dict):
        raise BadInputError(f'{NAME} must hold one JSON object, such as {{"classes": ["Background", "Tumor"]}}.')
    return content


def _with_points(match: re.Match[str]) -> str:
    """The matched list, its commas between whole and six decimal digits turned into points."""
    if not COMMA_DECIMALS.fullmatch(match[2]):
        return match[0]
    return f"{match[1]}[{COMMA_DECIMAL.sub(WITH_POINT, match[2])}]"


def _place(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return (
            f"{NAME} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}; "
            "a class name with a quotation mark or a backslash does that."
        )
    return f"{NAME} is not valid JSON: it holds a number that is too long."


def _classes(value: object, warnings: list[str]) -> list[ClassInfo] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise BadInputError(f"classes in {NAME} must be a list of names.")
    found: list[tuple[int | None, ClassInfo]] = []
    for entry in value:
        name = entry.get("name") if isinstance(entry, Mapping) else entry
        if not isinstance(name, str):
            raise BadInputError(
                f'classes in {NAME} must be names, or objects with a "name"; entry {len(found)} is not.'
            )
        color = entry.get("color") if isinstance(entry, Mapping) else None
        index = _whole(entry.get("index"), least=0) if isinstance(entry, Mapping) else None
        found.append((index, ClassInfo(name, color if isinstance(color, str) else None)))
    by_index = {index: info for index, info in found if index is not None}
    if sorted(by_index) == list(range(len(found))):
        return [by_index[index] for index in range(len(found))]
    if by_index:
        warnings.append(
            f"The class indices in {NAME} are not 0 to {len(found) - 1}: classes count in their order there."
        )
    return [info for _, info in found]


def _weights(value: object, classes: list[ClassInfo] | None, warnings: list[str]) -> list[float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(_is_number(weight) for weight in value):
        warnings.append(dropped_weights("they are not a list of numbers"))
        return None
    weights = [_as_float(weight) for weight in value]
    why = usable_weights(weights, len(weights) if classes is None else len(classes))
    if why is not None:
        warnings.append(dropped_weights(why))
        return None
    return weights


def _unlabeled(value: object) -> int:
    number = _whole(value, least=0)
    if number is None or number > 255:
        raise BadInputError(f"unlabeled_index in {NAME} is {value!r:.40}: a mask value, 0 to 255, is expected.")
    return number


def _object(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = content.get(key)
    return value if isinstance(value, Mapping) else {}


def _strings(value: object) -> list[str] | None:
    if isinstance(value, list) and value and all(isinstance(entry, str) for entry in value):
        return value
    return None


def _whole(value: object, least: int = 1) -> int | None:
    number = _positive(value, zero=least == 0)
    return int(number) if number is not None and number == int(number) else None


def _positive(value: object, *, zero: bool = False) -> float | None:
    if not _is_number(value):
        return None
    number = _as_float(value)
    return number if math.isfinite(number) and (number > 0 or (zero and number == 0)) else None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # whole numbers have no largest
        return math.inf
