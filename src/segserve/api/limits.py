"""Bodies of bounded size that come at a bounded pace."""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segserve.api.answers import error_answer
from segserve.errors import human_bytes
from segserve.settings import Settings

LARGEST_JSON = 4 * 2**20
# The routes whose bodies FastAPI parses; the others count for themselves while they stream.
LIMITED = ("/api/v1/train", "/api/v1/pretrained")


class SlowUploadError(HTTPException):
    """The client sends too slowly; its connection is closed, since the rest of its body may never come."""

    def __init__(self, sentence: str) -> None:
        super().__init__(408, sentence, headers={"Connection": "close"})


class Pace:
    """Receives one request's body while it comes fast enough; only the time spent waiting for the client counts.

    Attributes:
        size: bytes received.
    """

    def __init__(self, receive: Receive, settings: Settings) -> None:
        self.size = 0
        self._receive = receive
        self._settings = settings
        self._waited = 0.0
        self._whole = False

    async def receive(self) -> Message:
        """The next message; after the body's end there is no hurry.

        Raises:
            SlowUploadError: it does not come, or all of them come too slowly.
        """
        if self._whole:
            return await self._receive()
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._settings.upload_stall):
                message = await self._receive()
        except TimeoutError:
            raise SlowUploadError(
                f"The upload stalled: nothing came for {self._settings.upload_stall:g} s (upload_stall). Send it again."
            ) from None
        self._waited += time.monotonic() - began
        self.size += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        self._check_rate()
        return message

    def _check_rate(self) -> None:
        settings = self._settings
        late = not self._whole and self._waited > settings.upload_stall
        if late and self.size < settings.upload_rate * self._waited:
            raise SlowUploadError(
                f"The upload is too slow: {human_bytes(self.size)} in {self._waited:.0f} s, and "
                f"{human_bytes(settings.upload_rate)} a second is the least (upload_rate)."
            )


class JsonLimit:
    """ASGI middleware that refuses with 413 JSON that is too large, and with 408 what comes too slowly.

    JSON is parsed where everybody waits, and takes many times its size in memory.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not scope["path"].startswith(LIMITED):
            await self._app(scope, receive, send)
            return
        stated = Headers(scope=scope).get("content-length", "0")
        if stated.isdigit() and int(stated) > LARGEST_JSON:
            await error_answer(scope["path"], 413, over_limit(LARGEST_JSON, int(stated)))(scope, receive, send)
            return
        pace = Pace(receive, scope["app"].state.settings)

        async def counted() -> Message:
            message = await pace.receive()
            if pace.size > LARGEST_JSON:
                raise HTTPException(413, over_limit(LARGEST_JSON))
            return message

        await self._app(scope, counted, send)


def over_limit(limit: int, stated: int = 0) -> str:
    """What to say to a body of more than `limit` bytes where a small one is meant.

    Args:
        limit: in bytes.
        stated: the bytes that its client says it has, if known.
    """
    size = stated if stated > limit else f"more than {limit}"
    return f"The request's body has {size} bytes; a request of this kind may have {limit} at most."
