"""JSON bodies of bounded size: they are parsed where everybody waits, and take many times their size in memory."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segserve.api.answers import error_answer
from segserve.errors import human_bytes

LARGEST_JSON = 4 * 2**20
# The routes whose bodies FastAPI parses; the others count for themselves while they stream.
LIMITED = ("/api/v1/train", "/api/v1/pretrained")


class JsonLimit:
    """ASGI middleware that refuses with 413."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not scope["path"].startswith(LIMITED):
            await self._app(scope, receive, send)
            return
        stated = Headers(scope=scope).get("content-length", "0")
        if stated.isdigit() and int(stated) > LARGEST_JSON:
            await error_answer(scope["path"], 413, over_limit(LARGEST_JSON))(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > LARGEST_JSON:
                raise HTTPException(413, over_limit(LARGEST_JSON))
            return message

        await self._app(scope, counted, send)


def over_limit(limit: int) -> str:
    """What to say to a body of more than `limit` bytes where a small one is meant."""
    return f"The request's body is over {human_bytes(limit)}, far more than such a request needs."
