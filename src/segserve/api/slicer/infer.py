"""One inference request: the upload in, the label map out, nothing left behind."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from segserve.api.delivery import FileAnswer, Wanted, request_folder, signs_of_life, unless_hung_up
from segserve.api.slicer.door import Door
from segserve.api.slicer.early import EarlyAnswer
from segserve.api.uploads import Form, receive_form
from segserve.errors import BadInputError
from segserve.logs import request_id
from segserve.settings import Settings
from segserve.state import StateDir
from segserve.workers.placement import Call

IMAGE = "image"
DOWNLOAD = {"Content-Disposition": "attachment; filename=segmentation.nii.gz"}
COMPUTED_BY = ("engine", "device", "precision")


async def infer(request: Request, door: Door, state: StateDir, settings: Settings) -> Response:
    """Segment the uploaded volume with the model it names, or the shown one.

    Raises:
        SegserveError: with the status and the sentence of the answer.
    """
    async with AsyncExitStack() as stack:
        track = stack.enter_context(door.progress.track(request_id.get()))
        folder = await stack.enter_async_context(request_folder(state))
        form = await receive_form(request, folder, file_parts=frozenset({IMAGE}), limit=settings.max_upload)
        began = asyncio.get_running_loop().time()
        await stack.enter_async_context(signs_of_life(request, settings.answer_pulse))
        name = form.fields.get("model_name", "")
        if not name:
            door.default()  # the protocol says "no model" before "no image", but "no image" before "no such model"
        call = _call(form, folder, settings)
        size = (await asyncio.to_thread(call.inputs[IMAGE].stat)).st_size
        track.tell("received", size, size)
        model = await unless_hung_up(request, door.named(name)) if name else door.default()
        if form.fields.get("force_cpu", "").strip().lower() == "true":
            model = await unless_hung_up(request, model.on_cpu())
        wanted = Wanted(request, model.call(call, track.hear))
        stack.push_async_callback(wanted.aclose)
        labels = call.outputs["labels"]
        try:
            outcome = await wanted.result(began + settings.answer_patience - asyncio.get_running_loop().time())
        except TimeoutError:
            headers = {**_headers(model.card, COMPUTED_BY), **DOWNLOAD}
            return EarlyAnswer(wanted, labels, headers, stack.pop_all(), pulse=settings.answer_pulse)
        return FileAnswer(labels, {**_outcome_headers(outcome), **DOWNLOAD}, stack.pop_all())


def _call(form: Form, folder: Path, settings: Settings) -> Call:
    image = form.files.get(IMAGE)
    if image is None:
        raise BadInputError("No image file uploaded")
    body: dict[str, Any] = {
        "window_level": _number(form, "window_level"),
        "window_width": _number(form, "window_width"),
        "limits": {
            "max_decompressed": settings.max_decompressed,
            "max_voxels": settings.max_voxels,
            "memory_limit": settings.memory_limit,
        },
    }
    return Call("segment", body, {IMAGE: image}, {"labels": folder / "labels.nii.gz"}, folder)


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


def _headers(values: dict[str, Any], names: Sequence[str]) -> dict[str, str]:
    return {f"X-Segserve-{name.capitalize()}": str(values[name]) for name in names}


def _outcome_headers(outcome: dict[str, Any]) -> dict[str, str]:
    headers = _headers(outcome, (*COMPUTED_BY, "patches", "skipped", "seconds"))
    headers["X-Segserve-Warnings"] = "; ".join(outcome["warnings"]).encode("ascii", "replace").decode()
    return headers
