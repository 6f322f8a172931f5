"""Tiles to class means or probability maps."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from segserve.api.delivery import FileAnswer, request_folder, unless_hung_up
from segserve.api.qupath.hall import hall
from segserve.api.qupath.tile_docs import MAPS_ANSWER, MAPS_BODY, MAPS_FORM, PATHS_BODY, TILES_BODY, TILES_FORM
from segserve.api.qupath.tile_files import map_files
from segserve.api.qupath.tile_reading import Question, read_blob, read_json, read_paths
from segserve.api.qupath.tile_request import BlobMaps, BlobTiles, JsonMaps, JsonTiles
from segserve.errors import TooLargeError
from segserve.workers.placement import Call

router = APIRouter(prefix="/inference", tags=["QuPath: inference"])

Read = Callable[[Request, Path, int], Coroutine[Any, Any, Question]]
# Their shapes go into one header, of which clients read 64 KiB.
MOST_INLINE = 2048


@router.post("", openapi_extra=TILES_BODY)
async def classify_tiles(request: Request) -> Response:
    """The mean probability of each class in each tile; tiles are data URLs or paths."""
    return await _answer(request, partial(read_json, JsonTiles))


@router.post("/binary", openapi_extra=TILES_FORM)
async def classify_buffer(request: Request) -> Response:
    """The mean probability of each class in each tile; all tiles in one buffer."""
    return await _answer(request, partial(read_blob, BlobTiles))


@router.post("/pixel", openapi_extra=MAPS_BODY, responses=MAPS_ANSWER)
async def map_tiles(request: Request) -> Response:
    """A probability map of each tile, float32 (class, row, column), in files or in the answer."""
    return await _answer(request, partial(read_json, JsonMaps))


@router.post("/pixel/binary", openapi_extra=MAPS_FORM, responses=MAPS_ANSWER)
async def map_buffer(request: Request) -> Response:
    """A probability map of each tile, float32 (class, row, column), in files or in the answer; tiles in one buffer."""
    return await _answer(request, partial(read_blob, BlobMaps))


@router.post("/batch", openapi_extra=PATHS_BODY)
async def classify_paths(
    request: Request, model_path: Annotated[str, Query(min_length=1, max_length=4096)]
) -> dict[str, Any]:
    """The mean probability of each class in each of the named files, their pixels divided by 255."""
    place = hall(request)
    async with request_folder(place.state) as folder:
        question = await read_paths(model_path, request)
        reply = await _ask(request, question, "means", {}, folder)
    pairs = zip(question.ids, reply["means"], strict=True)
    return {"results": [{"path": path, "probabilities": means} for path, means in pairs]}


async def _answer(request: Request, read: Read) -> Response:
    """Read a request, ask the worker, and answer with what the request wants.

    Raises:
        SegserveError: with the status and the sentence of the answer.
    """
    place = hall(request)
    async with AsyncExitStack() as stack:
        folder = await stack.enter_async_context(request_folder(place.state))
        question = await read(request, folder, int(place.settings.max_upload))
        where = question.destination
        if where is None:
            reply = await _ask(request, question, "means", {}, folder)
            predictions = dict(zip(question.ids, reply["means"], strict=True))
            return JSONResponse({"predictions": predictions}, headers=_computed_by(reply))
        if where.folder is not None:
            files = await asyncio.to_thread(map_files, where.folder, question.ids)
            reply = await _ask(request, question, where.want, files.outputs, folder)
            answer = {"output_paths": files.shown, "num_classes": reply["num_classes"]}
            return JSONResponse(answer, headers=_computed_by(reply))
        _check_inline(question)
        maps = folder / "maps"
        reply = await _ask(request, question, where.want, {"inline": maps}, folder)
        return FileAnswer(maps, _headers(reply), stack.pop_all())


async def _ask(
    request: Request, question: Question, want: str, outputs: dict[str, Path], folder: Path
) -> dict[str, Any]:
    place = hall(request)
    limits = {"max_pixels": place.settings.max_tile_pixels, "max_bytes": int(place.settings.max_tile_bytes)}
    body = {**question.body, "want": want, **limits}
    call = Call("classify", body, question.inputs, outputs, folder)
    models = place.tiles
    return await unless_hung_up(request, models.classify(question.model_path, question.wish, call, size=question.size))


def _check_inline(question: Question) -> None:
    if len(question.ids) > MOST_INLINE:
        raise TooLargeError(
            f"The request has {len(question.ids)} tiles, and {MOST_INLINE} maps are the most that one answer can "
            f"hold: send fewer at a time."
        )


def _headers(reply: dict[str, Any]) -> dict[str, str]:
    shapes = json.dumps(reply["shapes"], separators=(",", ":"))
    return {"X-Segserve-Shapes": shapes, "X-Segserve-Classes": str(reply["num_classes"]), **_computed_by(reply)}


def _computed_by(reply: dict[str, Any]) -> dict[str, str]:
    """What ran the network: nobody should have to guess why it is slow."""
    return {f"X-Segserve-{name.capitalize()}": reply[name] for name in ("engine", "device", "precision")}
