"""Words on the terminal."""

from __future__ import annotations

from typing import NoReturn

import typer


def fail(message: str) -> NoReturn:
    """End the command with one sentence and exit status 1."""
    typer.echo(f"segserve: {message}", err=True)
    raise typer.Exit(1)
