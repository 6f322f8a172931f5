"""Inference requests from the wire to what the worker is asked; all that takes time happens in threads."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request

from segserve.api.limits import LARGEST_JSON
from segserve.api.qupath.tile_files import check_count, check_ids, tile_inputs
from segserve.api.qupath.tile_request import (
    BlobTiles,
    Destination,
    JsonTiles,
    Listed,
    LooseInputConfig,
    Options,
    Text,
    TileRequest,
)
from segserve.api.qupath.tile_stream import NotJsonError, TileStream
from segserve.api.uploads import Form, receive_form, small_body, stream_body
from segserve.errors import BadInputError, by
from segserve.workers.tile_models import TileWish

METADATA, TILES = "metadata", "tiles"
METADATA_LIMIT = 16 * 2**20
ITEM_BYTES = {"uint8": 1, "float32": 4}
PATHS: TypeAdapter[list[str]] = TypeAdapter(Listed[Text])


@dataclass(frozen=True)
class Question:
    """A request for tiles, its images in files.

    Attributes:
        model_path: the model, as the client named it.
        wish: where and how to compute.
        ids: of the tiles, in the request's order.
        body: of the worker's call, without what is wanted of the tiles.
        inputs: the files that the body names.
        size: bytes that the request keeps waiting.
        destination: where maps go; None for class means.
    """

    model_path: str
    wish: TileWish
    ids: list[str]
    body: dict[str, Any]
    inputs: dict[str, Path]
    size: int
    destination: Destination | None


async def read_json(kind: type[JsonTiles], request: Request, folder: Path, limit: int) -> Question:
    """Read a JSON body; the images in it go to `folder`.

    Raises:
        RequestValidationError: the body has not the right shape.
        BadInputError: a tile's id or data cannot be used.
        TooLargeError: the body is over `limit` bytes, or what it says of the tiles is too much.
    """
    stream = TileStream(folder)
    try:
        await stream_body(request, limit, stream.write)
        said = stream.finish()
    except NotJsonError as error:
        raise RequestValidationError([_not_json(error)]) from None
    return await asyncio.to_thread(_from_json, kind, said, stream)


async def read_paths(model_path: str, request: Request) -> Question:
    """Read a JSON list of paths; see `read_json`."""
    body = await small_body(request, LARGEST_JSON)
    return await asyncio.to_thread(_from_paths, model_path, body)


async def read_blob(kind: type[BlobTiles], request: Request, folder: Path, limit: int) -> Question:
    """Read a form of metadata and one buffer of tiles; the buffer goes to `folder`.

    Raises:
        RequestValidationError: a part is missing.
        BadInputError: the metadata or the size of the buffer is wrong.
        TooLargeError: the body is over `limit` bytes, or the metadata over their own limit.
    """
    form = await receive_form(
        request, folder, file_parts=frozenset({TILES}), limit=limit, field_limits={METADATA: METADATA_LIMIT}
    )
    missing = [name for name in (METADATA, TILES) if name not in form.fields and name not in form.files]
    if missing:
        problems = [{"type": "missing", "loc": ("body", name), "msg": "Field required"} for name in missing]
        raise RequestValidationError(problems)
    return await asyncio.to_thread(_from_form, kind, form, folder)


def _from_json(kind: type[JsonTiles], said: bytes, stream: TileStream) -> Question:
    try:
        asked = kind.model_validate_json(said)
    except ValidationError as error:
        raise _wrong_shape(error) from None
    ids = [tile.id for tile in asked.tiles]
    check_ids(ids)
    inputs = tile_inputs([(tile.id, tile.data) for tile in asked.tiles], stream.images)
    return _question(asked, asked.input_config, ids, _listed(ids), inputs, stream.size)


def _from_paths(model_path: str, body: bytearray) -> Question:
    try:
        paths = PATHS.validate_json(body)
    except ValidationError as error:
        raise _wrong_shape(error) from None
    check_count(paths)
    inputs = tile_inputs([(path, path) for path in paths], {})
    images = {**_listed(paths), "divide_by_255": True}
    asked = TileRequest(model_path=model_path)
    return _question(asked, LooseInputConfig(), paths, images, inputs, len(body))


def _from_form(kind: type[BlobTiles], form: Form, folder: Path) -> Question:
    said = form.fields[METADATA]
    try:
        if len(said) > LARGEST_JSON:  # values without number in it would take many times its size
            TileStream(folder, METADATA_LIMIT).write(said.encode())
        asked = kind.model_validate_json(said)
    except NotJsonError as error:
        raise BadInputError(f"The metadata cannot be used: Invalid JSON: {error}.") from None
    except ValidationError as error:
        raise BadInputError(f"The metadata cannot be used: {_sentence(error)}.") from None
    check_ids(asked.tile_ids)
    buffer = form.files[TILES]
    size = _checked_size(asked, buffer)
    if not asked.tile_ids:
        return _question(asked, asked.input_config, [], _listed([]), {}, 0)
    blob = {
        "ids": asked.tile_ids,
        "height": asked.tile_height,
        "width": asked.tile_width,
        "channels": asked.num_channels,
        "dtype": asked.dtype,
    }
    return _question(asked, asked.input_config, asked.tile_ids, {"blob": blob}, {"blob": buffer}, size)


def _question(
    asked: TileRequest,
    input_config: LooseInputConfig,
    ids: list[str],
    images: dict[str, Any],
    inputs: dict[str, Path],
    size: int,
) -> Question:
    options = asked.options or Options()
    body = {**images, "input_config": input_config.wire(), "options": options.wire()}
    return Question(asked.model_path, options.wish, ids, body, inputs, size, asked.destination())


def _listed(ids: list[str]) -> dict[str, Any]:
    """The tiles whose images are `tile_inputs`."""
    return {"tiles": [{"id": identity, "file": f"tile-{index}"} for index, identity in enumerate(ids)]}


def _checked_size(asked: BlobTiles, buffer: Path) -> int:
    """The bytes of a buffer that holds exactly the tiles announced."""
    count, item = len(asked.tile_ids), ITEM_BYTES[asked.dtype]
    shape = (asked.tile_height, asked.tile_width, asked.num_channels)
    expected, size = count * math.prod(shape) * item, buffer.stat().st_size
    if size != expected:
        raise BadInputError(
            f"Buffer size mismatch: expected {expected} bytes ({count} tiles x {by(shape)} x {item} bytes/elem) "
            f"but got {size} bytes"
        )
    if count and not expected:
        raise BadInputError(f"tile_height, tile_width and num_channels must be at least 1, not {by(shape)}.")
    return size


def _not_json(error: NotJsonError) -> dict[str, Any]:
    return {"type": "json_invalid", "loc": ("body",), "msg": f"Invalid JSON: {error}"}


def _wrong_shape(error: ValidationError) -> RequestValidationError:
    found = error.errors(include_input=False, include_url=False)
    return RequestValidationError([{**problem, "loc": ("body", *problem["loc"])} for problem in found])


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"].rstrip(".")
