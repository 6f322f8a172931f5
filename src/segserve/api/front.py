"""The server's front page: where everything is, for whoever opens its address."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from segserve import __version__

router = APIRouter(tags=["Operations"])
PLACES = {
    "docs": "/docs",
    "redoc": "/redoc",
    "openapi": "/openapi.json",
    "slicer": "/api/info",
    "qupath": "/api/v1/health",
    "models": ["/api/info", "/api/v1/models"],
    "health": "/healthz",
    "ready": "/readyz",
    "metrics": "/metrics",
}


@router.get("/")
async def front_page() -> dict[str, Any]:
    """Say what this is, and where to go on: `/docs` is for people."""
    return {"name": "Segserve", "version": __version__, **PLACES}
