"""Work for a client that may hang up, and answers that are files of the request's own folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from segserve.errors import SegserveError, UnavailableError
from segserve.state import StateDir

Result = TypeVar("Result")


SIGN_OF_LIFE = "segserve.sign_of_life"
"""Key of a request's extensions: tells the client that the answer will come; there only where the server can."""


class HungUpError(UnavailableError):
    """The client is gone; nobody hears the answer."""


@asynccontextmanager
async def request_folder(state: StateDir) -> AsyncIterator[Path]:
    """A folder for one request's files, gone when the request ends; made and emptied in a thread."""
    scratch = state.scratch()
    folder = await asyncio.to_thread(scratch.__enter__)
    try:
        yield folder
    finally:
        await asyncio.to_thread(scratch.__exit__, None, None, None)


@asynccontextmanager
async def signs_of_life(request: Request, pulse: float) -> AsyncIterator[None]:
    """Meanwhile let the client know every `pulse` seconds that its answer will come, until that begins."""
    tell = request.scope.get("extensions", {}).get(SIGN_OF_LIFE)

    async def repeat() -> None:
        while tell:
            await asyncio.sleep(pulse)
            tell()

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()


class Wanted(Generic[Result]):
    """Work that goes on as long as the client waits for it."""

    def __init__(self, request: Request, work: Coroutine[Any, Any, Result]) -> None:
        """Begin the work.

        Args:
            request: its body has been read to the end.
            work: what the client waits for.
        """
        self._task = asyncio.ensure_future(work)
        self._gone = asyncio.ensure_future(_hang_up(request))

    async def result(self, patience: float | None = None) -> Result:
        """Wait for the work.

        Args:
            patience: seconds to wait; None waits for ever.

        Raises:
            HungUpError: the client is gone.
            TimeoutError: the work takes longer; it goes on.
        """
        await asyncio.wait({self._task, self._gone}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            return self._task.result()
        if self._gone.done():
            raise HungUpError("The client hung up.")
        raise TimeoutError

    @property
    def given_up(self) -> bool:
        """Whether the client is gone; once it has its answer, it may be."""
        return self._gone.done()

    async def aclose(self) -> None:
        """Stop the work if it is not done."""
        self._gone.cancel()
        if not self._task.done():
            self._task.cancel()
            with suppress(asyncio.CancelledError, SegserveError):
                await self._task


async def unless_hung_up(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Wait for `work`, and cancel it as soon as the client is gone; see `Wanted`."""
    async with aclosing(Wanted(request, work)) as wanted:
        return await wanted.result()


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
        whole = False

        async def watched(message: Message) -> None:
            nonlocal whole
            await send(message)
            whole = message["type"] == "http.response.body" and not message.get("more_body", False)

        with suppress(HungUpError):  # whoever follows the request hears of it as the stack is closed
            async with self._stack:
                await super().__call__(scope, receive, watched)
                if not whole:
                    raise HungUpError("The client hung up before its answer was whole.")
