"""A network's layers as groups that can be kept or retrained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from segserve.models.catalog.encoders import find_encoder
from segserve.training.network.depth import DEEPEST, parameter_depths
from segserve.training.network.families import Start, known_groups

ENCODER = "encoder"
DECODER_DEPTH, HEAD_DEPTH = DEEPEST + 1, DEEPEST + 2
# Depths that hold edges, colours and textures, which differ little from one kind of image to the next.
GENERAL_DEPTHS = 3
WHAT_IS_LEARNT = (
    "edges, colours and simple gradients",
    "fine textures and small dots",
    "larger textures and simple shapes",
    "parts of objects",
    "whole objects and their surroundings",
)
STAGE_LABELS = tuple(f"Stage {depth} (1/{2 ** (depth + 1)} size)" for depth in range(DEEPEST + 1))


@dataclass(frozen=True)
class LayerGroup:
    """Layers that are frozen together.

    Attributes:
        depth: 0 nearest to the image to 4 for the encoder, 5 the decoder, 6 the head.
        modules: paths of the modules that own the group's parameters.
    """

    name: str
    display_name: str
    depth: int
    is_encoder: bool
    recommended_freeze: bool
    description: str
    modules: tuple[str, ...]
    param_count: int

    def wire(self) -> dict[str, Any]:
        """The entry as the protocol sends it."""
        return {
            "name": self.name,
            "display_name": self.display_name,
            "param_count": self.param_count,
            "is_encoder": self.is_encoder,
            "depth": self.depth,
            "recommended_freeze": self.recommended_freeze,
            "description": self.description,
        }


def layer_groups(network: nn.Module, encoder: str) -> list[LayerGroup]:
    """The groups from the image to the output; their counts add up to the network's parameters.

    Args:
        network: built by `build_network`, with or without memory.
        encoder: the name it was built by.
    """
    owned = owners(network)
    inner = [path.removeprefix(f"{ENCODER}.") for path in owned if path.startswith(f"{ENCODER}.") or path == ENCODER]
    starts = known_groups(network.get_submodule(ENCODER))
    if starts is None:
        starts = [Start(f"stage{depth}", STAGE_LABELS[depth], ()) for depth in range(DEEPEST + 1)]
        depths = _depths_by_influence(network.get_submodule(ENCODER), encoder, inner)
    else:
        depths = _depths_by_start(starts, inner)
    groups = [_encoder_group(start, depth, depths, owned, encoder) for depth, start in enumerate(starts)]
    groups.append(_rest("decoder", "Decoder (all layers)", DECODER_DEPTH, owned, "Joins the encoder's feature maps."))
    groups.append(_rest("segmentation_head", "Segmentation Head", HEAD_DEPTH, owned, "Turns features into classes."))
    return [group for group in groups if group.param_count]


def owners(network: nn.Module) -> dict[str, int]:
    """Path of each module that has parameters of its own -> how many numbers they are; shared ones count once."""
    seen: set[int] = set()
    counts = {}
    for path, module in network.named_modules():
        own = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in seen]
        seen.update(id(parameter) for parameter in own)
        if own:
            counts[path] = sum(parameter.numel() for parameter in own)
    return counts


def _depths_by_start(starts: list[Start], paths: list[str]) -> dict[str, int]:
    depth, depths = 0, {}
    for path in paths:
        depth = next((number for number, start in enumerate(starts) if start.begins(path)), depth)
        depths[path] = depth
    return depths


def _depths_by_influence(module: nn.Module, encoder: str, paths: list[str]) -> dict[str, int]:
    by_parameter = parameter_depths(encoder)
    depth, depths = 0, {}
    for path in paths:
        inside = module if path == ENCODER else module.get_submodule(path)
        prefix = "" if path == ENCODER else f"{path}."
        known = [by_parameter.get(prefix + name) for name, _ in inside.named_parameters(recurse=False)]
        depth = min((found for found in known if found is not None), default=depth)
        depths[path] = depth
    return depths


def _encoder_group(start: Start, depth: int, depths: dict[str, int], owned: dict[str, int], encoder: str) -> LayerGroup:
    paths = [path if path == ENCODER else f"{ENCODER}.{path}" for path, at in depths.items() if at == depth]
    entry = find_encoder(encoder)
    source = "tissue images" if entry and entry.histology else "ImageNet photographs"
    general = depth < GENERAL_DEPTHS
    advice = "worth keeping" if general else "worth retraining unless there is little data"
    return LayerGroup(
        name=f"{ENCODER}.{start.name}",
        display_name=f"Encoder: {start.label}",
        depth=depth,
        is_encoder=True,
        recommended_freeze=general,
        description=f"Sees {WHAT_IS_LEARNT[depth]}; pretrained weights learnt it from {source} and are {advice}.",
        modules=tuple(paths),
        param_count=_count(paths, owned),
    )


def _rest(name: str, display: str, depth: int, owned: dict[str, int], description: str) -> LayerGroup:
    paths = [path for path in owned if path == name or path.startswith(f"{name}.")]
    text = f"{description} It has no pretrained weights, so it is always worth training."
    return LayerGroup(name, display, depth, False, False, text, tuple(paths), _count(paths, owned))


def _count(paths: Iterable[str], owned: dict[str, int]) -> int:
    return sum(owned[path] for path in paths)
