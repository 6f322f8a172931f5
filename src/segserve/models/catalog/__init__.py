"""What can be trained: encoders and architectures as the QuPath protocol lists them. Needs no torch."""

from __future__ import annotations

from segserve.models.catalog.architectures import (
    ARCHITECTURES,
    Architecture,
    canonical_architecture,
    find_architecture,
)
from segserve.models.catalog.encoders import ENCODERS, Encoder, find_encoder
from segserve.models.catalog.freezing import DATASET_SIZES, recommendations

__all__ = [
    "ARCHITECTURES",
    "DATASET_SIZES",
    "ENCODERS",
    "Architecture",
    "Encoder",
    "canonical_architecture",
    "find_architecture",
    "find_encoder",
    "recommendations",
]
