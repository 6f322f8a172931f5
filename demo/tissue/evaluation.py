"""How good is a classification, and what colour alone can do."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from demo.tissue.slide import CLASSES, Slide
from demo.tissue.strokes import UNLABELLED


def mean_iou(guess: npt.NDArray[np.uint8], slide: Slide) -> float:
    """Mean over the classes of intersection over union, on every pixel of the slide's judged part.

    Args:
        guess: (H, W) uint8, numbers of `CLASSES`, of the whole slide.
        slide: with the truth.
    """
    judged, truth = guess[:, slide.split :], slide.truth[:, slide.split :]
    ious = []
    for number in range(len(CLASSES)):
        found, true = judged == number, truth == number
        ious.append(np.sum(found & true) / max(1, np.sum(found | true)))
    return float(np.mean(ious))


def by_colour(slide: Slide, strokes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Classify every pixel by its own colour: a logistic regression on standardised RGB.

    Args:
        slide: whose colours count.
        strokes: (H, W) uint8, numbers of `CLASSES` to learn from, 255 elsewhere.

    Returns:
        (H, W) uint8, numbers of `CLASSES`.
    """
    labelled = strokes != UNLABELLED
    colours = slide.image.astype(np.float64)
    regression = make_pipeline(StandardScaler(), LogisticRegression())
    regression.fit(colours[labelled], strokes[labelled])
    guess = regression.predict(colours.reshape(-1, colours.shape[2]))
    return np.asarray(guess, dtype=np.uint8).reshape(strokes.shape)
