"""Is the server there, and what does it compute on."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from segserve import __version__, devices
from segserve.engines.registry import cuda_is_usable

PROTOCOL_VERSION = "0.1.0"

router = APIRouter(prefix="/api/v1", tags=["QuPath"])


@router.get("/health")
def health() -> dict[str, Any]:
    """Say that the server is up."""
    return {
        "status": "healthy",
        "version": PROTOCOL_VERSION,
        "server": {"name": "Segserve", "version": __version__},
    }


@router.get("/gpu")
def gpu() -> dict[str, Any]:
    """Say what the server computes on; fields that do not apply are absent, never null."""
    if not cuda_is_usable():
        return {"available": False, "name": "CPU", "memory_mb": 0, "device_type": "cpu", "device_string": "cpu"}
    first = devices.cuda_devices()[0]
    total = first.memory // 2**20
    return {
        "available": True,
        "name": first.name,
        "memory_mb": total,
        "device_type": "cuda",
        "device_string": "cuda:0",
        "total_mb": float(total),
    }
