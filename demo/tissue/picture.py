"""The picture: the slide, the strokes, the truth, and what colour and network each make of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from demo.tissue.slide import CLASSES, COLOURS, Slide
from demo.tissue.strokes import UNLABELLED

PAPER, INK = "#0d1117", "#e6edf3"
OPACITY = 0.72
PALE = 0.45
"""How far the slide fades to white under the strokes."""


def save_picture(
    path: Path,
    slide: Slide,
    strokes: npt.NDArray[np.uint8],
    by_colour: tuple[npt.NDArray[np.uint8], float],
    by_network: tuple[npt.NDArray[np.uint8], float],
) -> None:
    """Draw the panels.

    Args:
        path: the PNG to write.
        slide: with the truth.
        strokes: (H, W) uint8, class numbers, 255 elsewhere.
        by_colour: the logistic regression's classes, (H, W) uint8, and its mean IoU.
        by_network: the network's.
    """
    figure = Figure(figsize=(11, 8.3), facecolor=PAPER)
    panels = figure.subplots(2, 3).ravel()
    pale = slide.image / 255 * (1 - PALE) + PALE
    panels_and_pictures = (
        ("the slide", slide.image),
        ("strokes: all that is learned", _coloured(pale, strokes, opacity=1.0)),
        ("the truth, from the stain", _overlay(slide, slide.truth)),
        (f"colour alone: mean IoU {by_colour[1]:.3f}", _overlay(slide, by_colour[0])),
        (f"the network: mean IoU {by_network[1]:.3f}", _overlay(slide, by_network[0])),
    )
    for axes, (title, shown) in zip(panels, panels_and_pictures, strict=False):
        axes.imshow(shown)
        axes.set_title(title, color=INK, fontsize=13.5)
        axes.set_axis_off()
        _mark_split(axes, slide)
    _explain(panels[-1], slide, strokes)
    figure.subplots_adjust(left=0.008, right=0.992, top=0.955, bottom=0.012, wspace=0.03, hspace=0.1)
    figure.savefig(path, dpi=110)


def _overlay(slide: Slide, classes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Classes over the slide in grey, so that the tissue stays visible below."""
    grey = np.repeat(slide.image.mean(axis=2, keepdims=True) / 255, 3, axis=2)
    return _coloured(grey, classes, opacity=OPACITY)


def _coloured(
    ground: npt.NDArray[np.float64], classes: npt.NDArray[np.uint8], *, opacity: float
) -> npt.NDArray[np.float64]:
    """(H, W, 3) RGB in 0..1 with the pixels of each class tinted in its colour."""
    tinted = ground.copy()
    for number, colour in enumerate(COLOURS):
        where = classes == number
        tinted[where] = opacity * np.array(to_rgb(colour)) + (1 - opacity) * ground[where]
    return tinted


def _mark_split(axes: Axes, slide: Slide) -> None:
    axes.axvline(slide.split - 0.5, color="black", linewidth=2.6)
    axes.axvline(slide.split - 0.5, color="white", linestyle=(0, (4, 3)), linewidth=1.4)
    for x, side, word in ((slide.split - 10, "right", "learned"), (slide.split + 10, "left", "judged")):
        axes.text(
            x, 497, word, color="black", ha=side, va="bottom", fontsize=10.5,
            bbox={"boxstyle": "round,pad=0.18", "facecolor": "white", "alpha": 0.8, "edgecolor": "none"},
        )  # fmt: skip


def _explain(axes: Axes, slide: Slide, strokes: npt.NDArray[np.uint8]) -> None:
    axes.set_axis_off()
    share = (strokes != UNLABELLED).sum() / (slide.truth.shape[0] * slide.split)
    lines = (
        "The network: a U-Net from random weights,\ntrained over HTTP on patches with strokes;"
        f"\nthese are {share:.1%} of the pixels left of the line.",
        "Colour alone: a logistic regression on the\ncolour of each pixel, from the same strokes.",
        "Both are judged right of the line, on every\npixel; nothing there was seen in training.",
        "The truth: how much brown stain there is,\nsmoothed and cut by a threshold.",
    )
    patches = [Patch(color=colour, label=name) for name, colour in zip(CLASSES, COLOURS, strict=True)]
    axes.legend(
        handles=patches[::-1], loc="upper left", bbox_to_anchor=(0.02, 0.97), frameon=False, labelcolor=INK,
        fontsize=13.5, borderaxespad=0,
    )  # fmt: skip
    axes.text(
        0.04, 0.74, "\n\n".join(lines), transform=axes.transAxes, color=INK, va="top", fontsize=11, linespacing=1.4
    )
