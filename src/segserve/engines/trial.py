"""Batches to try a network on before any image comes: they look like tissue, not like noise or nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SEED = 0
WAVES = 6
WAVELENGTHS = (6.0, 60.0)
NOISE = 0.02
HOUNSFIELD = (-1000.0, 1000.0)


def trial_batches(shape: tuple[int, ...], *, unit: bool) -> list[NDArray[np.float32]]:
    """Batches as a network would meet them.

    Args:
        shape: (N, C, ...), two or three axes beyond the channels.
        unit: whether values are brought to 0..1 before the network sees them; if not, nobody knows their scale, and
            there is a batch of each usual one.

    Returns:
        float32 batches of `shape`: in 0..1, then, unless `unit`, in Hounsfield units.
    """
    planes = [_tissue(shape[2:], np.random.default_rng(SEED + place)) for place in range(shape[0] * shape[1])]
    batch = np.stack(planes).reshape(shape)
    if unit:
        return [batch]
    low, high = HOUNSFIELD
    return [batch, np.asarray(low + (high - low) * batch, np.float32)]


def _tissue(shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.float32]:
    """Smooth regions with edges between them and a little noise, in 0..1; the darkest is flat, as air is."""
    field = np.zeros(shape, np.float32)
    for _ in range(WAVES):
        direction = random.normal(size=len(shape))
        direction *= 2 * np.pi / (random.uniform(*WAVELENGTHS) * np.linalg.norm(direction))
        phase = sum(np.ix_(*(k * np.arange(n) for k, n in zip(direction, shape, strict=True))))
        field += np.cos(np.asarray(phase + random.uniform(0, 2 * np.pi), np.float32))
    regions = np.digitize(field, [-1.5, 0.0, 1.5]) / 3
    noisy = 0.8 * regions + 0.05 * field / WAVES + random.normal(0, NOISE, shape)
    return np.clip(np.where(regions == 0, 0, noisy), 0, 1).astype(np.float32)
