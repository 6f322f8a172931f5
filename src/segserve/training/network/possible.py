"""Which architecture goes with which encoder, found out by trying without memory."""

from __future__ import annotations

import torch
from torch import nn

from segserve.errors import BadInputError
from segserve.models.catalog.architectures import Architecture
from segserve.models.catalog.architectures import architecture as find
from segserve.training.network.build import build_encoder, build_network, library_name, quiet, without_memory

DILATION_FREE = "unet, fpn, pspnet or manet"


def outline(architecture: str, encoder: str, channels: int, classes: int) -> nn.Module:
    """The network without numbers, after checking that it can work.

    Raises:
        BadInputError: it cannot; the message says why and what would.
    """
    entry = find(architecture)
    library_name(encoder)
    try:
        with without_memory():
            network = build_network(entry.name, encoder, channels, classes).eval()
        _try(network, entry, channels, classes)
    except BadInputError:
        raise
    except Exception as error:
        # Whatever a library raises while building or running means the same: this pair cannot be trained.
        raise BadInputError(
            f"{entry.display_name} ({entry.name}) cannot be used with the encoder {encoder}: {_reason(entry, encoder)}"
        ) from error
    return network


def impossible(architecture: str, encoder: str, channels: int, classes: int) -> None:
    """Refuse what cannot work, in a second and without memory for weights.

    Raises:
        BadInputError: as `outline`.
    """
    outline(architecture, encoder, channels, classes)


def _try(network: nn.Module, entry: Architecture, channels: int, classes: int) -> None:
    """Run it on two images that are not square, since a square one hides networks with a fixed input size."""
    side = max(entry.size_least, 64)
    shape = (side, side + 32)
    with torch.no_grad(), quiet():
        logits = network(torch.empty(2, channels, *shape, device="meta"))
    if tuple(logits.shape) != (2, classes, *shape):
        raise ValueError(f"logits of {tuple(logits.shape)}")


def _reason(entry: Architecture, encoder: str) -> str:
    try:
        with without_memory():
            alone = build_encoder(encoder).eval()
    except Exception:
        return (
            "this encoder does not yield feature maps at halved sizes, which every architecture here needs. "
            "Choose another encoder, such as resnet34."
        )
    try:
        with torch.no_grad(), quiet():
            maps: list[torch.Tensor] = alone(torch.empty(2, 3, 64, 96, device="meta"))
    except Exception:
        return (
            "this encoder only takes images of the one size it was made for, and patches come in any size. "
            "Choose another encoder, such as resnet34."
        )
    if entry.dilated:
        return (
            "this encoder cannot keep its last feature maps large (dilation), which this architecture needs. "
            f"Use {DILATION_FREE} with it, or a resnet encoder."
        )
    if len(maps) > 1 and maps[1].shape[1] == 0:
        return (
            "this encoder has no feature map at half the image's size, which this architecture needs. "
            "Use unet, fpn, pspnet or manet with it, or a resnet encoder."
        )
    return "their feature maps do not fit together. Use unet with it, or a resnet encoder."
