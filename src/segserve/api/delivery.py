"""Work for a client that may hang up, and answers that are files of the request's own folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send

from segserve.errors import SegserveError, UnavailableError
from segserve.state import StateDir

Result = TypeVar("Result")


@asynccontextmanager
async def request_folder(state: StateDir) -> AsyncIterator[Path]:
    """A folder for one request's files, gone when the request ends; made and emptied in a thread."""
    scratch = state.scratch()
    folder = await asyncio.to_thread(scratch.__enter__)
    try:
        yield folder
    finally:
        await asyncio.to_thread(scratch.__exit__, None, None, None)


async def unless_hung_up(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Wait for `work`, and cancel it as soon as the client is gone.

    Args:
        request: its body has been read to the end.
        work: what the client waits for.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise UnavailableError("The client hung up.")
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError, SegserveError):
                await task


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class FileAnswer(FileResponse):
    """A file as the answer; the folder it lies in goes when it is sent, or when the client is gone."""

    def __init__(self, path: Path, headers: Mapping[str, str], stack: AsyncExitStack) -> None:
        super().__init__(path, media_type="application/octet-stream", headers={**headers, "Cache-Control": "no-cache"})
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._stack.aclose()
