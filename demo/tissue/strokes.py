"""Brush strokes as a user draws them: short lines inside regions of one class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage import draw

from demo.tissue.slide import CLASSES, Slide

Depth = npt.NDArray[np.float64]

UNLABELLED = 255
BRUSH_RADIUS = 2
LENGTH = (12, 32)
"""Pixels; a stroke that would leave its region before the shorter one is not drawn."""
NEAR_BORDER = 7.0
"""Every other stroke begins within this many pixels of the border of its region, where the doubt is, and follows it."""


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
    return Area(slice(0, height * 3 // 4), columns, 24), Area(slice(height * 3 // 4, height), columns, 8)


def draw_strokes(slide: Slide, area: Area, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Strokes of every class in `area`.

    Returns:
        (H, W) uint8 of the whole slide's size: numbers of `CLASSES` on the strokes, 255 elsewhere.
    """
    labels = np.full(slide.truth.shape, UNLABELLED, dtype=np.uint8)
    part = labels[area.rows, area.columns]
    truth = slide.truth[area.rows, area.columns]
    for number in range(len(CLASSES)):
        depth = ndimage.distance_transform_edt(truth == number)
        for index in range(area.strokes):
            part[_stroke(depth, rng, along_border=index % 2 == 1)] = number
    return labels


def _stroke(depth: Depth, rng: np.random.Generator, *, along_border: bool) -> npt.NDArray[np.bool_]:
    """The pixels of one stroke, whose brush stays inside the region; `depth`: (H, W) pixels to its border, 0 outside.

    Its end is cut off where the brush would touch the border; what becomes too short so is drawn elsewhere.
    """
    places = np.argwhere((depth > BRUSH_RADIUS) & (depth <= (NEAR_BORDER if along_border else np.inf)))
    line = places[:0]
    while len(line) < LENGTH[0]:
        begin = places[rng.integers(len(places))]
        angle = _angle_of_border(depth, begin) if along_border else rng.uniform(0, 2 * np.pi)
        way = rng.choice([-1, 1]) * rng.integers(*LENGTH, endpoint=True)
        end = np.rint(begin + way * np.array([np.sin(angle), np.cos(angle)])).astype(int)
        line = np.stack(draw.line(*begin, *end), axis=1)
        inside = np.asarray(((line >= 0) & (line < depth.shape)).all(axis=1))
        line = line[: _until_false(inside)]
        line = line[: _until_false(depth[line[:, 0], line[:, 1]] > BRUSH_RADIUS)]
    centre = np.ones(depth.shape, dtype=np.bool_)
    centre[tuple(line.T)] = False
    return np.asarray(ndimage.distance_transform_edt(centre) <= BRUSH_RADIUS, dtype=np.bool_)


def _angle_of_border(depth: Depth, place: npt.NDArray[np.intp]) -> float:
    """The direction of the border next to `place`, in radians from the row's direction: where depth stays the same."""
    row, column = place
    around = np.pad(depth, 2, mode="edge")[row : row + 5, column : column + 5]
    down, right = (slope.mean() for slope in np.gradient(around))
    return float(np.arctan2(-right, down))


def _until_false(flags: npt.NDArray[np.bool_]) -> int:
    """How many of the flags come before the first False."""
    return len(flags) if flags.all() else int(np.argmin(flags))
