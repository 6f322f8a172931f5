"""The decoders that can be trained, and what each one asks of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from segserve.errors import BadInputError


@dataclass(frozen=True)
class Architecture:
    """One architecture as the catalogue lists it, and its traits.

    Attributes:
        size_divisor: height and width of what the network sees are multiples of this.
        size_least: they are at least this, in pixels.
        pools_to_one: it normalises a map pooled to one pixel, so a batch of a single patch cannot be trained on.
        dilated: it needs an encoder whose last stages can trade stride for dilation.
    """

    name: str
    display_name: str
    description: str
    decoder_channels: tuple[int, ...]
    supports_aux_output: bool = False
    size_divisor: int = 32
    size_least: int = 32
    pools_to_one: bool = False
    dilated: bool = False

    def wire(self) -> dict[str, Any]:
        """The entry as the protocol sends it."""
        return {
            "name": self.name,
            "display_name": self.display_name,
            "description": self.description,
            "decoder_channels": list(self.decoder_channels),
            "supports_aux_output": self.supports_aux_output,
        }


ARCHITECTURES = (
    Architecture(
        "unet",
        "U-Net",
        "Decoder that climbs back to full size over skip connections; the safe first choice for tissue.",
        (256, 128, 64, 32, 16),
    ),
    Architecture(
        "unetplusplus",
        "U-Net++",
        "U-Net with nested, dense skip connections: finer outlines for more time and memory.",
        (256, 128, 64, 32, 16),
        supports_aux_output=True,
    ),
    Architecture(
        "deeplabv3",
        "DeepLab V3",
        "Parallel dilated convolutions look at several neighbourhood sizes at once; smooth, large regions.",
        (256,),
        pools_to_one=True,
        dilated=True,
    ),
    Architecture(
        "deeplabv3plus",
        "DeepLab V3+",
        "DeepLab V3 with a small decoder that sharpens the outlines.",
        (256, 48),
        pools_to_one=True,
        dilated=True,
    ),
    Architecture(
        "fpn",
        "Feature Pyramid Network",
        "Merges the feature maps of every scale; good where objects differ much in size.",
        (256, 256, 256, 256),
    ),
    Architecture(
        "pspnet",
        "PSPNet",
        "Pools the whole image at four scales for context; fast, with coarse outlines.",
        (512,),
    ),
    Architecture(
        "manet",
        "MA-Net",
        "U-Net with attention over positions and channels in the decoder.",
        (256, 128, 64, 32, 16),
    ),
    Architecture(
        "linknet",
        "LinkNet",
        "Adds skip connections instead of stacking them: small and quick.",
        (256, 128, 64, 32),
    ),
    Architecture(
        "pan",
        "Pyramid Attention Network",
        "Pyramid attention on the deepest features guides the finer ones; needs patches of 128 pixels or more.",
        (32,),
        size_least=128,
        pools_to_one=True,
        dilated=True,
    ),
)
ALIASES = {"unet++": "unetplusplus", "deeplabv3+": "deeplabv3plus"}
BY_NAME = {entry.name: entry for entry in ARCHITECTURES}


def find_architecture(name: str) -> Architecture | None:
    """The architecture that goes by this name or alias, in any case of letters; None if there is none."""
    key = name.strip().lower()
    return BY_NAME.get(ALIASES.get(key, key))


def architecture(name: str) -> Architecture:
    """The architecture that goes by this name or alias.

    Raises:
        BadInputError: there is none; the message lists those there are.
    """
    found = find_architecture(name)
    if found is None:
        raise BadInputError(f"There is no architecture {name[:80]!r}: choose one of {', '.join(BY_NAME)}.")
    return found


def canonical_architecture(name: str) -> str:
    """The name under which an architecture is stored: `canonical_architecture("UNet++") == "unetplusplus"`.

    Raises:
        BadInputError: as `architecture`.
    """
    return architecture(name).name
