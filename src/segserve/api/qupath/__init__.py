"""The dialect of the DL Pixel Classifier extension for QuPath: `/api/v1/*`."""

from fastapi import APIRouter

from segserve.api.qupath import inference, models, pretrained, status, train

router = APIRouter(prefix="/api/v1")
for part in (status, models, train, inference, pretrained):
    router.include_router(part.router)

__all__ = ["router"]
