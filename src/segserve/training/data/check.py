"""A training folder looked through before a training is accepted: every fault that shows without decoding images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segserve.errors import BadInputError
from segserve.tiles.header import check_size
from segserve.tiles.io import read_header, read_mask
from segserve.training.data.config import DataConfig, read_config
from segserve.training.data.layout import Layout, Pair, find
from segserve.training.data.request import DataRequest, data_folder
from segserve.training.data.rules import MAX_PATCH_PIXELS, Rules, check_context, make_rules
from segserve.training.data.split import Split, split_patches
from segserve.training.data.summary import Size, Summary, summarize

__all__ = ["DataRequest", "Opened", "Summary", "open_folder", "quick_check"]


@dataclass(frozen=True)
class Opened:
    """A training folder whose list of files and `config.json` make sense."""

    request: DataRequest
    config: DataConfig
    layout: Layout
    rules: Rules

    @property
    def pairs(self) -> list[Pair]:
        """All patches, those of `train/` first."""
        return self.layout.train + self.layout.validation

    def conclude(self, counts: Sequence[NDArray[np.int64]], sizes: Sequence[Size]) -> tuple[Split, Summary]:
        """The two sides and the figures, from the patches looked at, which are the first of `pairs`.

        Args:
            counts: (K,) labelled pixels of each patch looked at.
            sizes: of the same patches.

        Raises:
            BadInputError: all were looked at, and fewer than two classes have pixels to train on.
        """
        total = len(self.pairs)
        table = np.zeros((total, len(self.request.classes)), np.int64)
        for row, count in zip(table, counts, strict=False):
            row[:] = count
        sides = len(self.layout.train), len(self.layout.validation)
        split = split_patches(*sides, table, self.request.validation_split, self.request.seed)
        complete = len(counts) == total
        return split, summarize(
            self.request, self.config, split, table, sizes, self.layout.warnings, complete=complete
        )  # fmt: skip


def open_folder(request: DataRequest) -> Opened:
    """Find a training folder's files.

    Raises:
        BadInputError: the folder, its `config.json` or its list of files is of no use.
    """
    folder = data_folder(request)
    try:
        config = read_config(folder)
        return Opened(request, config, find(folder, context=request.has_context), make_rules(request, config))
    except PermissionError as error:
        raise BadInputError(
            f"The server cannot look into data_path ({error.strerror}): let it read the folder."
        ) from error


def quick_check(request: DataRequest, seconds: float) -> Summary:
    """Look through a training folder: every image's header and every mask, for as long as there is time.

    Args:
        request: what the data must fit.
        seconds: after which it ends with what is known by then.

    Raises:
        BadInputError: the data cannot be trained on; names the file and the value.
    """
    end = time.monotonic() + seconds
    opened = open_folder(request)
    counts, sizes = [], []
    for pair in opened.pairs:
        if time.monotonic() > end:
            break
        size = _check_images(pair, opened.rules)
        mask = read_mask(pair.mask, name=pair.mask_name, max_pixels=MAX_PATCH_PIXELS)
        counts.append(opened.rules.check_mask(mask, size, pair.mask_name))
        sizes.append(size)
    return opened.conclude(counts, sizes)[1]


def _check_images(pair: Pair, rules: Rules) -> Size:
    header = check_size(read_header(pair.image, name=pair.name), pair.name, MAX_PATCH_PIXELS)
    size = header.height, header.width
    rules.bands(header.channels, pair.name)
    if pair.context is not None:
        wider = read_header(pair.context, name=pair.context_name)
        rules.bands(wider.channels, pair.context_name)
        check_context((wider.height, wider.width), size, pair.context_name)
    return size
