"""The dialect of the DL Pixel Classifier extension for QuPath: `/api/v1/*`."""

from typing import Any

from fastapi import APIRouter

from segserve.api.qupath import inference, models, pretrained, status, train

_DETAIL = {
    "type": "object",
    "required": ["detail"],
    "properties": {"detail": {"type": "string"}, "errors": {"type": "array", "items": {"type": "object"}}},
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"description": meaning, "content": {"application/json": {"schema": _DETAIL}}}
    for code, meaning in (
        ("4XX", "What is wrong, in one sentence; of a wrong body also each single problem"),
        ("5XX", "501, 503 or 507: what is missing, busy or full"),
    )
}

router = APIRouter(prefix="/api/v1", responses=_ERRORS)
for part in (status, models, train, inference, pretrained):
    router.include_router(part.router)

__all__ = ["router"]
