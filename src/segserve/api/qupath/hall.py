"""What the routes of this dialect share."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from segserve.jobs.book import Book
from segserve.jobs.runner import Runner
from segserve.models.classifiers import ClassifierStore
from segserve.settings import Settings
from segserve.state import StateDir
from segserve.workers.inspector import Inspector
from segserve.workers.tile_models import TileModels


@dataclass(frozen=True)
class Hall:
    """The core, as this door uses it.

    Attributes:
        scanner: an inspector of its own, since looking through data takes long.
        weights_dir: where pretrained weights are looked for first.
    """

    settings: Settings
    state: StateDir
    inspector: Inspector
    scanner: Inspector
    book: Book
    runner: Runner
    classifiers: ClassifierStore
    tiles: TileModels
    weights_dir: str | None


def hall(request: Request) -> Hall:
    """The hall of the application that serves a request."""
    found: Hall = request.app.state.hall
    return found
