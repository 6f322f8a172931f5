"""Which patches are trained on and which are held out."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]  # (N, K): labelled pixels of each patch and class


@dataclass(frozen=True)
class Split:
    """Numbers of the patches on each side, ascending, and what the user should know of it."""

    train: list[int]
    validation: list[int]
    warnings: list[str] = field(default_factory=list)


def split_patches(train: int, validation: int, counts: Counts, fraction: float, seed: int) -> Split:
    """The folders' own split, or where `validation/` is empty a part of the training patches.

    Args:
        train: how many patches `train/` holds; they are numbered first.
        validation: how many `validation/` holds.
        counts: (train + validation, K) labelled pixels.
        fraction: of the training patches that is held out.
        seed: of the draw.
    """
    if validation:
        return Split(list(range(train)), list(range(train, train + validation)))
    if train == 1:
        return Split([0], [0], ["There is one patch only: it is trained and validated on, so the scores flatter."])
    held = _hold_out(counts[:train], fraction, seed)
    return Split(
        [index for index in range(train) if index not in held],
        sorted(held),
        [f"There is nothing in validation/: {len(held)} of the {train} training patches are held out for it."],
    )


def _hold_out(counts: Counts, fraction: float, seed: int) -> set[int]:
    """Patches to validate on: of every class at least one stays, and as many classes as can be are among them."""
    present = counts > 0
    total = len(present)
    wanted = min(max(round(fraction * total), 1), total - 1)
    order = np.random.default_rng(seed % 2**64).permutation(total)
    left = present.sum(axis=0)
    held: list[int] = []
    covered = np.zeros(present.shape[1], np.bool_)
    free = np.ones(total, np.bool_)
    while len(held) < wanted:
        rest = order[free[order]]
        keeps = ((left - present[rest] >= 1) | (left == 0)).all(axis=1)
        if not keeps.any() and held:
            break
        # the first of those that keep every class and bring the most new ones; a patch without labels brings least
        gain = (present[rest] & ~covered).sum(axis=1) * 2 + present[rest].any(axis=1)
        lost = (left - present[rest] < (left > 0)).sum(axis=1)
        chosen = int(rest[np.lexsort((-gain, lost))[0]])
        held.append(chosen)
        free[chosen] = False
        left = left - present[chosen]
        covered |= present[chosen]
    return set(held)
