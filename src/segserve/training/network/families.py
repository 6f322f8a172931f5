"""The encoders whose groups the QuPath protocol names: where each group begins."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from segmentation_models_pytorch.encoders.densenet import DenseNetEncoder
from segmentation_models_pytorch.encoders.efficientnet import EfficientNetEncoder
from segmentation_models_pytorch.encoders.mobilenet import MobileNetV2Encoder
from segmentation_models_pytorch.encoders.resnet import ResNetEncoder
from segmentation_models_pytorch.encoders.senet import SENetEncoder
from segmentation_models_pytorch.encoders.vgg import VGGEncoder
from torch import nn


@dataclass(frozen=True)
class Start:
    """A group of an encoder and the modules it may begin at; it reaches up to where the next one begins."""

    name: str
    label: str
    modules: tuple[str, ...]

    def begins(self, path: str) -> bool:
        """True if this module of the encoder is where the group begins."""
        return any(path == module or path.startswith(f"{module}.") for module in self.modules)


def known_groups(encoder: nn.Module) -> list[Start] | None:
    """The groups of depth 0..4 in order; None for an encoder of another family."""
    for kind, groups in FAMILIES:
        if isinstance(encoder, kind):
            return groups
    return _vgg(encoder.features) if isinstance(encoder, VGGEncoder) else None


def _blocks() -> list[Start]:
    return [
        Start(f"layer{index}", f"Block {index} ({32 * 2**index} filters)", (f"layer{index}",)) for index in range(1, 5)
    ]


def _slices(prefix: str, label: str, cuts: list[int]) -> list[Start]:
    groups = [Start(f"{prefix}[{a}:{b}]", f"{label} {a}-{b - 1}", (f"{prefix}.{a}",)) for a, b in pairwise(cuts)]
    return [*groups, Start(f"{prefix}[{cuts[-1]}:]", f"{label} {cuts[-1]}+", (f"{prefix}.{cuts[-1]}",))]


def _vgg(features: nn.Sequential) -> list[Start]:
    """A group ends with its pooling; the last one takes what remains."""
    pools = [index + 1 for index, module in enumerate(features) if isinstance(module, nn.MaxPool2d)]
    return _slices("features", "Layers", [0, *pools[:4]])


FAMILIES: list[tuple[type, list[Start]]] = [
    (ResNetEncoder, [Start("conv1", "Initial Conv", ("conv1",)), *_blocks()]),
    (SENetEncoder, [Start("conv1", "Initial Conv", ("layer0",)), *_blocks()]),
    (
        EfficientNetEncoder,
        [
            Start("_conv_stem", "Stem Conv", ("_conv_stem",)),
            *_slices("_blocks", "Blocks", [0, 4, 10, 18])[:3],
            # Some have fewer than 18 blocks: there the last group is only what follows them.
            Start("_blocks[18:]", "Blocks 18+", ("_blocks.18", "_conv_head")),
        ],
    ),
    (
        DenseNetEncoder,
        [
            Start("features.conv0", "Initial Conv", ("features.conv0",)),
            *(
                Start(f"features.denseblock{index}", f"Dense Block {index}", (f"features.denseblock{index}",))
                for index in range(1, 5)
            ),
        ],
    ),
    (MobileNetV2Encoder, _slices("features", "Layers", [0, 2, 5, 9, 14])),
]
