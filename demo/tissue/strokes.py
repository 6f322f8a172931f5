"""Brush strokes as a user draws them: short lines inside regions of one class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage import draw

from demo.tissue.slide import CLASSES, Slide

UNLABELLED = 255
BRUSH_RADIUS = 2
LENGTH = (12, 32)
"""Pixels; a stroke that would leave its region before the shorter one is not drawn."""
NEAR_BORDER = 9.0
"""Every other stroke begins within this many pixels of the border of its region, where the doubt is."""


@dataclass(frozen=True)
class Area:
    """A part of the slide in which strokes are drawn, and how many of each class."""

    rows: slice
    columns: slice
    strokes: int


def areas(slide: Slide) -> tuple[Area, Area]:
    """Where the strokes to train on are drawn, and those to validate on: the lowest quarter is for these."""
    height = slide.image.shape[0]
    columns = slice(0, slide.split)
    return Area(slice(0, height * 3 // 4), columns, 16), Area(slice(height * 3 // 4, height), columns, 6)


def draw_strokes(slide: Slide, area: Area, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Strokes of every class in `area`.

    Returns:
        (H, W) uint8 of the whole slide's size: numbers of `CLASSES` on the strokes, 255 elsewhere.
    """
    labels = np.full(slide.truth.shape, UNLABELLED, dtype=np.uint8)
    part = labels[area.rows, area.columns]
    truth = slide.truth[area.rows, area.columns]
    for number in range(len(CLASSES)):
        # Outside the area is nobody's region, so that no brush reaches beyond it.
        depth = ndimage.distance_transform_edt(np.pad(truth == number, 1))[1:-1, 1:-1]
        for index in range(area.strokes):
            near = depth <= NEAR_BORDER if index % 2 else np.True_
            part[_stroke(depth, (depth > BRUSH_RADIUS) & near, rng)] = number
    return labels


def _stroke(
    depth: npt.NDArray[np.float64], starts: npt.NDArray[np.bool_], rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """The pixels of one stroke that begins on one of `starts` and ends where its brush would touch the border."""
    places = np.argwhere(starts)
    while True:
        begin = places[rng.integers(len(places))]
        angle, length = rng.uniform(0, 2 * np.pi), rng.integers(*LENGTH, endpoint=True)
        end = np.rint(begin + length * np.array([np.sin(angle), np.cos(angle)])).astype(int)
        line = np.stack(draw.line(*begin, *end), axis=1)
        inside = ((line >= 0) & (line < depth.shape)).all(axis=1)
        line = line[: _until_false(inside)]
        line = line[: _until_false(depth[tuple(line.T)] > BRUSH_RADIUS)]
        if len(line) >= LENGTH[0]:
            break
    centre = np.ones(depth.shape, dtype=np.bool_)
    centre[tuple(line.T)] = False
    return np.asarray(ndimage.distance_transform_edt(centre) <= BRUSH_RADIUS, dtype=np.bool_)


def _until_false(flags: npt.NDArray[np.bool_]) -> int:
    return len(flags) if flags.all() else int(np.argmin(flags))
