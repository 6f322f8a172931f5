"""Which depths of an encoder to keep as pretrained, by how much there is to learn from."""

from __future__ import annotations

from segserve.errors import BadInputError
from segserve.models.catalog.encoders import find_encoder

DEPTHS = 5
DATASET_SIZES = ("small", "medium", "large")
# How many depths, from the image inwards, stay frozen. Tissue weights fit the task already, so fewer need holding.
FROZEN_IMAGENET = {"small": 4, "medium": 3, "large": 2}
FROZEN_HISTOLOGY = {"small": 2, "medium": 1, "large": 0}


def recommendations(size: str, encoder: str | None) -> dict[int, bool]:
    """Depth 0..4 of the encoder -> freeze it.

    Args:
        size: small, medium or large.
        encoder: its name; unknown ones and None count as trained on ImageNet.

    Raises:
        BadInputError: another size.
    """
    if size not in DATASET_SIZES:
        raise BadInputError(f"The data set size is {size[:40]!r}: choose one of {', '.join(DATASET_SIZES)}.")
    entry = find_encoder(encoder or "")
    frozen = (FROZEN_HISTOLOGY if entry and entry.histology else FROZEN_IMAGENET)[size]
    return {depth: depth < frozen for depth in range(DEPTHS)}
