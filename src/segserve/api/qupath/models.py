"""The classifiers there are: list, show, delete, upload."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError

from segserve.api.delivery import request_folder, unless_hung_up
from segserve.api.qupath.hall import hall
from segserve.api.uploads import form_schema, receive_form
from segserve.errors import BadInputError
from segserve.models.classifiers import ClassifierStore
from segserve.models.names import NETWORK_FILE

router = APIRouter(prefix="/models", tags=["QuPath: models"])

MISSING_FILE = {"type": "missing", "loc": ("body", "file"), "msg": "Field required", "input": None}
UPLOAD_BODY = form_schema("file", {"file": {"type": "string", "format": "binary", "description": "An .onnx file."}})


@router.get("")
async def list_models(request: Request) -> dict[str, Any]:
    """All classifiers: trained here, uploaded, or left by the published server."""
    entries = await asyncio.to_thread(hall(request).classifiers.all)
    return {"models": [entry.wire() for entry in entries]}


@router.get("/{model_id}")
async def show_model(request: Request, model_id: str) -> dict[str, Any]:
    """One classifier with its whole metadata."""
    entry = await asyncio.to_thread(hall(request).classifiers.get, model_id)
    return {**entry.wire(), "metadata": entry.metadata}


@router.delete("/{model_id}")
async def delete_model(request: Request, model_id: str) -> dict[str, Any]:
    """Delete a classifier of the server's own folder."""
    place = hall(request)
    place.tiles.forget(await asyncio.to_thread(place.classifiers.delete, model_id))
    return {"status": "deleted", "model_id": model_id}


@router.post("/upload", openapi_extra=UPLOAD_BODY)
async def upload_model(request: Request) -> dict[str, Any]:
    """Keep an ONNX network as a classifier, once it has been seen to run."""
    place = hall(request)
    async with request_folder(place.state) as scratch:
        form = await receive_form(
            request, scratch, file_parts=frozenset({"file"}), limit=int(place.settings.max_upload)
        )
        if "file" not in form.files:
            raise RequestValidationError([MISSING_FILE])
        name = form.names.get("file", "")
        if not name.lower().endswith(".onnx"):
            raise BadInputError("Only ONNX files are supported")
        question = place.inspector.ask("tile_network", {}, inputs={"file": form.files["file"]})
        found = await unless_hung_up(request, question)
        stored = await asyncio.to_thread(_keep, place.classifiers, form.files["file"], _stem(name), found)
    return {"status": "success", "model_id": stored}


def _keep(classifiers: ClassifierStore, file: Path, name: str, found: dict[str, Any]) -> str:
    folder = file.parent / "model"
    folder.mkdir()
    shutil.move(file, folder / NETWORK_FILE)
    metadata: dict[str, Any] = {
        "name": name,
        "architecture": {"type": "custom_onnx"},
        "source": "uploaded",
        "classes": [
            {"index": index, "name": f"Class {index}", "color": "#808080"} for index in range(found["classes"])
        ],
    }
    if found["channels"]:
        metadata["input_config"] = {"num_channels": found["channels"]}
    return classifiers.add(folder, metadata).id


def _stem(name: str) -> str:
    """What a client calls its file, without folders of any system."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return last[: -len(".onnx")][:200] or "uploaded"
