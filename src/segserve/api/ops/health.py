"""Does the process answer, and can it do work."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from segserve.api.ops.readiness import Readiness

router = APIRouter()
NOT_READY: dict[int | str, dict[str, Any]] = {503: {"description": "`reasons`, in sentences"}}


@router.get("/healthz")
async def process_answers() -> dict[str, str]:
    """Say that the process answers; nothing else is looked at."""
    return {"status": "ok"}


@router.get("/readyz", responses=NOT_READY)
async def can_work(request: Request) -> JSONResponse:
    """Say whether the server can do work: its disk takes files and records, and its processes answer."""
    readiness: Readiness = request.app.state.readiness
    reasons = await readiness.reasons()
    if reasons:
        return JSONResponse({"status": "unavailable", "reasons": reasons}, 503)
    return JSONResponse({"status": "ok"})
