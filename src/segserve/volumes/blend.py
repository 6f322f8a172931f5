"""How much a window counts at each of its voxels where windows overlap."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segserve.models.request import Axes

SIGMA_SCALE = 1 / 8
LOWEST = 1e-3


def window_weights(blend: str, patch: Axes) -> NDArray[np.float32] | None:
    """The weight of each voxel of a window.

    Args:
        blend: `constant` or `gaussian`.
        patch: (Z, Y, X) in voxels.

    Returns:
        float32 (Z, Y, X); None where all weigh the same. Gaussian weights are those of MONAI's
        `compute_importance_map`: exp(-(i - (n - 1) / 2)^2 / (2 s^2)) along each axis with s = n / 8, multiplied,
        and not below 1e-3.
    """
    if blend == "constant":
        return None
    curves = []
    for size in patch:
        distance = np.arange(size) - (size - 1) / 2
        curves.append(np.exp(-(distance**2) / (2 * (size * SIGMA_SCALE) ** 2)))
    z, y, x = np.ix_(*curves)
    return np.asarray(np.maximum(z * y * x, LOWEST), np.float32)
