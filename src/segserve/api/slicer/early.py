"""An answer that begins before it is known, so that neither viewers nor proxies take a long silence for the end.

Its first bytes are those of every label map: a plain gzip header (RFC 1952, 2.3). Until the labels are there, empty
stored blocks follow (RFC 1951, 3.2.4), which whoever unpacks passes over: each is whole bytes long and is not the
last block, so the labels' own blocks and their checksum can follow as they are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from segserve.api.delivery import HungUpError, Wanted
from segserve.errors import SegserveError

log = logging.getLogger(__name__)

GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
PLAIN = GZIP_HEADER[:4]
"""Magic number, deflate, and no optional fields: such a header has ten bytes."""
EMPTY_BLOCK = b"\x00\x00\x00\xff\xff"
CHUNK = 2**20


class EarlyAnswer(Response):
    """A .nii.gz file as the answer, begun before the file is made."""

    def __init__(
        self, wanted: Wanted[Any], path: Path, headers: Mapping[str, str], stack: AsyncExitStack, *, pulse: float
    ) -> None:
        """Begin when called.

        Args:
            wanted: the work that makes the file.
            path: of the file.
            headers: of the answer, as far as they are known.
            stack: closed when the answer is sent, or when the client is gone.
            pulse: seconds between two signs of life.
        """
        self.status_code = 200
        self.media_type = "application/octet-stream"
        self.background = None
        self.init_headers({**headers, "Cache-Control": "no-cache"})
        self._wanted = wanted
        self._path = path
        self._stack = stack
        self._pulse = pulse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer; a failure leaves it without an end, and the server then breaks the connection."""
        try:
            async with self._stack:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await _send_part(send, GZIP_HEADER)
                await self._wait(send)
                await self._send_labels(send)
        except HungUpError:
            return
        except SegserveError as error:
            log.error("an answer that had begun is broken off: %s", error.message)  # noqa: TRY400  # no bug

    async def _wait(self, send: Send) -> None:
        while True:
            try:
                outcome = await self._wanted.result(self._pulse)
            except TimeoutError:
                await _send_part(send, EMPTY_BLOCK)
            else:
                for warning in outcome["warnings"]:  # too late for a header
                    log.warning("%s", warning)
                return

    async def _send_labels(self, send: Send) -> None:
        with await asyncio.to_thread(self._path.open, "rb") as stream:
            header = await asyncio.to_thread(stream.read, len(GZIP_HEADER))
            if not header.startswith(PLAIN):
                raise RuntimeError("the label map has no plain gzip header")
            while chunk := await asyncio.to_thread(stream.read, CHUNK):
                await _send_part(send, chunk)
        if self._wanted.given_up:
            raise HungUpError("The client hung up before its answer was whole.")
        await send({"type": "http.response.body"})


async def _send_part(send: Send, part: bytes) -> None:
    await send({"type": "http.response.body", "body": part, "more_body": True})
