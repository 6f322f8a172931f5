"""Checkpoints on disk: the old one or the new one, never a part, and never code."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)


def save(path: Path, state: dict[str, Any]) -> None:
    """Replace a checkpoint; a crash leaves the one before."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def load(path: Path) -> dict[str, Any] | None:
    """The checkpoint at `path`; None if there is none, or none that can be read."""
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        log.warning("the checkpoint cannot be read, the training starts anew: %s", type(error).__name__)
        return None
    return state
