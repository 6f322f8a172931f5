"""The training folder as QuPath's extension exports it: patches, sparse masks, config.json."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tifffile import imwrite

from demo.tissue.slide import CLASSES, COLOURS, Slide
from demo.tissue.strokes import BRUSH_RADIUS, UNLABELLED, Area

PATCH = 128
STEP = 32
"""Pixels, about, from patch to patch."""
SOURCE = "skimage.data.immunohistochemistry"


@dataclass(frozen=True)
class Part:
    """One side of the data set: its folder's name, where its patches are cut, and its strokes, (H, W) uint8."""

    name: str
    area: Area
    strokes: npt.NDArray[np.uint8]


def export(folder: Path, slide: Slide, parts: tuple[Part, Part]) -> dict[str, int]:
    """Write the training folder, after removing an older one.

    Returns:
        How many patches each part has. Those without a stroke are left out, as QuPath leaves them out.
    """
    shutil.rmtree(folder, ignore_errors=True)
    counts = {part.name: _write_part(folder / part.name, slide.image, part) for part in parts}
    config = _config(parts, counts)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return counts


def _write_part(folder: Path, image: npt.NDArray[np.uint8], part: Part) -> int:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    count = 0
    for window in _windows(part.area):
        mask = part.strokes[window]
        if (mask == UNLABELLED).all():
            continue
        imwrite(folder / "images" / f"patch_{count:04}.tiff", image[window], photometric="rgb")
        Image.fromarray(mask).save(folder / "masks" / f"patch_{count:04}.png")
        count += 1
    return count


def _windows(area: Area) -> Iterator[tuple[slice, slice]]:
    for top in _starts(area.rows):
        for left in _starts(area.columns):
            yield slice(top, top + PATCH), slice(left, left + PATCH)


def _starts(extent: slice) -> list[int]:
    """Evenly spaced from the first to the last place where a patch fits."""
    room = extent.stop - extent.start - PATCH
    places = np.linspace(0, room, -(-room // STEP) + 1)
    return [extent.start + round(place) for place in places]


def _config(parts: tuple[Part, Part], counts: dict[str, int]) -> dict[str, Any]:
    pixels = [sum(int((part.strokes == number).sum()) for part in parts) for number in range(len(CLASSES))]
    return {
        "patch_size": PATCH,
        "downsample": 1.0,
        "unlabeled_index": UNLABELLED,
        "line_stroke_width": 2 * BRUSH_RADIUS + 1,
        "total_labeled_pixels": sum(pixels),
        "classes": [
            {"index": number, "name": name, "color": colour, "pixel_count": count}
            for number, (name, colour, count) in enumerate(zip(CLASSES, COLOURS, pixels, strict=True))
        ],
        "class_weights": [round(sum(pixels) / (len(CLASSES) * count), 6) for count in pixels],
        "channel_config": {
            "num_channels": 3,
            "detail_channels": 3,
            "context_scale": 1,
            "channel_names": ["Red", "Green", "Blue"],
            "bit_depth": 8,
            "normalization": {"strategy": "percentile_99", "per_channel": False, "clip_percentile": 99.0},
        },
        "metadata": {
            "source_image": SOURCE,
            "train_count": counts["train"],
            "validation_count": counts["validation"],
            "annotation_count": len(CLASSES) * sum(part.area.strokes for part in parts),
            "export_date": datetime.now().astimezone().isoformat(timespec="seconds"),
        },
    }
