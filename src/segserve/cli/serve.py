"""`segserve serve`."""

from __future__ import annotations

from segserve import logs
from segserve.cli.options import with_settings
from segserve.settings import Settings


@with_settings
def serve(settings: Settings) -> None:
    """Start the server: 3D Slicer's door on port 8000 and QuPath's on 8765, both answering both."""
    logs.configure(debug=settings.debug, form=settings.log_format)
    from segserve.cli.server import run  # the other commands start in half the time without it

    run(settings)
