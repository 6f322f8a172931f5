"""What a finished model says of itself: our own schema and the one QuPath's model manager reads, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from segserve.models.catalog.architectures import Architecture
from segserve.training.events import finite
from segserve.training.known import Known
from segserve.training.spec import InputConfig, TrainingSpec

PALETTE = ("#808080", "#E6194B", "#3CB44B", "#4363D8", "#F58231", "#911EB4", "#42D4F4", "#F032E6", "#BFEF45", "#FABED4")


def describe(
    spec: TrainingSpec,
    architecture: Architecture,
    known: Known,
    *,
    best: Mapping[str, Any],
    epochs_run: int,
    warnings: Sequence[str],
) -> dict[str, Any]:
    """The content of `metadata.json`, all of it finite, without the id that publishing gives.

    Args:
        spec: the training.
        architecture: of the network.
        known: of its data.
        best: `epoch`, `loss`, `accuracy` and `mean_iou` of the epoch whose weights are kept.
        epochs_run: how many there were.
        warnings: what a user of the model should know.
    """
    asked = spec.architecture
    described: dict[str, Any] = {
        "name": f"{asked.type.upper()} Classifier",
        "description": f"{architecture.display_name} on {asked.backbone}, trained by Segserve",
        "version": "1.0",
        "createdAt": datetime.now().replace(microsecond=0).isoformat(),  # noqa: DTZ005  # QuPath reads a local time
        "architecture": _architecture(spec),
        **_inputs(spec.input_config),
        "classes": [
            {"index": index, "name": name, "color": known.colours[index] or PALETTE[index % len(PALETTE)]}
            for index, name in enumerate(spec.classes)
        ],
        "size_divisor": architecture.size_divisor,
        "size_least": architecture.size_least,
        "training": {
            "image_name": known.source,
            "epochs": epochs_run,
            **_best(best),
            "patches": known.patches,
            "labelled_pixels": known.pixels,
            "settings": spec.training.model_dump(mode="json"),
            "warnings": list(warnings),
        },
    }
    if known.licence is not None:
        described["license"] = known.licence
    if known.stats is not None:
        described["normalization_stats"] = [entry.to_wire() for entry in known.stats]
    return described


def _architecture(spec: TrainingSpec) -> dict[str, Any]:
    asked = spec.architecture
    height, width = asked.input_size
    return {
        "type": asked.type,
        "backbone": asked.backbone,
        "input_size": [height, width],
        "input_height": height,
        "input_width": width,
        "input_channels": spec.input_config.num_channels,
        "downsample": asked.downsample,
        "use_pretrained": asked.use_pretrained,
        "frozen_layers": asked.frozen_layers,
        "context_scale": asked.context_scale,
    }


def _inputs(inputs: InputConfig) -> dict[str, Any]:
    """The images, in our words and in those of QuPath's model manager."""
    names = inputs.channel_names or [f"Channel {number + 1}" for number in range(inputs.num_channels)]
    return {
        "input_config": {
            "num_channels": inputs.num_channels,
            "channel_names": names,
            "bit_depth": inputs.bit_depth,
            "normalization": inputs.normalization.model_dump(exclude_none=True),
        },
        "channel_config": {
            "expected_channels": names,
            "normalization_strategy": inputs.normalization.strategy.upper(),
            "bit_depth_trained": inputs.bit_depth,
        },
    }


def _best(best: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "best_epoch": best["epoch"],
        "final_loss": finite(best["loss"]),
        "final_accuracy": finite(best["accuracy"]),
        "final_mean_iou": finite(best["mean_iou"]),
    }
