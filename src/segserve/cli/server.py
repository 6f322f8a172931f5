"""The server's own loop, from its sockets to its end. Only `segserve serve` imports what it takes."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from functools import partial
from typing import cast

import typer
import uvicorn
from fastapi import FastAPI

from segserve.api.build import api_key, close_core, create_app
from segserve.cli.banner import banner
from segserve.cli.connection import Connection
from segserve.cli.output import fail
from segserve.cli.sockets import PortTakenError, listen, local_url, url
from segserve.errors import SegserveError
from segserve.settings import DEFAULT_PORTS, Settings
from segserve.state import StateDir

log = logging.getLogger(__name__)

GRACE_SECONDS = 3


class Server(uvicorn.Server):
    """uvicorn, but processes end first, so that running requests are answered instead of waited for."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop serving."""
        await close_core(self._app)
        await super().shutdown(sockets)


def run(settings: Settings) -> None:
    """Serve until told to stop; ends the command if it cannot begin."""
    state = StateDir(settings.state_dir)
    try:
        state.acquire()
        sockets = _listen(settings)
        key = api_key(settings, state) if _asks_for_key(settings) else None
        app = create_app(settings, state)
    except SegserveError as error:
        fail(error.message)
    urls = [url(bound) for bound in sockets]
    typer.echo(banner(settings, state, urls, local_url(sockets[0]), key))
    sys.stdout.flush()
    config = uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", partial(Connection, settings=settings)),
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # --allow-from means the address that connects, not one that a header claims
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    state.publish([local_url(bound) for bound in sockets])
    try:
        Server(config, app).run(sockets)
    except KeyboardInterrupt:
        log.info("stopped by Ctrl-C")


def _asks_for_key(settings: Settings) -> bool:
    return not settings.insecure and (settings.off_loopback or settings.api_key_file is not None)


def _listen(settings: Settings) -> list[socket.socket]:
    """Listen on every port asked for; of the two default ones, one may be taken.

    Raises:
        PortTakenError: a port the user asked for is taken, or both default ones are.
    """
    sockets: list[socket.socket] = []
    refused: list[PortTakenError] = []
    for port in settings.port:
        try:
            sockets += listen(settings.host, port)
        except PortTakenError as error:
            if tuple(settings.port) != DEFAULT_PORTS:
                raise
            refused.append(error)
    if not sockets:
        raise refused[0]
    for refusal in refused:
        log.warning("%s The server answers on the other default port only.", refusal.message)
    return sockets
