"""The routes of the Slicer dialect, both of its published forms at once: many models, and one current model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from segserve import __version__, devices
from segserve.api.context import ID_FORM
from segserve.api.slicer.door import Door
from segserve.api.slicer.infer import infer
from segserve.api.slicer.load import read_current, read_named
from segserve.api.slicer.schemas import ERRORS, INFER_BODY, LABEL_MAP, LOAD_BODY
from segserve.engines.registry import cuda_is_usable
from segserve.errors import BadInputError

PROTOCOL_NAME = "ITKIT Inference Server"
PROTOCOL_VERSION = "1.0.0"

router = APIRouter(prefix="/api", tags=["3D Slicer"], responses=ERRORS)


def _door(request: Request) -> Door:
    door: Door = request.app.state.door
    return door


@router.get("/health")
def health() -> dict[str, Any]:
    """Say that the server is up, and whether it can use a GPU."""
    return {"status": "ok", "cuda_available": cuda_is_usable(), "cuda_device_count": _usable_gpus()}


# Not in a thread: what it reads changes while models come and go.
@router.get("/info")
async def info(request: Request) -> dict[str, Any]:
    """Say what is loaded and offered: `models` by name, and `model`, the current one (else the only loaded one)."""
    door = _door(request)
    shown = door.shown
    return {
        "name": PROTOCOL_NAME,
        "version": PROTOCOL_VERSION,
        "server": {"name": "Segserve", "version": __version__},
        "cuda_available": cuda_is_usable(),
        "device_count": _usable_gpus(),
        "models": door.listing(),
        "model": door.view(shown) if shown else None,
    }


@router.post("/models", openapi_extra=LOAD_BODY)
async def load_named_model(request: Request) -> dict[str, Any]:
    """Load a model under a name, beside the others; the same name replaces."""
    door = _door(request)
    model = await door.load(await read_named(request, door.offers))
    return {"status": "success", "model": door.view(model)}


@router.delete("/models/{name:path}")
async def unload_named_model(request: Request, name: str) -> dict[str, Any]:
    """Unload a model by name; its process ends."""
    await _door(request).unload(name)
    return {"status": "success", "message": f"Model {name} unloaded"}


@router.post("/model", openapi_extra=LOAD_BODY)
async def load_current_model(request: Request) -> dict[str, Any]:
    """Load a model under the stem of its path and make it current, in place of the current one."""
    door = _door(request)
    model = await door.load_current(await read_current(request, door.offers))
    return {"status": "success", "model": door.view(model)}


@router.delete("/model")
async def unload_current_model(request: Request) -> dict[str, Any]:
    """Unload the model that `/api/info` shows as `model`."""
    await _door(request).unload_shown()
    return {"status": "success"}


@router.post("/infer", openapi_extra=INFER_BODY, response_class=Response, responses=LABEL_MAP)
async def segment_volume(request: Request) -> Response:
    """Segment a volume; the label map lies on exactly the grid of the image sent."""
    return await infer(request, _door(request), request.app.state.state_dir, request.app.state.settings)


async def _checked_id(request_id: str) -> str:
    """An id that a request can have; checked before a stream's answer begins."""
    if not ID_FORM.fullmatch(request_id):
        raise BadInputError(
            f"A request's id is 1 to 64 letters, digits, '.', '_' or '-', not {request_id[:60]!r}: "
            f"send such a one as X-Request-ID with the request, and ask for its progress by it."
        )
    return request_id


@router.get("/progress/{request_id}", response_class=EventSourceResponse)
async def watch_progress(
    request: Request, identity: Annotated[str, Depends(_checked_id)]
) -> AsyncIterator[ServerSentEvent]:
    """How far a request to segment is, until it ends; one that has not come yet is waited for."""
    async for event in _door(request).progress.watch(identity):
        yield event


def _usable_gpus() -> int:
    return len(devices.cuda_devices()) if cuda_is_usable() else 0
