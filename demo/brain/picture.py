"""The picture: three planes through the back of the brain, plain and with the answer in colour."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from demo.brain.anatomy import GREY, LABELS, SPLIT_MM, WHITE, Brain
from demo.brain.evaluation import Score

COLOURS = {GREY: "#ff9f1c", WHITE: "#2ec4f3"}
OPACITY = 0.6
PAPER, INK = "#0d1117", "#e6edf3"
FRAME_MM = ((-78.0, 78.0), (-112.0, 80.0), (-66.0, 90.0))
"""What is shown of x, y and z in world mm: the brain and a small margin."""


@dataclass(frozen=True)
class Plane:
    """A cut through an RAS+ volume (X, Y, Z): `axis` is cut at `mm`, of the other two the first goes right."""

    name: str
    axis: int
    mm: float
    sides: tuple[str, str]
    """What lies at the left and at the right border."""

    def shown_axes(self) -> tuple[int, int]:
        """The axes that go rightwards and upwards."""
        across, up = (axis for axis in range(3) if axis != self.axis)
        return across, up

    def proportion(self) -> float:
        """Width over height of what is shown."""
        (left, right), (low, high) = (FRAME_MM[axis] for axis in self.shown_axes())
        return (right - left) / (high - low)


PLANES = (
    Plane("sagittal", 0, 26.0, ("P", "A")),
    Plane("coronal", 1, -62.0, ("L", "R")),
    Plane("axial", 2, 8.0, ("L", "R")),
)


def save_picture(
    path: Path, sent: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8], brain: Brain, score: Score
) -> None:
    """Draw the volume that was sent above and the server's labels over it below; both (X, Y, Z) on `brain`'s grid."""
    figure = Figure(figsize=(11, 8.45), facecolor=PAPER)
    proportions = [plane.proportion() for plane in PLANES]
    rows = figure.subplots(2, len(PLANES), gridspec_kw={"width_ratios": proportions})
    brightest = float(np.quantile(sent, 0.9995))
    overlay = np.ma.masked_equal(labels, 0)
    for plane, above, below in zip(PLANES, *rows, strict=True):
        above.set_title(f"{plane.name}, {'xyz'[plane.axis]} = {plane.mm:+.0f} mm", color=INK, fontsize=13)
        for axes in (above, below):
            _draw(axes, plane, sent, brain.affine, cmap="gray", vmin=0, vmax=brightest)
            _annotate(axes, plane)
        colours = ListedColormap([COLOURS[GREY], COLOURS[WHITE]])
        _draw(below, plane, overlay, brain.affine, cmap=colours, vmin=GREY, vmax=WHITE, alpha=OPACITY)
    _caption(figure, score)
    figure.savefig(path, dpi=110)


def _draw(
    axes: Axes,
    plane: Plane,
    volume: npt.NDArray[np.generic],
    affine: npt.NDArray[np.float64],
    **style: Any,
) -> None:
    cut = round((plane.mm - affine[plane.axis, 3]) / affine[plane.axis, plane.axis])
    borders = [
        affine[axis, 3] + affine[axis, axis] * edge
        for axis in plane.shown_axes()
        for edge in (-0.5, volume.shape[axis] - 0.5)
    ]
    image = volume.take(cut, axis=plane.axis).T
    axes.imshow(image, origin="lower", interpolation="nearest", extent=tuple(borders), **style)


def _annotate(axes: Axes, plane: Plane) -> None:
    across, up = plane.shown_axes()
    axes.set(xlim=FRAME_MM[across], ylim=FRAME_MM[up])
    axes.set_axis_off()
    for side, x in zip(plane.sides, (0.04, 0.96), strict=True):
        axes.text(x, 0.05, side, transform=axes.transAxes, color=INK, ha="center", va="center", fontsize=12)
    if across == 1:
        axes.axvline(SPLIT_MM, color=INK, linestyle="--", linewidth=1.3)
        axes.text(SPLIT_MM - 3, FRAME_MM[up][1] - 4, "judged", color=INK, ha="right", va="top", fontsize=11)
        axes.text(SPLIT_MM + 3, FRAME_MM[up][1] - 4, "learned", color=INK, ha="left", va="top", fontsize=11)
    elif up == 1:
        axes.axhline(SPLIT_MM, color=INK, linestyle="--", linewidth=1.3)


def _caption(figure: Figure, score: Score) -> None:
    figure.suptitle("A brain scan, and what the served U-Net made of it", color=INK, fontsize=17, y=0.975)
    figure.text(
        0.5,
        0.065,
        f"The network learned in front of y = {SPLIT_MM:.0f} mm and is judged behind it: "
        f"Dice {score.grey:.2f} for grey matter, {score.white:.2f} for white matter.",
        color=INK,
        ha="center",
        fontsize=12,
    )
    patches = [Patch(color=colour, label=LABELS[value]) for value, colour in COLOURS.items()]
    figure.legend(handles=patches, loc="lower center", ncols=2, frameon=False, labelcolor=INK, fontsize=13)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.895, bottom=0.105, wspace=0.02, hspace=0.02)
