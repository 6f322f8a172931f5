"""One inference request: the upload in, the label map out, nothing left behind."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from segserve.api.slicer.door import Door
from segserve.api.uploads import Form, receive_form
from segserve.errors import BadInputError, SegserveError, UnavailableError
from segserve.settings import Settings
from segserve.state import StateDir
from segserve.workers.loaded import LoadedModel
from segserve.workers.placement import Call

Result = TypeVar("Result")
IMAGE = "image"


async def infer(request: Request, door: Door, state: StateDir, settings: Settings) -> Response:
    """Segment the uploaded volume with the model it names, or the shown one.

    Raises:
        SegserveError: with the status and the sentence of the answer.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(state.scratch())
        form = await receive_form(request, folder, file_parts=frozenset({IMAGE}), limit=settings.max_upload)
        model, call = _call(form, door, folder, settings)
        outcome = await _unless_hung_up(request, model.call(call))
        return _FileAnswer(call.outputs["labels"], _headers(outcome), stack.pop_all())


def _call(form: Form, door: Door, folder: Path, settings: Settings) -> tuple[LoadedModel, Call]:
    name = form.fields.get("model_name", "")
    if not name:
        door.choose(name)  # the protocol says "no model" before "no image", but "no image" before "no such model"
    image = form.files.get(IMAGE)
    if image is None:
        raise BadInputError("No image file uploaded")
    model = door.choose(name)
    body: dict[str, Any] = {
        "window_level": _number(form, "window_level"),
        "window_width": _number(form, "window_width"),
        "limits": {
            "max_decompressed": settings.max_decompressed,
            "max_voxels": settings.max_voxels,
            "memory_limit": settings.memory_limit,
        },
    }
    return model, Call("segment", body, {IMAGE: image}, {"labels": folder / "labels.nii.gz"}, folder)


def _number(form: Form, name: str) -> float | None:
    """A field as a finite number; empty is absent."""
    text = form.fields.get(name, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadInputError(f"{name} must be a finite number, not {text[:60]!r}.")
    return value


def _headers(outcome: dict[str, Any]) -> dict[str, str]:
    names = ("engine", "device", "precision", "patches", "skipped", "seconds")
    headers = {f"X-Segserve-{name.capitalize()}": str(outcome[name]) for name in names}
    headers["X-Segserve-Warnings"] = "; ".join(outcome["warnings"]).encode("ascii", "replace").decode()
    return headers


async def _unless_hung_up(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Wait for `work`, and cancel it as soon as the client is gone."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise UnavailableError("The client hung up.")
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError, SegserveError):
                await task


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _FileAnswer(FileResponse):
    """The label map as a download; its folder goes when it is sent, or when the client is gone."""

    def __init__(self, path: Path, headers: dict[str, str], stack: ExitStack) -> None:
        super().__init__(
            path,
            media_type="application/octet-stream",
            headers={
                **headers,
                "Content-Disposition": "attachment; filename=segmentation.nii.gz",
                "Cache-Control": "no-cache",
            },
        )
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await asyncio.to_thread(self._stack.close)
