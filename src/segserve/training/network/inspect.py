"""Questions about networks, for a helper process: JSON in, JSON out. Nothing here takes memory for weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from segmentation_models_pytorch.encoders import encoders as smp_encoders
from torch import nn

from segserve.errors import BadInputError
from segserve.models.catalog import ARCHITECTURES, find_encoder
from segserve.models.catalog import ENCODERS as LISTED
from segserve.training.network.build import TIMM, library_name, quiet
from segserve.training.network.freeze import check_something_left, resolve
from segserve.training.network.groups import layer_groups
from segserve.training.network.loading import check
from segserve.training.network.possible import outline
from segserve.training.network.survey import millions, sizes
from segserve.training.network.weights import NOT_STATED, locate

Body = dict[str, Any]
# Encoders of a newer library than the one that was surveyed are measured for so long, in seconds.
MEASURING = 30.0


def layers(body: Body) -> list[Body]:
    """The layer groups of `architecture`, `encoder`, `num_channels` and `num_classes`.

    Raises:
        BadInputError: as `outline`.
    """
    network = _outline(body)
    return [group.wire() for group in layer_groups(network, body["encoder"])]


def all_encoders(_body: Body) -> list[Body]:
    """Every encoder that can be trained: the catalogue's first, then smp's others, then timm's others."""
    others = {name: size for name, size in sizes(MEASURING).items() if find_encoder(name) is None}
    return [entry.wire() for entry in LISTED] + [_wire(name, size) for name, size in others.items()]


def all_architectures(_body: Body) -> list[Body]:
    """Every architecture that can be trained."""
    return [entry.wire() for entry in ARCHITECTURES]


def encoder(body: Body) -> Body:
    """One encoder by `name`, listed in the catalogue or not.

    Raises:
        BadInputError: there is none of this name, or none that can be trained.
    """
    name = str(body["name"])
    entry = find_encoder(name)
    if entry:
        return entry.wire()
    inner = library_name(name)
    return {**_wire(inner, millions(inner)), "name": name}


def combinations(body: Body) -> Body:
    """Whether `architecture` goes with `encoder`: `{"possible": bool, "reason": str | null}`."""
    try:
        _outline(body)
    except BadInputError as error:
        return {"possible": False, "reason": error.message}
    return {"possible": True, "reason": None}


def check_network(body: Body) -> Body:
    """Everything that can be known of a network before a training starts.

    Args:
        body: `architecture`, `encoder`, `num_channels`, `num_classes`; `frozen_layers` (names or null),
            `use_pretrained` and `weights_dir` (text or null).

    Returns:
        `parameters` (how many), `licence` and `weights` (a `WeightsSource` on the wire), both null without pretrained
        weights.

    Raises:
        BadInputError: the network cannot be built, a layer is unknown, all are frozen, or the weights are out of reach.
    """
    network = _outline(body)
    name = body["encoder"]
    check_something_left(network, resolve(network, name, body.get("frozen_layers") or []))
    answer: Body = {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "licence": None,
        "weights": None,
    }
    if body.get("use_pretrained"):
        folder = body.get("weights_dir")
        source = locate(name, Path(folder) if folder else None, ask_hub=True)
        if source.path is not None:
            check(network, name, body["num_channels"], source.path)
        answer.update(licence=source.licence, weights=source.to_wire())
    return answer


def _outline(body: Body) -> nn.Module:
    return outline(body["architecture"], body["encoder"], body.get("num_channels", 3), body.get("num_classes", 2))


def _wire(name: str, size: float) -> Body:
    """An encoder that the catalogue does not list, in its form."""
    if name.startswith(TIMM):
        inner = name.removeprefix(TIMM)
        family = timm.models.model_entrypoint(inner).__module__.rpartition(".")[2]
        with quiet():
            config = timm.models.get_pretrained_cfg(inner)
        licence = (config and config.license) or NOT_STATED
        weights = [config.tag or "default"] if config and config.hf_hub_id else []
    else:
        family = smp_encoders[name]["encoder"].__module__.rpartition(".")[2]
        licence = NOT_STATED
        weights = list(smp_encoders[name]["pretrained_settings"])
    return {
        "name": name,
        "display_name": name,
        "family": family,
        "params_millions": size,
        "pretrained_weights": weights,
        "license": licence,
        "recommended_for": [],
    }
