"""Checkpoints on disk: the old one or the new one, never a part, and never code."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch

from segserve.training.progress import KEPT

log = logging.getLogger(__name__)


def save(path: Path, state: dict[str, Any]) -> None:
    """Replace a checkpoint; a crash leaves the one before.

    Raises:
        OSError: it cannot be written, for want of room for instance; the one before is still there.
    """
    # Named by the process: a server that was killed may have left one that is still at it for a moment.
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            _write(state, stream)
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # half a checkpoint needs the room most
        raise


def _write(state: dict[str, Any], stream: BinaryIO) -> None:
    try:
        torch.save(state, stream)
        stream.flush()
    except RuntimeError as error:  # torch's writer stumbles over its own tidying up after the system's error
        raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def load(path: Path) -> dict[str, Any] | None:
    """The checkpoint at `path`; None if there is none, or none that can be read."""
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if set(KEPT) | {"network", "optimizer", "precision", "threads"} <= set(state):
            return state
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        log.warning("the checkpoint cannot be read: %s", type(error).__name__)
    log.warning("the training starts anew: its checkpoint is damaged, or of another version")
    return None
