"""The application: the dialects on one core, guarded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from segserve import __version__
from segserve.api import qupath, slicer
from segserve.api.answers import install_error_answers
from segserve.api.context import RequestContext
from segserve.api.guard import Guard
from segserve.api.slicer.door import Door
from segserve.errors import SegserveError
from segserve.settings import Settings
from segserve.state import StateDir
from segserve.workers.placement.local import LocalPlacement
from segserve.workers.supervisor import Supervisor


def create_app(settings: Settings, state: StateDir) -> FastAPI:
    """Put the server together; it owns its state directory from start to shutdown.

    Args:
        settings: in force for this server.
        state: acquired at start unless the caller has done so.
    """
    app: FastAPI = FastAPIOffline(
        title="Segserve",
        version=__version__,
        summary="Segmentation models for 3D Slicer and QuPath.",
        lifespan=_lifespan,
    )
    app.state.settings = settings
    app.state.state_dir = state
    app.state.supervisor = Supervisor(LocalPlacement(state.root, debug=settings.debug), settings)
    app.state.door = Door(app.state.supervisor)
    app.include_router(slicer.router)
    app.include_router(qupath.router)
    install_error_answers(app)
    app.add_middleware(Guard, settings=settings, key=lambda: api_key(settings, state))
    app.add_middleware(RequestContext)
    return app


def api_key(settings: Settings, state: StateDir) -> str:
    """The key in force: the named file's, else the state directory's.

    Raises:
        SegserveError: the named file cannot be read, or is empty.
    """
    if settings.api_key_file is None:
        return state.api_key()
    try:
        key = settings.api_key_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SegserveError(f"The key file {settings.api_key_file} cannot be read: {error}.") from None
    if not key:
        raise SegserveError(f"The key file {settings.api_key_file} is empty.")
    return key


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: StateDir = app.state.state_dir
    state.acquire()
    if app.state.settings.api_key_file:
        api_key(
            app.state.settings, state
        )  # better no server than one that finds at the first request that it has no key
    try:
        yield
    finally:
        await app.state.supervisor.close()
        state.release()
