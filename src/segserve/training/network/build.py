"""Networks by name, with random weights: nothing here asks the network for anything."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.encoders import encoders as smp_encoders
from torch import nn
from torch.nn.modules import module as torch_module

from segserve.errors import BadInputError
from segserve.models.catalog.architectures import architecture as find
from segserve.models.catalog.encoders import find_encoder
from segserve.training.network.pyramid import write_pooling_from_shape

TIMM = "tu-"
# Families that smp once had under `timm-` and now takes from timm itself.
MOVED_TO_TIMM = ("timm-regnet", "timm-res2", "timm-resnest", "timm-mobilenetv3", "timm-gernet")


def build_network(architecture: str, encoder: str, channels: int, classes: int) -> nn.Module:
    """A network of segmentation-models-pytorch with random weights; its tensors are named as smp names them.

    Args:
        architecture: a name or alias of the catalogue.
        encoder: smp's name, a histology name of the catalogue, or timm's with or without `tu-`.
        channels: bands of the image.
        classes: K.

    Returns:
        (N, channels, H, W) float32 -> logits (N, K, H, W).

    Raises:
        BadInputError: unknown architecture or encoder.
    """
    name = find(architecture).name
    inner = library_name(encoder)
    with quiet():
        network: nn.Module = smp.create_model(
            name, encoder_name=inner, encoder_weights=None, in_channels=channels, classes=classes
        )
    if name == "pspnet":
        write_pooling_from_shape(network)
    return network


def build_encoder(encoder: str) -> nn.Module:
    """An encoder of colour images alone, at its full depth and without dilation, with random weights.

    Raises:
        BadInputError: unknown encoder.
    """
    inner = library_name(encoder)
    with quiet():
        alone: nn.Module = smp.encoders.get_encoder(inner, in_channels=3, depth=5, weights=None)
        return alone


def library_name(encoder: str) -> str:
    """The name that smp builds an encoder by.

    Raises:
        BadInputError: unknown; the message names near matches.
    """
    entry = find_encoder(encoder)
    name = entry.base if entry else encoder
    if name in smp_encoders:
        return name
    if name.startswith(MOVED_TO_TIMM):
        name = name.replace("timm-mobilenetv3", "tu-tf_mobilenetv3").replace("timm-", TIMM)
    inner = name.removeprefix(TIMM)
    if inner and timm.is_model(inner) and _has_tag(inner):
        return TIMM + inner
    raise BadInputError(f"There is no encoder {encoder[:80]!r}.{_near(encoder)}")


def _has_tag(name: str) -> bool:
    """A name may end in the tag of its weights, as in `resnet50.a1_in1k`; timm raises for tags it has not."""
    if "." not in name:
        return True
    try:
        return timm.models.get_pretrained_cfg(name, allow_unregistered=False) is not None
    except RuntimeError:
        return False


def _near(encoder: str) -> str:
    known = sorted({*smp_encoders, *timm.list_models()})
    near = difflib.get_close_matches(encoder.removeprefix(TIMM)[:80], known, n=4, cutoff=0.5)
    return f" Did you mean {' or '.join(near)}?" if near else " The catalogue lists the encoders there are."


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' notes to their developers out of the user's log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules made inside have shapes and no numbers: their parameters and buffers live on the meta device.

    Unlike under `torch.device("meta")`, constructors still compute with real numbers, which many of timm's need. It
    holds for every thread, so it is for processes that build one network at a time.
    """
    # Torch's stubs leave out that a hook may return what takes the value's place.
    registries: Any = torch_module
    hooks = [
        registries.register_module_parameter_registration_hook(_parameter_to_meta),
        registries.register_module_buffer_registration_hook(_buffer_to_meta),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _parameter_to_meta(_module: nn.Module, _name: str, value: nn.Parameter | None) -> nn.Parameter | None:
    if value is None or value.is_meta:
        return None
    return nn.Parameter(value.data.to("meta"), requires_grad=value.requires_grad)


def _buffer_to_meta(_module: nn.Module, _name: str, value: torch.Tensor | None) -> torch.Tensor | None:
    return None if value is None or value.is_meta else value.to("meta")
