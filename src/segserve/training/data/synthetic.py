"""A small made-up data set to try a training with: discs on noise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tifffile import imwrite

from segserve.training.spec import UNLABELLED

SIDE = 256
TRAIN, VALIDATION = 4, 2
LABELLED_ROWS = 50  # at the top: background
BACKGROUND, FOREGROUND = 0, 1


def write_synthetic(folder: Path, seed: int = 0) -> None:
    """Write six RGB patches of 256 x 256 with sparse masks, four to train on, two to validate on.

    The top 50 rows are labelled background, the discs foreground, the rest is unlabelled.

    Args:
        folder: made if it is missing.
        seed: of the noise and the discs.
    """
    generator = np.random.default_rng(seed)
    for number in range(TRAIN + VALIDATION):
        part = folder / ("train" if number < TRAIN else "validation")
        for kind in ("images", "masks"):
            (part / kind).mkdir(parents=True, exist_ok=True)
        image, mask = _patch(generator)
        imwrite(part / "images" / f"patch_{number:04}.tiff", image, photometric="rgb")
        Image.fromarray(mask).save(part / "masks" / f"patch_{number:04}.png")
    config = {"classes": ["Background", "Foreground"], "class_weights": [1.0, 2.0], "unlabeled_index": UNLABELLED}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _patch(generator: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(256, 256, 3) uint8 RGB and its (256, 256) uint8 mask."""
    image = generator.integers(180, 240, (SIDE, SIDE, 3))
    mask = np.full((SIDE, SIDE), UNLABELLED, np.uint8)
    mask[:LABELLED_ROWS] = BACKGROUND
    rows, columns = np.ogrid[:SIDE, :SIDE]
    for _ in range(generator.integers(3, 7)):
        radius = int(generator.integers(15, 35))
        row = generator.integers(LABELLED_ROWS + radius, SIDE - radius)
        column = generator.integers(radius, SIDE - radius)
        disc = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
        color = generator.integers((100, 20, 60), (160, 80, 120))
        image[disc] = color + generator.integers(-15, 16, (int(disc.sum()), 3))
        mask[disc] = FOREGROUND
    return image.clip(0, 255).astype(np.uint8), mask
