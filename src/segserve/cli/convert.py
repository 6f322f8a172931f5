"""`segserve convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segserve.cli.folder import sentence
from segserve.cli.output import fail
from segserve.errors import SegserveError
from segserve.extras import need_torch
from segserve.models.names import SAFETENSORS

SHOWN = 10


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint (.pth, .pt, .ckpt); nothing in it is run.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The weights, .safetensors; else beside the checkpoint.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it is there.")] = False,
) -> None:
    """Write the weights of a checkpoint as safetensors, which can hold nothing else."""
    target = output or checkpoint.with_suffix(SAFETENSORS)
    _check_paths(checkpoint, target, force=force)
    try:
        need_torch("Converting a checkpoint")
        from segserve.models.formats.checkpoint import read_checkpoint, write_safetensors

        found = read_checkpoint(checkpoint)
        write_safetensors(found.state, target)
    except (SegserveError, OSError) as error:
        fail(sentence(error, checkpoint))
    more = ", ..." if len(found.left_out) > SHOWN else ""
    rest = f"; left out: {', '.join(found.left_out[:SHOWN])}{more}" if found.left_out else ""
    typer.echo(f"{target}: {len(found.state)} tensors{rest}")


def _check_paths(checkpoint: Path, target: Path, *, force: bool) -> None:
    if not checkpoint.is_file():
        fail(f"the checkpoint {checkpoint} is not there.")
    if target.suffix != SAFETENSORS:
        fail(f"the output {target} must end in {SAFETENSORS}.")
    if not target.parent.is_dir():
        fail(f"the folder {target.parent} is not there.")
    if target.exists() and target.samefile(checkpoint):
        fail(f"the output {target} is the checkpoint itself: give it another name.")
    if target.exists() and not force:
        fail(f"{target} exists: give another name with -o, or replace it with --force.")
