"""How good is a segmentation: Dice behind the split plane, and the best that thresholds could do there."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from demo.brain.anatomy import GREY, SPLIT_MM, WHITE, Brain, Kind

CANDIDATES = 200
"""How many quantiles of the intensities the threshold search tries for each of its two thresholds."""


@dataclass(frozen=True)
class Score:
    """Dice (0..1) of each tissue."""

    grey: float
    white: float


def dice(guess: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
    """Twice the overlap over the sum of the sizes, for two masks of one shape."""
    return 2 * int(np.sum(guess & truth)) / max(1, int(np.sum(guess)) + int(np.sum(truth)))


def score(labels: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8]) -> Score:
    """Dice of both tissues for two label arrays of one shape."""
    return Score(*(dice(labels == tissue, truth == tissue) for tissue in (GREY, WHITE)))


def behind_split(array: npt.NDArray[Kind], brain: Brain) -> npt.NDArray[Kind]:
    """The part of an (X, Y, Z) array on `brain`'s grid that the network never saw: y < `SPLIT_MM`."""
    return array[:, brain.y_mm() < SPLIT_MM]


def best_thresholds(sent: npt.NDArray[np.float32], truth: npt.NDArray[np.uint8]) -> Score:
    """The best mean Dice that any two thresholds on `sent` reach against `truth`; arrays of one shape.

    An oracle: it picks its thresholds knowing the very answer it is judged by, which the network never sees.
    Intensities from the lower to the upper threshold are grey matter, those above are white matter.
    """
    tissue = truth > 0
    # Quantiles of the tissue alone: the many background voxels would draw most candidates into their noise.
    levels = np.unique(np.quantile(sent[tissue], np.linspace(0, 1, CANDIDATES)))
    above = {kind: _count_above(sent[truth == kind], levels) for kind in (GREY, WHITE)}
    everything = _count_above(sent.ravel(), levels)
    low, high = np.triu_indices(len(levels), k=1)
    grey_size, white_size = np.sum(truth == GREY), np.sum(truth == WHITE)
    grey = 2 * (above[GREY][low] - above[GREY][high]) / (everything[low] - everything[high] + grey_size)
    white = 2 * above[WHITE][high] / (everything[high] + white_size)
    best = np.argmax(grey + white)
    return Score(float(grey[best]), float(white[best]))


def _count_above(values: npt.NDArray[np.float32], levels: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """How many `values` are at or above each of the ascending `levels`."""
    return len(values) - np.searchsorted(np.sort(values), levels, side="left")
