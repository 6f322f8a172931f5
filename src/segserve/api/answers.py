"""Errors as each dialect writes them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match

from segserve.errors import SegserveError, disk_trouble

log = logging.getLogger(__name__)

QUPATH_PREFIX = "/api/v1"


def speaks_slicer(path: str) -> bool:
    """Whether a path belongs to the Slicer dialect, whose errors are `{"error": "..."}`."""
    return path.startswith("/api/") and not (path + "/").startswith(QUPATH_PREFIX + "/")


def error_answer(path: str, status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error in the dialect of the path it answers."""
    log.info("refused, %d: %s", status, message)
    key = "error" if speaks_slicer(path) else "detail"
    return JSONResponse({key: message}, status, headers=dict(headers or {}))


def install_error_answers(app: FastAPI) -> None:
    """Make every error of the application one sentence in the dialect's form."""
    app.add_exception_handler(SegserveError, _expected)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(OSError, _system)


async def _expected(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SegserveError)
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
    return error_answer(request.url.path, error.status, error.message, headers)


async def _system(request: Request, error: Exception) -> JSONResponse:
    trouble = disk_trouble(error)
    if trouble is None:
        raise error
    return await _expected(request, trouble)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    path, message = request.url.path, str(error.detail)
    if speaks_slicer(path) and error.status_code == 404:
        message = f"There is no {path} here: /docs lists the routes."
    if speaks_slicer(path) and error.status_code == 405:
        message = f"{request.method} is not possible on {path}: use {' or '.join(_methods(request))}."
    headers = (
        {**(error.headers or {}), "Allow": ", ".join(_methods(request))} if error.status_code == 405 else error.headers
    )
    return error_answer(path, error.status_code, message, headers)


def _methods(request: Request) -> list[str]:
    """What the routes of a request's path accept; the router names those of the first one only."""
    found: set[str] = set()
    for method in ("GET", "POST", "DELETE"):
        scope = {**request.scope, "method": method}
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes):
            found.add(method)
    return sorted(found)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems: list[dict[str, Any]] = [{k: p[k] for k in ("type", "loc", "msg")} for p in error.errors()]
    first = problems[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    sentence = f"{place}: {first['msg']}" if place else str(first["msg"])
    if speaks_slicer(request.url.path):
        return error_answer(request.url.path, 422, sentence)
    return JSONResponse({"detail": sentence, "errors": problems}, 422)
