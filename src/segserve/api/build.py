"""The application: the dialects on one core, guarded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from segserve import __version__
from segserve.api import front, ops, qupath, slicer
from segserve.api.answers import install_error_answers
from segserve.api.context import RequestContext
from segserve.api.guard import Guard
from segserve.api.limits import JsonLimit
from segserve.api.ops.exposition import Exposition
from segserve.api.ops.readiness import Readiness
from segserve.api.ops.readings import Reader
from segserve.api.qupath.gpu import training_devices
from segserve.api.qupath.hall import Hall
from segserve.api.slicer.door import Door
from segserve.api.templates import Templates
from segserve.errors import SegserveError
from segserve.jobs.book import Book
from segserve.jobs.runner import Runner
from segserve.jobs.store import SqlJobStore
from segserve.metrics import Metrics
from segserve.models.classifiers import ClassifierStore
from segserve.settings import Settings
from segserve.state import StateDir
from segserve.workers.inspector import Inspector
from segserve.workers.offers import Offers
from segserve.workers.placement import Placement
from segserve.workers.placement.local import LocalPlacement
from segserve.workers.placement.watched import WatchedPlacement
from segserve.workers.supervisor import Supervisor
from segserve.workers.tile_models import TileModels


def create_app(settings: Settings, state: StateDir) -> FastAPI:
    """Put the server together; it owns its state directory from start to shutdown.

    Args:
        settings: in force for this server.
        state: acquired at start unless the caller has done so.

    Raises:
        BadInputError: a folder of the settings is not there.
    """
    settings.check_folders()
    app: FastAPI = FastAPIOffline(
        title="Segserve",
        version=__version__,
        summary="Segmentation models for 3D Slicer and QuPath.",
        lifespan=_lifespan,
    )
    app.state.settings = settings
    app.state.state_dir = state
    metrics = Metrics()
    local = LocalPlacement(state.root, debug=settings.debug, log_format=settings.log_format)
    placement = WatchedPlacement(local, metrics)
    app.state.supervisor = Supervisor(placement, settings)
    app.state.door = Door(app.state.supervisor, Offers(app.state.supervisor, settings))
    app.state.hall = _hall(settings, state, placement)
    _watch(app, metrics, placement)
    app.include_router(front.router)
    app.include_router(ops.router)
    app.include_router(slicer.router)
    app.include_router(qupath.router)
    install_error_answers(app)
    app.add_middleware(JsonLimit)
    app.add_middleware(Guard, settings=settings, key=lambda: api_key(settings, state))
    app.add_middleware(RequestContext, templates=Templates(app.openapi()["paths"]), metrics=metrics)
    return app


def _watch(app: FastAPI, metrics: Metrics, placement: WatchedPlacement) -> None:
    """What `/readyz` and `/metrics` look at."""
    state, hall = app.state.state_dir, app.state.hall
    reader = Reader(state, placement)
    app.state.readiness = Readiness(state, hall.book, placement)
    app.state.exposition = Exposition(metrics, placement, app.state.supervisor, hall, reader)


def _hall(settings: Settings, state: StateDir, placement: Placement) -> Hall:
    classifiers = ClassifierStore(state.models, folders=settings.model_dir)
    book = Book(lambda: SqlJobStore(state.job_records))
    weights_dir = str(settings.weights_dir.absolute()) if settings.weights_dir else None
    options = {"weights_dir": weights_dir, "data_memory": int(settings.data_memory)}
    runner = Runner(placement, book, classifiers, state, devices=training_devices(), options=options)
    inspector, scanner = (Inspector(placement, state.cache, max_waiting=settings.max_waiting) for _ in range(2))
    tiles = TileModels(placement, settings, classifiers)
    return Hall(settings, state, inspector, scanner, book, runner, classifiers, tiles, weights_dir)


async def close_core(app: FastAPI) -> None:
    """End every process, trainings with a checkpoint. Doing so twice changes nothing."""
    app.state.readiness.closing = True
    hall: Hall = app.state.hall
    parts = (app.state.door.offers, app.state.supervisor, hall.inspector, hall.scanner, hall.tiles, hall.runner)
    await asyncio.gather(*(part.close() for part in parts))


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
    await app.state.hall.runner.start()
    await app.state.door.offers.begin()
    try:
        yield
    finally:
        await close_core(app)
        state.release()
