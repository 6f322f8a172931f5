"""The patches of a training, decoded once and kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segserve.devices import usable_cores
from segserve.tiles.io import read_image, read_mask
from segserve.training.data.check import DataRequest, Summary, open_folder
from segserve.training.data.layout import Pair
from segserve.training.data.rules import MAX_PATCH_PIXELS, Rules, check_context
from segserve.training.data.store import ArrayStore

FILE_NAME = "patches.bin"
Progress = Callable[[int, int], None]
Image = NDArray[Any]  # (H, W, C) uint8, uint16 or float32
Mask = NDArray[np.uint8]  # (H, W), 255 where unlabelled
Decoded = tuple[Image, Mask, NDArray[np.int64]]  # with the labelled pixels of each class


@dataclass(frozen=True)
class Patches:
    """One side of a data set, train or validation.

    Attributes:
        images: (H, W, C) each, uint8, uint16 or float32 as they came; C is 2 x bands with context.
        masks: (H, W) uint8 each: class numbers, 255 where unlabelled.
        names: below the training folder.
    """

    images: list[Image]
    masks: list[Mask]
    names: list[str]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class DataSet:
    """All that a training needs of its data.

    Attributes:
        train, validation: the two sides.
        summary: figures and warnings, from every file.
        nbytes: of all images and masks.
        in_memory: bytes of those that lie in memory; the rest is mapped from a file.
    """

    train: Patches
    validation: Patches
    summary: Summary
    nbytes: int
    in_memory: int


def load(request: DataRequest, scratch: Path, *, memory_bound: int, progress: Progress | None = None) -> DataSet:
    """Decode every patch, checking all that can be checked.

    Args:
        request: what the data must fit.
        scratch: an existing folder for the file of what does not fit in memory; it must outlive the data set.
        memory_bound: bytes of decoded patches that may stay in memory.
        progress: called with how many patches of how many are done.

    Raises:
        BadInputError: the data cannot be trained on; names the file and the value.
        DiskFullError: `scratch` has no room.
    """
    opened = open_folder(request)
    pairs = opened.pairs
    store = ArrayStore(scratch / FILE_NAME, memory_bound)
    counts, sizes = [], []
    with closing(store):
        decoded = _in_order(pairs, lambda pair: _decode(pair, opened.rules, context=request.has_context))
        for done, (image, mask, count) in enumerate(decoded, 1):
            store.add(image)
            store.add(mask)
            counts.append(count)
            sizes.append((mask.shape[0], mask.shape[1]))
            if progress is not None:
                progress(done, len(pairs))
    split, summary = opened.conclude(counts, sizes)
    arrays = store.arrays()

    def side(numbers: list[int]) -> Patches:
        return Patches(
            [arrays[2 * number] for number in numbers],
            [arrays[2 * number + 1] for number in numbers],
            [pairs[number].name for number in numbers],
        )

    return DataSet(side(split.train), side(split.validation), summary, store.nbytes, store.in_memory)


def _decode(pair: Pair, rules: Rules, *, context: bool) -> Decoded:
    image = _bands(pair.image, pair.name, rules)
    mask = read_mask(pair.mask, name=pair.mask_name, max_pixels=MAX_PATCH_PIXELS)
    count = rules.check_mask(mask, (image.shape[0], image.shape[1]), pair.mask_name)
    if context:
        wider = image if pair.context is None else _bands(pair.context, pair.context_name, rules)
        check_context(wider.shape, (image.shape[0], image.shape[1]), pair.context_name)
        image = np.concatenate([image, wider], axis=2)
    return image, rules.canonical(mask), count


def _bands(path: Path, name: str, rules: Rules) -> Image:
    image = read_image(path, name=name, max_pixels=MAX_PATCH_PIXELS)
    chosen = rules.bands(image.shape[2], name)
    return image if chosen is None else np.ascontiguousarray(image[..., chosen])


def _in_order(items: Sequence[Pair], work: Callable[[Pair], Decoded]) -> Iterator[Decoded]:
    """`map` over threads that never runs far ahead of who takes the results, so that few wait in memory."""
    threads = min(8, usable_cores())
    with ThreadPoolExecutor(threads, "decode") as pool:
        waiting: deque[Future[Decoded]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
