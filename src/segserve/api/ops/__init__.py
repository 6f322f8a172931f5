"""The routes for whoever looks after the server, in no viewer's dialect: health, readiness, metrics."""

from fastapi import APIRouter

from segserve.api.ops import exposition, health

router = APIRouter(tags=["Operations"])
router.include_router(health.router)
router.include_router(exposition.router)

__all__ = ["router"]
