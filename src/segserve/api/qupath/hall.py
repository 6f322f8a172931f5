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


@dataclass(frozen=True)
class Hall:
    """The core, as this door uses it. `scanner` is an inspector of its own: looking through data takes long."""

    settings: Settings
    state: StateDir
    inspector: Inspector
    scanner: Inspector
    book: Book
    runner: Runner
    classifiers: ClassifierStore

    @property
    def weights_dir(self) -> str | None:
        """Where pretrained weights are looked for first."""
        return str(self.settings.weights_dir) if self.settings.weights_dir else None


def hall(request: Request) -> Hall:
    """The hall of the application that serves a request."""
    found: Hall = request.app.state.hall
    return found
