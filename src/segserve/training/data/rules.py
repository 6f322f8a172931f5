"""When an image and its mask fit the request; the same sentences on arrival and before the first epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segserve.errors import BadInputError, by
from segserve.training.data.config import NAME, DataConfig
from segserve.training.data.request import DataRequest
from segserve.training.spec import MOST_CLASSES, UNLABELLED

MAX_PATCH_PIXELS = 2**26  # no network trains on more at once
VALUES = 256


@dataclass(frozen=True)
class Rules:
    """What every patch must fit.

    Attributes:
        classes: their names.
        channels: bands the network sees of an image.
        unlabeled: the mask value of pixels without a label.
        band_names: of the bands in the files, if config.json tells.
        wanted: names of the bands to pick, if the request tells.
    """

    classes: Sequence[str]
    channels: int
    unlabeled: int
    band_names: Sequence[str] | None
    wanted: Sequence[str] | None

    def bands(self, found: int, name: str) -> list[int] | None:
        """Which of the `found` bands of an image to keep, in order; None for all.

        Raises:
            BadInputError: no rule says which; with both numbers.
        """
        named = self._named_bands(found)
        if named is not None:
            return None if named == list(range(found)) else named
        if found == self.channels:
            return None
        if found == 4 and self.channels == 3:  # an alpha band
            return [0, 1, 2]
        raise BadInputError(
            f"{name} has {found} channel{'s' * (found != 1)} and the request says {self.channels} (num_channels): "
            "select as many channels as the patches were exported with, or export them again."
        )

    def _named_bands(self, found: int) -> list[int] | None:
        names, wanted = self.band_names, self.wanted
        if not names or not wanted or len(names) != found or len(wanted) != self.channels:
            return None
        if len(set(names)) != len(names) or len(set(wanted)) != len(wanted) or not set(wanted) <= set(names):
            return None
        return [names.index(band) for band in wanted]

    def check_mask(self, mask: NDArray[np.uint8], image_size: tuple[int, int], name: str) -> NDArray[np.int64]:
        """Check a mask against its image's size and the classes.

        Returns:
            (K,) how many pixels each class has.

        Raises:
            BadInputError: it has another size, or a value that is no class.
        """
        if mask.shape != image_size:
            raise BadInputError(
                f"{name} has {by(mask.shape)} pixels and its image {by(image_size)}: they must be alike; export again."
            )
        counts = np.bincount(mask.ravel(), minlength=VALUES)
        counts[self.unlabeled] = 0
        strange = np.flatnonzero(counts[len(self.classes) :])
        if len(strange):
            raise BadInputError(
                f"{name} holds the value {strange[0] + len(self.classes)}, but there are {len(self.classes)} classes "
                f"(0 to {len(self.classes) - 1}; {self.unlabeled} is unlabelled): export again with these classes."
            )
        return np.asarray(counts[: len(self.classes)], np.int64)

    def canonical(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The checked mask with 255 where it is unlabelled."""
        if self.unlabeled != UNLABELLED:
            mask[mask == self.unlabeled] = UNLABELLED
        return mask


def check_context(shape: tuple[int, ...], image_size: tuple[int, int], name: str) -> None:
    """Refuse a wider view that is not of its patch's size in pixels."""
    if shape[:2] != image_size:
        raise BadInputError(
            f"{name} has {by(shape[:2])} pixels and its patch {by(image_size)}: they must be alike; export again."
        )


def make_rules(request: DataRequest, config: DataConfig) -> Rules:
    """What every patch must fit, from the request and `config.json`.

    Raises:
        BadInputError: the two contradict each other.
    """
    count = len(request.classes)
    if not 2 <= count <= MOST_CLASSES:
        raise BadInputError(f"The request names {count} classes: 2 to {MOST_CLASSES} can be trained.")
    if config.classes is not None and len(config.classes) != count:
        raise BadInputError(
            f"The request names {count} classes and {NAME} {len(config.classes)}: export the patches again with the "
            "classes to be trained."
        )
    if config.unlabeled_index < count:
        raise BadInputError(
            f"unlabeled_index in {NAME} is {config.unlabeled_index}, which is also the number of the class "
            f"{request.classes[config.unlabeled_index]}: use 255."
        )
    return Rules(
        request.classes, request.num_channels, config.unlabeled_index, config.channel_names, request.channel_names
    )
