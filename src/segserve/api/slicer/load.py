"""The body of a load request, checked in the protocol's own order."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from starlette.requests import Request

from segserve.api.uploads import small_body
from segserve.errors import BadInputError, some
from segserve.models.backends import check_request, is_barred, is_file
from segserve.models.request import LoadRequest, parse_load_request
from segserve.models.shelf import Offer
from segserve.workers.offers import Offers

MAX_BODY = 2**20


async def read_named(request: Request, offers: Offers) -> LoadRequest:
    """The request of `POST /api/models`, which names its model.

    Raises:
        BadInputError, MissingExtraError: see `check_request`; or the path leads nowhere, and nothing offered is meant.
    """
    body, hint = await _json_object(request)
    if not body.get("name"):
        raise BadInputError(f"Model name is required{hint}")
    if not body.get("backend_type"):
        raise BadInputError(f"Backend type is required{hint}")
    if not body.get("model_path"):
        raise BadInputError("Model file not found: None. Send model_path, the network's path on the server.")
    asked = parse_load_request(body)
    return _checked(asked, await _meant(asked.model_path, offers))


async def read_current(request: Request, offers: Offers) -> LoadRequest:
    """The request of `POST /api/model`; its model is named by the stem of its path, or as it is offered.

    Raises:
        BadInputError, MissingExtraError: see `read_named`.
    """
    body, hint = await _json_object(request)
    if not body.get("backend_type"):
        raise BadInputError(f"Backend type is required{hint}")
    path = body.get("model_path")
    if not path:
        raise BadInputError("Model path is required")
    if not isinstance(path, str):
        parse_load_request({**body, "name": "model"})
    # First: a path that leads nowhere may not even give a name.
    offer = await _meant(path, offers)
    return _checked(parse_load_request({**body, "name": offer.name if offer else Path(path).stem}), offer)


def _checked(asked: LoadRequest, offer: Offer | None) -> LoadRequest:
    request = offer.request(asked) if offer else asked
    check_request(request)
    return request


async def _meant(path: str, offers: Offers) -> Offer | None:
    """What is offered under a path that is no file; None for a file.

    Raises:
        BadInputError: the path leads nowhere, and nothing is offered under it.
    """
    if is_file(path):
        return None
    offer = await offers.find(path)
    if offer:
        return offer
    raise BadInputError(f"Model file not found: {path}{_advice(path, offers)}")


def _advice(path: str, offers: Offers) -> str:
    advice = "" if os.path.isabs(path) else ". Send an absolute path on the server's machine."  # noqa: PTH117
    advice = ". The server may not enter its folder: let it." if is_barred(path) else advice
    advice = ". It is a folder; name the file in it." if os.path.isdir(path) else advice  # noqa: PTH112
    if not offers.here:
        return advice
    return f"{advice or '.'} The server offers {some(offers.here)}: one of these names can be sent as model_path."


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
