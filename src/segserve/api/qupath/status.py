"""Is the server there, what does it compute on, and give its memory back."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from segserve import __version__
from segserve.api.qupath.gpu import gpu_info, memory_info
from segserve.api.qupath.hall import hall

PROTOCOL_VERSION = "0.1.0"

router = APIRouter(tags=["QuPath"])


@router.get("/health")
async def health() -> dict[str, Any]:
    """Say that the server is up."""
    return {
        "status": "healthy",
        "version": PROTOCOL_VERSION,
        "server": {"name": "Segserve", "version": __version__},
    }


@router.get("/gpu")
def gpu() -> dict[str, Any]:
    """Say what the server computes on; fields that do not apply are absent, never null."""
    return gpu_info()


@router.post("/gpu/clear")
async def clear_gpu(request: Request) -> dict[str, Any]:
    """Cancel running trainings, keeping their checkpoints, pause waiting ones, and end every process of the server.

    Models loaded by name stay listed and load again on demand.
    """
    place = hall(request)
    before = await asyncio.to_thread(memory_info)
    cancelled = await place.runner.clear()
    holders = (place.inspector.close(), place.scanner.close(), place.tiles.rest(), request.app.state.supervisor.rest())
    await asyncio.gather(*holders)
    after = await asyncio.to_thread(memory_info)
    answer: dict[str, Any] = {
        **await asyncio.to_thread(gpu_info),
        "status": "cleared",
        "cancelled_jobs": cancelled,
        "memory_before": before,
        "memory_after": after,
    }
    if "allocated_mb" in before and "allocated_mb" in after:
        answer["freed_mb"] = round(before["allocated_mb"] - after["allocated_mb"], 1)
    return answer
