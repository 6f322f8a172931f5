"""The command line: `segserve serve | infer | models | convert | demo-data | doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from segserve import __version__
from segserve.cli.convert import convert
from segserve.cli.demo_data import demo_data
from segserve.cli.doctor import doctor
from segserve.cli.infer import infer
from segserve.cli.models import models
from segserve.cli.serve import serve

__all__ = ["main", "serve_main"]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"segserve {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="segserve",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (serve, infer, models, convert, demo_data, doctor):
    app.command()(command)


@app.callback()
def about(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """One server that gives 3D Slicer and QuPath segmentation models."""
    del version


serve_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
serve_app.command()(serve)


def main() -> None:
    """Run `segserve`."""
    app()


def serve_main() -> None:
    """Run `itkit-server` and `dlclassifier-server`: `segserve serve` under the names that users know."""
    serve_app()
