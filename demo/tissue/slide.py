"""The slide: scikit-image's packaged immunohistochemistry image, and what counts as true on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from skimage import color, data, filters
from skimage.morphology import remove_small_holes, remove_small_objects

CLASSES = ("Other", "DAB positive")
COLOURS = ("#2ec4f3", "#ff9f1c")
POSITIVE = 1
OUTLINE_PIXELS = 6.0
"""How coarsely the truth is outlined: the standard deviation of a Gaussian, about half a nucleus."""
STRONG_STAIN = 0.8
"""Quantile of the amount of stain at which it is capped: brown is brown, however dark."""
SMALLEST_REGION = 400
"""Pixels; specks and holes up to this size are not worth an outline."""


@dataclass(frozen=True)
class Slide:
    """A stained section and the truth about it.

    `image`: (H, W, 3) uint8, RGB.
    `truth`: (H, W) uint8, numbers of `CLASSES`.
    `split`: the first column that is judged. All that is learned comes from the columns before it.
    """

    image: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.uint8]
    split: int


def load_slide() -> Slide:
    """The slide, judged on its right third.

    The truth comes from the stains: colour deconvolution (Ruifrok & Johnston 2001) gives the amount of DAB, the
    brown stain; it is capped, smoothed, as a pathologist outlines regions rather than pixels, cut by Otsu's
    threshold, and freed of specks and holes.
    """
    image = np.asarray(data.immunohistochemistry(), dtype=np.uint8)
    stain = color.rgb2hed(image)[..., 2]
    stain = filters.gaussian(np.minimum(stain, np.quantile(stain, STRONG_STAIN)), OUTLINE_PIXELS)
    positive = stain > filters.threshold_otsu(stain)
    positive = remove_small_objects(positive, max_size=SMALLEST_REGION)
    positive = remove_small_holes(positive, max_size=SMALLEST_REGION)
    return Slide(image, np.where(positive, POSITIVE, 0).astype(np.uint8), image.shape[1] * 2 // 3)
