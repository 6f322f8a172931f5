"""A volume network as it was found on disk, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segserve.engines.base import Network
from segserve.models.metadata import ModelMetadata


@dataclass(frozen=True)
class Opened:
    """A network that is read, and what its file says of it.

    Attributes:
        network: for the engines.
        shape: of its input, (N, C, Z, Y, X); None where it accepts any, or where nobody knows.
        described: the input in words, for errors.
        metadata: its own settings, and warnings.
        files: everything it was read from; a change in one of them makes it another network.
        classes: how many it is said to tell apart; None if nothing says so.
    """

    network: Network
    shape: tuple[int | None, ...]
    described: str
    metadata: ModelMetadata
    files: list[Path]
    classes: int | None = None
