"""What an MMEngine config describes: the network is the model's backbone, everything else is for training."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from segserve.engines.base import TorchNetwork
from segserve.errors import BadInputError
from segserve.models.formats.checkpoint import read_state_dict
from segserve.models.formats.fitting import fit
from segserve.models.formats.mmengine_config import failing, run_config
from segserve.models.formats.one_output import OneOutput
from segserve.models.formats.opened import Opened
from segserve.models.metadata import ModelMetadata, read_metadata

# Segserve's name for a setting, and where configs keep it: at the top level or in the model, the first that is there.
NAMES = {
    "window_level": ("wl", "window_level"),
    "window_width": ("ww", "window_width"),
    "binary_segment_threshold": ("binary_segment_threshold",),
}
STRUCTURES = {"inference_config": ("inference_config",), "labels": ("labels", "classes")}
EXPECTED = "the network is model = dict(backbone=dict(type=...))"
FREE = (None,) * 5


def open_model(config: Path, checkpoint: Path, *, strict: bool, trusted: Sequence[Path]) -> Opened:
    """See `open_mmengine`."""
    settings, files = run_config(config, trusted)
    real = files[0]
    network = _backbone(settings, config, real)
    warnings = fit(network, read_state_dict(checkpoint), strict=strict)
    with failing(config, real):
        metadata = _metadata(settings)
        classes = _first(settings, ("num_classes",))
    module = OneOutput(network.float().eval().requires_grad_(requires_grad=False)).eval()
    return Opened(
        network=TorchNetwork(module),
        shape=FREE,
        described="not stated in the config",
        metadata=replace(metadata, warnings=[*metadata.warnings, *warnings]),
        files=[*files, checkpoint, *_source(network)],
        classes=classes if isinstance(classes, int) and classes > 0 else None,
    )


def _source(network: torch.nn.Module) -> list[Path]:
    """The file that the network's class is written in: another version of its library is another network."""
    try:
        return [Path(inspect.getfile(type(network)))]
    except (TypeError, OSError):
        return []


def _backbone(settings: Config, config: Path, real: Path) -> torch.nn.Module:
    with failing(config, real):
        model = settings.get("model")
        backbone = model.get("backbone") if isinstance(model, Mapping) else None
        if not isinstance(backbone, Mapping) or "type" not in backbone:
            lacking = "model" if not isinstance(model, Mapping) else "model.backbone"
            raise BadInputError(f"The config {config.name} has no {lacking}: {EXPECTED}.")
        with MODELS.switch_scope_and_registry(settings.get("default_scope")) as registry:
            network = registry.build(backbone)
    if not isinstance(network, torch.nn.Module):
        raise BadInputError(f"The config {config.name} has no network as its model.backbone: {EXPECTED}.")
    return network


def _metadata(settings: Config) -> ModelMetadata:
    texts = {key: str(value) for key, names in NAMES.items() if (value := _first(settings, names)) is not None}
    for key, names in STRUCTURES.items():
        if (value := _first(settings, names)) is not None:
            # ITKIT's own class for it has a default for every key: those say nothing about the model.
            plain = value.model_dump(exclude_unset=True) if hasattr(value, "model_dump") else value
            texts[key] = json.dumps(plain, default=str)
    return read_metadata(texts)


def _first(settings: Config, names: Sequence[str]) -> Any:  # noqa: ANN401  # whatever the config says
    places = (settings, settings.model)
    return next((found for place in places for name in names if (found := place.get(name)) is not None), None)
