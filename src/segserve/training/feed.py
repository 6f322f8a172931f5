"""Patches as batches: normalised, padded to what the network takes, stacked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segserve.models.catalog.architectures import Architecture
from segserve.tiles.frame import pad, pad_mask, padded_size
from segserve.tiles.normalize import Normalization, normalize
from segserve.tiles.statistics import ChannelStats
from segserve.training.data.batches import epoch_batches
from segserve.training.data.patches import Patches
from segserve.training.spec import UNLABELLED


@dataclass(frozen=True)
class Feed:
    """One side of the data set, train or validation, made ready for a network of one architecture."""

    patches: Patches
    normalization: Normalization
    stats: Sequence[ChannelStats] | None
    architecture: Architecture

    def plan(self, batch_size: int, *, seed: int, epoch: int, shuffle: bool) -> list[list[int]]:
        """The patch numbers of each batch of an epoch: always the same for the same arguments."""
        sizes = [
            padded_size(mask.shape[0], mask.shape[1], self.architecture.size_divisor, self.architecture.size_least)
            for mask in self.patches.masks
        ]
        return epoch_batches(sizes, batch_size, seed, epoch, shuffle=shuffle)

    def batches(self, plan: Sequence[list[int]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of a plan, the next one being prepared while one is used.

        Yields:
            Images (N, C, H, W) float32 and masks (N, H, W) int64, 255 where unlabelled or padded.
        """
        with ThreadPoolExecutor(1, "feed") as preparer:
            coming = preparer.submit(self._batch, plan[0]) if plan else None
            for following in [*plan[1:], None]:
                if coming is None:
                    return
                batch = coming.result()
                coming = preparer.submit(self._batch, following) if following else None
                yield batch

    def _batch(self, numbers: list[int]) -> tuple[Tensor, Tensor]:
        divisor, least = self.architecture.size_divisor, self.architecture.size_least
        if len(numbers) == 1:
            height, width = self.patches.masks[numbers[0]].shape
            # The deepest map is one pixel, or is pooled to one: batch normalisation of a single value is undefined.
            if self.architecture.pools_to_one or padded_size(height, width, divisor, least) == (divisor, divisor):
                numbers = numbers * 2
        images = [
            pad(normalize(self.patches.images[number], self.normalization, self.stats), divisor, least)
            for number in numbers
        ]
        masks = [pad_mask(self.patches.masks[number], divisor, least, fill=UNLABELLED) for number in numbers]
        stacked = np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))
        return torch.from_numpy(stacked), torch.from_numpy(np.stack(masks).astype(np.int64))
