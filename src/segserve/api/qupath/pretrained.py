"""The catalogue: encoders, architectures, layers to freeze."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request

from segserve.api.qupath.hall import hall
from segserve.api.qupath.schemas import LayersRequest
from segserve.errors import BadInputError, MissingError, SegserveError
from segserve.extras import has_torch, need_torch
from segserve.models.catalog import ARCHITECTURES, ENCODERS, find_architecture, find_encoder
from segserve.models.catalog.architectures import canonical_architecture
from segserve.models.catalog.freezing import recommendations

router = APIRouter(prefix="/pretrained", tags=["QuPath: catalogue"])


@router.get("/encoders")
async def list_encoders(request: Request, *, all: bool = False) -> list[dict[str, Any]]:  # the wire's name
    """The encoders of the catalogue; with `all=true` every one that segmentation-models-pytorch and timm can give."""
    if not all:
        return [entry.wire() for entry in ENCODERS]
    need_torch("The list of all encoders")
    found: list[dict[str, Any]] = (await hall(request).inspector.ask_once("all_encoders", {}))["encoders"]
    return found


@router.get("/architectures")
async def list_architectures() -> list[dict[str, Any]]:
    """The architectures; there are no others."""
    return [entry.wire() for entry in ARCHITECTURES]


@router.get("/encoder/{name}")
async def show_encoder(request: Request, name: str) -> dict[str, Any]:
    """One encoder, listed in the catalogue or not."""
    listed = find_encoder(name)
    if listed:
        return listed.wire()
    if has_torch():
        try:
            return await hall(request).inspector.ask_once("encoder", {"name": name})
        except SegserveError as error:
            if error.status != BadInputError.status:
                raise
    raise MissingError(f"Encoder '{name}' not found. Use /pretrained/encoders to list available encoders.")


@router.get("/architecture/{name}")
async def show_architecture(name: str) -> dict[str, Any]:
    """One architecture."""
    found = find_architecture(name)
    if found is None:
        raise MissingError(f"Architecture '{name}' not found. Use /pretrained/architectures to list available.")
    return found.wire()


@router.post("/layers")
async def list_layers(request: Request, body: LayersRequest) -> list[dict[str, Any]]:
    """The layer groups of a network, from its real modules: what can be frozen, and what that keeps fixed."""
    need_torch("Looking into a network")
    question = {**body.model_dump(), "architecture": canonical_architecture(body.architecture)}
    found: list[dict[str, Any]] = (await hall(request).inspector.ask_once("layers", question))["layers"]
    return found


@router.get("/freeze-recommendations/{size}")
async def freeze_recommendations(
    size: Literal["small", "medium", "large"], encoder: str | None = None
) -> dict[str, Any]:
    """Which depths of an encoder to keep as pretrained, by how much there is to learn from."""
    return {
        "dataset_size": size,
        "recommendations": {str(depth): frozen for depth, frozen in recommendations(size, encoder).items()},
    }
