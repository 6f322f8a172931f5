"""How far two engines' answers to one batch are apart, as probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EXACT_TOLERANCE = 1e-3
REDUCED_TOLERANCE = 0.02
SHARE = 0.995


def probabilities(logits: NDArray[np.float32], activation: str) -> NDArray[np.float32]:
    """What a network says of each voxel or pixel, as probabilities.

    Args:
        logits: float32 (K, ...).
        activation: `softmax` over K, `sigmoid` or `none`.

    Returns:
        float32, the shape of `logits`.
    """
    if activation == "none":
        return logits
    with np.errstate(over="ignore", invalid="ignore"):  # what is not a number is found by whoever compares
        if activation == "sigmoid":
            return np.asarray(1 / (1 + np.exp(-logits)), np.float32)
        powers = np.exp(logits - logits.max(axis=0))
        return np.asarray(powers / powers.sum(axis=0), np.float32)


def differences(ours: NDArray[np.float32], reference: NDArray[np.float32], activation: str) -> NDArray[np.float32]:
    """The largest difference of any class's probability, at each voxel or pixel.

    Args:
        ours: float32 logits (N, K, A, ...).
        reference: likewise, the same shape.
        activation: see `probabilities`.

    Returns:
        float32 (N, A, ...); infinity where only one of the two is a number, 0 where neither is.
    """
    found = np.empty((ours.shape[0], *ours.shape[2:]), np.float32)
    # Plane by plane: whole probabilities would take twice the memory of the scores again.
    for sample, mine, theirs in zip(found, ours, reference, strict=True):
        for plane in range(mine.shape[1]):
            apart = _apart(probabilities(mine[:, plane], activation), probabilities(theirs[:, plane], activation))
            sample[plane] = apart.max(axis=0)
    return found


def _apart(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(invalid="ignore"):
        apart = np.abs(ours - theirs)
    alike = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    return np.asarray(np.where(alike, 0, np.nan_to_num(apart, nan=np.inf)), np.float32)


def error_of(apart: NDArray[np.float32], *, largest: bool) -> float:
    """One figure for all differences: their largest, or what 99.5 % of them are within."""
    return float(apart.max() if largest else np.quantile(apart, SHARE, method="higher"))


def tolerance(*, exact: bool) -> float:
    """The largest `error_of` with which an engine is admitted."""
    return EXACT_TOLERANCE if exact else REDUCED_TOLERANCE
