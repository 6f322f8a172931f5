"""Patches to try a network on before any volume comes: they look like tissue, not like noise or nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SEED = 0
WAVES = 6
WAVELENGTHS = (6.0, 60.0)
NOISE = 0.02
HOUNSFIELD = (-1000.0, 1000.0)


def trial_batches(shape: tuple[int, ...], *, windowed: bool) -> list[NDArray[np.float32]]:
    """Batches as a network would meet them.

    Args:
        shape: (N, 1, Z, Y, X).
        windowed: whether intensities are windowed; if not, nobody knows their scale, and there is a batch of each
            usual one.

    Returns:
        float32 batches of `shape`: in 0..1 as after windowing, then, unless `windowed`, in Hounsfield units.
    """
    unit = np.stack([_tissue(shape[2:], np.random.default_rng(SEED + place))[None] for place in range(shape[0])])
    if windowed:
        return [unit]
    low, high = HOUNSFIELD
    return [unit, np.asarray(low + (high - low) * unit, np.float32)]


def _tissue(shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.float32]:
    """Smooth regions with edges between them and a little noise, (Z, Y, X) in 0..1; the darkest is flat, as air is."""
    field = np.zeros(shape, np.float32)
    for _ in range(WAVES):
        direction = random.normal(size=3)
        direction *= 2 * np.pi / (random.uniform(*WAVELENGTHS) * np.linalg.norm(direction))
        phase = sum(np.ix_(*(k * np.arange(n) for k, n in zip(direction, shape, strict=True))))
        field += np.cos(np.asarray(phase + random.uniform(0, 2 * np.pi), np.float32))
    regions = np.digitize(field, [-1.5, 0.0, 1.5]) / 3
    noisy = 0.8 * regions + 0.05 * field / WAVES + random.normal(0, NOISE, shape)
    return np.clip(np.where(regions == 0, 0, noisy), 0, 1).astype(np.float32)
