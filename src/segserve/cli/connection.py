"""One connection of a client: uvicorn's, and an end to those that say nothing, take nothing or ask too early.

uvicorn waits for ever for the head of a request, for the rest of a body that nobody reads, and for a client to take
its answer; each such connection holds a descriptor, and some hold a running request and its files.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from segserve.api.delivery import SIGN_OF_LIFE
from segserve.settings import Settings

UNTAKEN = 5
"""An answer may wait so many times longer for its client than a request may stall: both ends' systems hold megabytes of
it, and a slow client is seen to take some only now and then."""
LARGEST_HEAD = 2**16
"""Bytes that the headers of a request may take, about, and what may follow its body: uvicorn would hold any number."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# After a minute of silence, six questions ten seconds apart. Systems without such options wait two hours.
PROBES = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
# What is not sent is thrown away, and the other end told so. Windows' fields are short.
AT_ONCE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


class Connection(HttpToolsProtocol):
    """An HTTP connection that ends when its client does nothing.

    A request that comes before the one before it is answered is dropped, and the answer closes the connection: uvicorn
    would stop reading until then, and so not notice that the client hangs up.
    """

    def __init__(self, *args: Any, settings: Settings, **kwargs: Any) -> None:
        """As uvicorn makes one; `settings` say how long it may stall."""
        super().__init__(*args, **kwargs)
        self._rate = settings.upload_rate
        self._arrival = _Clock(settings.upload_stall, self._late, self.loop)
        self._departure = _Clock(settings.upload_stall * UNTAKEN, self._untaken, self.loop)
        self._unheard = 0  # bytes since the parser last made anything of them
        self._received = 0
        self._left = 0
        self._too_early = False
        self._application: ASGIApp = self.app
        self.app = self._serve

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        _notice_vanishing(transport.get_extra_info("socket"))
        transport.set_write_buffer_limits(high=0)  # so that `pause_writing` tells of all that is not taken
        self._arrival.start()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        super().connection_lost(exc)
        self._arrival.stop()
        self._departure.stop()

    def data_received(self, data: bytes) -> None:
        """Take what comes; unless it is a request being answered, time is short."""
        if self._too_early:
            return
        self._unheard += len(data)
        super().data_received(data)
        if self._unheard > LARGEST_HEAD and not self.transport.is_closing():
            self._refuse_headers()
        if self.cycle is None or self.cycle.response_complete:
            self._arrival.start()
        else:
            self._arrival.stop()
            self._received = 0

    def pause_writing(self) -> None:
        """The client does not take all of its answer at once."""
        super().pause_writing()
        self._left = self.transport.get_write_buffer_size()
        self._departure.start()

    def resume_writing(self) -> None:
        """It has taken all of it."""
        super().resume_writing()
        self._departure.stop()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._unheard = 0
        if self._unanswered():
            self._too_early = True
            self.cycle.keep_alive = False

    def on_headers_complete(self) -> None:
        """Its head is whole."""
        self._unheard = 0
        if not self._too_early:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        self._unheard = 0
        if not self._too_early:
            self._received += len(body)
            super().on_body(body)

    def on_message_complete(self) -> None:
        """It is whole."""
        if not self._too_early:
            super().on_message_complete()

    def _refuse_headers(self) -> None:
        if self.cycle and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()  # what follows a body, in the middle of its answer
        else:
            self.send_400_response(f"The headers of a request may take {LARGEST_HEAD} bytes at most.")

    def _unanswered(self) -> bool:
        """Whether a request is under way whose client cannot have its whole answer yet."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        # All of the stated length may be out a moment before the application says so.
        stated = cycle.keep_alive and cycle.response_started and cycle.chunked_encoding is False
        return not (stated and cycle.expected_content_length == 0)

    def _late(self) -> None:
        """No head of a request has come in time; the rest of a body that was refused may go on coming."""
        if self._received > self._rate * self._arrival.seconds:
            self._received = 0
            self._arrival.start()
        else:
            self.transport.abort()

    def _untaken(self) -> None:
        """The client has not taken its answer in time; it may have taken some of it."""
        left = self.transport.get_write_buffer_size()
        if left < self._left:
            self._left = left
            self._departure.start()
        else:
            self.transport.abort()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["http_version"] == "1.0":
            await self._serve_without_chunks(scope, receive, send)
            return
        if (b"connection", b"keep-alive") in [(name, value.lower()) for name, value in scope["headers"]]:
            scope = {**scope, "extensions": {**scope.get("extensions", {}), SIGN_OF_LIFE: self._sign_of_life()}}
        await self._application(scope, receive, send)

    def _sign_of_life(self) -> Callable[[], None]:
        """Gives what tells the client, before its answer begins, that it will come.

        RFC 9110, 15.2, lets any number of such interim answers precede the answer. Only for clients that ask to keep
        the connection: a proxy, some of which take none that they have not asked for, does not pass that wish on.
        """
        cycle = self.cycle

        def tell() -> None:
            if not (cycle.response_started or cycle.disconnected):
                self.transport.write(CONTINUE)

        return tell

    async def _serve_without_chunks(self, scope: Scope, receive: Receive, send: Send) -> None:
        """For HTTP/1.0, which knows no chunks: an answer of unknown length ends with its connection."""
        cycle = self.cycle
        endless = False

        async def plain(message: Message) -> None:
            nonlocal endless
            if message["type"] == "http.response.start" and "content-length" not in Headers(raw=message["headers"]):
                endless = True
                cycle.chunked_encoding = False
            elif endless:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        try:
            await self._application(scope, receive, plain)
        finally:
            if endless and not cycle.response_complete:
                self._break_off()

    def _break_off(self) -> None:
        """End the connection as nothing whole ends: without chunks, a plain end would be the answer's."""
        with suppress(OSError):
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        self.transport.abort()


class _Clock:
    """Calls `late` some seconds after it was started, unless it is stopped."""

    def __init__(self, seconds: float, late: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        self.seconds = seconds
        self._late = late
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start it if it does not run."""
        if self._timer is None:
            self._timer = self._loop.call_later(self.seconds, self._ring)

    def stop(self) -> None:
        """Stop it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        self._late()


def _notice_vanishing(connection: socket.socket) -> None:
    """Let the system ask a silent client whether it is still there: a machine that was switched off says no goodbye."""
    with suppress(OSError):  # it has gone already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in PROBES.items():
            if option := getattr(socket, name, None):
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
