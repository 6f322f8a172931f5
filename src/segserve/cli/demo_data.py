"""`segserve demo-data`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from segserve.cli.output import fail
from segserve.errors import DiskFullError, is_disk_full


def demo_data(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write to; made if it is missing.")],
) -> None:
    """Write a small made-up data set to try a training with."""
    # Imported here: the server's process, which shares this command line, has no use for image files.
    from segserve.training.data.synthetic import SIDE, TRAIN, VALIDATION, write_synthetic

    if folder.exists() and not folder.is_dir():
        fail(f"{folder} is a file: name a folder.")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            write_synthetic(Path(scratch))
            _refuse_others(folder, _files(Path(scratch)))
            shutil.copytree(scratch, folder, dirs_exist_ok=True)
    except OSError as error:
        fail(DiskFullError().message if is_disk_full(error) else f"{folder} cannot be written ({error}).")
    typer.echo(f"{folder}: {TRAIN} patches to train on and {VALIDATION} to validate on, {SIDE} x {SIDE} RGB.")
    typer.echo(f'Train on it with "data_path": "{folder.resolve().as_posix()}".')


def _refuse_others(folder: Path, own: set[Path]) -> None:
    """An older set may be replaced; anything else would be trained on with it, or be somebody's work."""
    others = sorted(_files(folder) - own)
    if others:
        fail(f"{folder} holds other files, such as {others[0].as_posix()}: name an empty folder or a new one.")


def _files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()}
