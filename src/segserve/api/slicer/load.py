"""The body of a load request, checked in the protocol's own order."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from starlette.requests import Request

from segserve.api.uploads import small_body
from segserve.errors import BadInputError, MissingExtraError
from segserve.models.request import LoadRequest, parse_load_request

MAX_BODY = 2**20
BACKENDS = ("onnx", "mmengine")


async def read_named(request: Request) -> LoadRequest:
    """The request of `POST /api/models`, which names its model.

    Raises:
        BadInputError, MissingExtraError: see `_checked`.
    """
    body, hint = await _json_object(request)
    if not body.get("name"):
        raise BadInputError(f"Model name is required{hint}")
    if not body.get("backend_type"):
        raise BadInputError(f"Backend type is required{hint}")
    if not body.get("model_path"):
        raise BadInputError("Model file not found: None. Send model_path, the network's path on the server.")
    return _checked(body)


async def read_current(request: Request) -> LoadRequest:
    """The request of `POST /api/model`; its model is named by the stem of its path.

    Raises:
        BadInputError, MissingExtraError: see `_checked`.
    """
    body, hint = await _json_object(request)
    if not body.get("backend_type"):
        raise BadInputError(f"Backend type is required{hint}")
    if not body.get("model_path"):
        raise BadInputError("Model path is required")
    path = body["model_path"]
    if isinstance(path, str):
        _check_file(path)  # first: a path that leads nowhere may not even give a name
    return _checked({**body, "name": Path(path).stem if isinstance(path, str) else "model"})


def _checked(body: dict[str, Any]) -> LoadRequest:
    """Check everything that needs no look into the file.

    Raises:
        BadInputError: a key, a value or a path is wrong.
        MissingExtraError: the backend needs a part of Segserve that is not installed.
    """
    asked = parse_load_request(body)
    backend = asked.backend_type.lower()
    _check_file(asked.model_path)
    if backend not in BACKENDS:
        raise BadInputError(f"Unknown backend type: {asked.backend_type}. Known: {', '.join(BACKENDS)}.")
    if backend == "mmengine":
        if not asked.config_path or not os.path.isfile(asked.config_path):  # noqa: PTH113
            raise BadInputError(f"Config file required for MMEngine: {asked.config_path}")
        raise MissingExtraError("MMEngine models need the extra segserve[mmengine], which is not part of this version.")
    return asked


def _check_file(path: str) -> None:
    if not os.path.isfile(path):  # noqa: PTH113  # Path.is_file raises on names that are too long
        hint = "" if os.path.isabs(path) else ". Send an absolute path on the server's machine."  # noqa: PTH117
        hint = ". It is a folder; name the file in it." if os.path.isdir(path) else hint  # noqa: PTH112
        raise BadInputError(f"Model file not found: {path}{hint}")


async def _json_object(request: Request) -> tuple[dict[str, Any], str]:
    """The body, and what to add to a complaint about a missing key if the body could not be read at all."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise BadInputError("Content-Type must be application/json")
    raw = await small_body(request, MAX_BODY)
    try:
        body = json.loads(raw)
        json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "a value in it is beyond reason"
        return {}, f" (the body is not valid JSON: {reason})"
    if not isinstance(body, dict):
        raise BadInputError(f"The body must be a JSON object, not a {type(body).__name__}.")
    return body, ""
