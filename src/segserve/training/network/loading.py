"""Putting a file's weights into an encoder: every tensor of it, or none."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import timm
import torch
from safetensors import safe_open
from torch import Tensor, nn

from segserve.errors import BadInputError, by
from segserve.training.network.build import TIMM, library_name, quiet

COLOURS = 3
PREFIXES = ("module.", "backbone.", "model.", "encoder.")
WRAPPERS = ("state_dict", "model_state_dict", "model")
# Torchvision's oldest DenseNet files call `norm1` `norm.1`.
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
COUNTERS = "num_batches_tracked"
SHOWN = 4
Shape = tuple[int, ...]


def check(network: nn.Module, encoder: str, channels: int, path: Path) -> None:
    """See that a file holds every weight of an encoder, without loading it where its format allows.

    Args:
        network: built by `build_network`, with or without memory.
        encoder: the name it was built by.
        channels: bands it was built for; its first convolution may be adapted from three.
        path: .safetensors, or a state dict that torch wrote.

    Raises:
        BadInputError: the file cannot be read, or something is missing or of another shape.
    """
    shapes = _safetensors_shapes(path) if _is_safetensors(path) else _shapes(_pickled(path))
    _matched(network, encoder, channels, shapes, path)


def load(network: nn.Module, encoder: str, channels: int, path: Path) -> None:
    """Put a file's weights into the encoder of a network, all or none.

    Args and errors as `check`; the network has memory.
    """
    tensors = _safetensors(path) if _is_safetensors(path) else _pickled(path)
    found = _matched(network, encoder, channels, _shapes(tensors), path)
    from_timm = library_name(encoder).startswith(TIMM)
    own = network.get_submodule("encoder").state_dict()
    with torch.no_grad():
        for name, key in found.items():
            value = tensors[key]
            if value.shape != own[name].shape:
                value = timm.models.adapt_input_conv(channels, value) if from_timm else adapted(value, channels)
            own[name].copy_(value)


def adapted(weight: Tensor, channels: int) -> Tensor:
    """A first convolution for other than three bands, as segmentation-models-pytorch makes it.

    Args:
        weight: (O, 3, h, w).
        channels: C.

    Returns:
        (O, C, h, w): the sum over colours for one band; else the colours in turn, scaled so that the sum of the
        answers stays as it was.
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    order = torch.arange(channels) % COLOURS
    return weight[:, order] * (COLOURS / channels)


def _matched(
    network: nn.Module, encoder: str, channels: int, shapes: Mapping[str, Shape], path: Path
) -> dict[str, str]:
    """Tensor of the encoder -> key of the file."""
    by_name: dict[str, str] = {}
    for there in shapes:
        by_name.setdefault(_plain(there), there)
    found: dict[str, str] = {}
    missing, other = list[str](), list[str]()
    for name, value in network.get_submodule("encoder").state_dict().items():
        key = by_name.get(_plain(name))
        if key is None:
            if not name.endswith(COUNTERS):
                missing.append(name)
        elif _fits(tuple(value.shape), shapes[key], channels):
            found[name] = key
        else:
            other.append(f"{name} is {_size(shapes[key])} instead of {_size(tuple(value.shape))}")
    if missing or other:
        raise BadInputError(_complaint(encoder, path, missing, other))
    return found


def _plain(key: str) -> str:
    """A name without what wrapping adds to it: timm's feature extractors also turn `stages.0` into `stages_0`."""
    while key.startswith(PREFIXES):
        key = key.partition(".")[2]
    return OLD_DENSENET.sub(r"\1\2.", key).replace(".", "_")


def _fits(own: Shape, there: Shape, channels: int) -> bool:
    if own == there:
        return True
    # Only a convolution of the image itself has three inputs in the file and as many as there are bands here.
    return len(own) == len(there) == 4 and there[1] == COLOURS and own == (there[0], channels, *there[2:])


def _complaint(encoder: str, path: Path, missing: list[str], other: list[str]) -> str:
    parts = []
    if missing:
        parts.append(f"{len(missing)} of its tensors are missing ({_few(missing)})")
    if other:
        parts.append(f"{len(other)} have another shape ({_few(other)})")
    return (
        f"The weights file {path.name} is not of the encoder {encoder}: {' and '.join(parts)}. Replace the file by "
        'one that is, or untick "Use pretrained weights" (use_pretrained).'
    )


def _few(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _size(shape: Shape) -> str:
    return by(shape) or "one number"


def _is_safetensors(path: Path) -> bool:
    return path.suffix == ".safetensors"


class _Keyed(Protocol):
    def keys(self) -> list[str]: ...


def _keys(file: _Keyed) -> list[str]:
    return list(file.keys())


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {key: tuple(value.shape) for key, value in tensors.items()}


def _safetensors_shapes(path: Path) -> dict[str, Shape]:
    with _reading(path), safe_open(path, framework="pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in _keys(file)}


def _safetensors(path: Path) -> dict[str, Tensor]:
    with _reading(path), safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in _keys(file)}


def _pickled(path: Path) -> dict[str, Tensor]:
    with _reading(path), quiet():
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError(type(content))
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever reading a file raises into one sentence."""
    try:
        yield
    except Exception as error:
        # A damaged or hostile file makes the readers raise nearly anything.
        raise BadInputError(
            f"The weights file {path.name} cannot be read as weights: it must be .safetensors, or a state dict "
            "saved by torch that holds nothing but tensors."
        ) from error
