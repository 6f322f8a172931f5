"""Colouring a slide as QuPath's extension does: overlapping tiles over HTTP, their maps blended."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from demo.serving import Client
from demo.tissue.slide import CLASSES

TILE = 192
OVERLAP = 64
REFLECTION = 32
AT_ONCE = 8
LOWEST = 0.001
"""What a border pixel of the slide counts at least: no neighbour covers it."""

Place = tuple[int, int]


def colour(client: Client, model: Path, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Classify a slide tile by tile.

    Args:
        client: of the server.
        model: the classifier's folder.
        image: (H, W, 3) uint8.

    Returns:
        float32 (K, H, W), blended probabilities.
    """
    height, width, _ = image.shape
    total = np.zeros((len(CLASSES), height, width), np.float64)
    weights = np.zeros((height, width))
    ramp = _ramp(TILE)
    weight = np.maximum(np.outer(ramp, ramp), LOWEST)
    with tempfile.TemporaryDirectory(prefix="segserve-maps-") as folder:
        for batch in _batches(height, width):
            tiles = {f"{x}_{y}_{TILE}_{TILE}": image[y : y + TILE, x : x + TILE] for y, x in batch}
            paths = client.classify_tiles(model, tiles, Path(folder), reflection=REFLECTION)
            for (y, x), path in zip(batch, paths.values(), strict=True):
                probabilities = np.fromfile(path, "<f4").reshape(len(CLASSES), TILE, TILE)
                total[:, y : y + TILE, x : x + TILE] += weight * probabilities
                weights[y : y + TILE, x : x + TILE] += weight
    return np.asarray(total / weights, np.float32)


def tile_count(height: int, width: int) -> int:
    """How many tiles cover a slide."""
    return len(_starts(height)) * len(_starts(width))


def _batches(height: int, width: int) -> Iterator[list[Place]]:
    places = list(itertools.product(_starts(height), _starts(width)))
    for first in range(0, len(places), AT_ONCE):
        yield places[first : first + AT_ONCE]


def _starts(length: int) -> list[int]:
    """Where tiles begin along an axis; those that would cross its end are shifted inward."""
    return sorted({min(start, length - TILE) for start in range(0, length - OVERLAP, TILE - OVERLAP)})


def _ramp(size: int) -> npt.NDArray[np.float64]:
    """How much each pixel of a tile's side counts: rising over the overlap from 0 to 1, and falling likewise."""
    inward = np.arange(size) / OVERLAP
    return np.minimum(np.minimum(inward, inward[::-1]), 1)
