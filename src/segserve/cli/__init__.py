"""The command line: `segserve serve | infer | models | demo-data | doctor`."""

from __future__ import annotations

import typer

from segserve.cli.demo_data import demo_data
from segserve.cli.doctor import doctor
from segserve.cli.infer import infer
from segserve.cli.models import models
from segserve.cli.serve import serve

__all__ = ["main", "serve_main"]

app = typer.Typer(
    name="segserve",
    help="One server that gives 3D Slicer and QuPath segmentation models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (serve, infer, models, demo_data, doctor):
    app.command()(command)

serve_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
serve_app.command()(serve)


def main() -> None:
    """Run `segserve`."""
    app()


def serve_main() -> None:
    """Run `itkit-server` and `dlclassifier-server`: `segserve serve` under the names that users know."""
    serve_app()
