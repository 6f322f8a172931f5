"""Which patches make up each batch of an epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def epoch_batches(
    sizes: Sequence[tuple[int, int]], batch_size: int, seed: int, epoch: int, *, shuffle: bool
) -> list[list[int]]:
    """Deal every patch out once, into batches of one padded size each.

    The order is a function of the arguments alone, so a resumed epoch goes on with the batches it had. A single
    patch left over, on which batch normalisation has little to go by, is not a batch unless it is the only one of
    its size or `batch_size` is 1: it takes a partner from the batch before, or joins that where it holds just two.

    Args:
        sizes: (H', W') of each patch.
        batch_size: patches in a batch; one more at most, and that only where it is 2.
        seed: of the order.
        epoch: likewise.
        shuffle: deal in random order; otherwise sizes as they first occur, patches as they come.

    Returns:
        Patch numbers, batch by batch.
    """
    generator = np.random.default_rng([seed % 2**64, epoch])
    order = generator.permutation(len(sizes)) if shuffle else np.arange(len(sizes))
    groups: dict[tuple[int, int], list[int]] = {}
    for number in order.tolist():
        groups.setdefault(sizes[number], []).append(number)
    batches = [batch for group in groups.values() for batch in _cut(group, batch_size)]
    if not shuffle:
        return batches
    return [batches[place] for place in generator.permutation(len(batches))]


def _cut(group: list[int], batch_size: int) -> list[list[int]]:
    batches = [group[at : at + batch_size] for at in range(0, len(group), batch_size)]
    if batch_size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        if batch_size == 2:
            last = batches.pop()
            batches[-1] += last
        else:
            batches[-1].insert(0, batches[-2].pop())
    return batches
