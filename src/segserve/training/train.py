"""One training, start to finished model folder, told as it goes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segserve import devices
from segserve.errors import BadInputError, human_bytes
from segserve.models.catalog.architectures import Architecture, architecture
from segserve.tiles.frame import padded_size
from segserve.tiles.normalize import Normalization
from segserve.tiles.statistics import measure
from segserve.training import device, export, memory, metadata
from segserve.training.data.patches import DataSet, load
from segserve.training.data.request import DataRequest
from segserve.training.events import EpochDone, Event, Finished, Paused, Stage, Started
from segserve.training.feed import Feed
from segserve.training.known import Known
from segserve.training.loop import Loop, Setting
from segserve.training.network import loading, weights
from segserve.training.network.build import build_network
from segserve.training.network.freeze import freeze
from segserve.training.progress import Progress
from segserve.training.spec import TrainingSpec

log = logging.getLogger(__name__)

HISTORY_FILE = "training_history.json"
# A viewer that copies a classifier rewrites metadata.json and keeps only what it knows of it.
KEPT_IN_ONNX = ("architecture", "input_config", "normalization_stats", "size_divisor", "size_least")


@dataclass(frozen=True)
class Order:
    """A training as its process gets it.

    Attributes:
        spec: what is asked.
        model_folder: empty; the finished model goes here.
        scratch: for what does not fit into memory.
        device: `cuda:N`, `mps` or `cpu`.
        weights_dir: where pretrained weights are looked for first.
        data_memory: bytes of decoded patches to keep in memory.
        checkpoint: of an earlier life of this training.
        same_batches: the checkpoint's running epoch can go on where it was.
        pause_asked: whether to stop.
    """

    spec: TrainingSpec
    model_folder: Path
    scratch: Path
    device: str
    weights_dir: Path | None
    data_memory: int
    checkpoint: dict[str, Any] | None
    same_batches: bool
    pause_asked: Callable[[], bool]


def train(order: Order) -> Iterator[Event]:
    """Train.

    Raises:
        BadInputError: the data, the weights or the loss make it impossible, and what to do.
    """
    spec, state = order.spec, order.checkpoint
    torch.set_num_threads(state["threads"] if state else devices.usable_cores())
    torch.use_deterministic_algorithms(True, warn_only=True)
    place = device.choose(order.device, mixed=spec.training.mixed_precision)
    progress = Progress.of(state, same_batches=order.same_batches) if state else Progress()
    kind = architecture(spec.architecture.type)
    yield Stage("weights")
    network, licence = _network(order)
    if progress.best and progress.epoch >= spec.training.epochs:
        known = Known.from_wire(progress.known)
        network.load_state_dict(progress.best["state"])
    else:
        yield Stage("data")
        frozen = freeze(network, spec.architecture.backbone, spec.architecture.frozen_layers)
        data = load(DataRequest.of(spec), order.scratch, memory_bound=_memory_for_data(order))
        normalization = Normalization(**spec.input_config.normalization.model_dump())
        known = _known(progress, data, spec, normalization, licence)
        progress.known = known.to_wire()
        training, validation = (Feed(side, normalization, known.stats, kind) for side in (data.train, data.validation))
        setting = Setting(spec, training, validation, place, frozen, data.summary.class_weights)
        yield Started(place.device, f"{place.info}, {place.precision}", data.summary.warnings)
        _announce(setting, network, data)
        yield Stage("training")
        loop = Loop(setting, network, progress, order.pause_asked)
        for event in loop.run():
            yield event
            if isinstance(event, EpochDone):
                _report(event)
            if isinstance(event, Paused):
                return
    yield Stage("export")
    yield _finish(order, kind, network, progress, known)


def _network(order: Order) -> tuple[nn.Module, str | None]:
    """The network at its start, and the licence of the weights in it, if there are any."""
    spec = order.spec
    asked, channels = spec.architecture, spec.network_channels
    torch.manual_seed(spec.training.seed)
    network = build_network(asked.type, asked.backbone, channels, len(spec.classes))
    if order.checkpoint is not None:  # the weights come from there
        return network, order.checkpoint["known"]["licence"]
    if not asked.use_pretrained:
        return network, None
    source = weights.locate(asked.backbone, order.weights_dir, ask_hub=True)
    log.info("pretrained weights of %s: %s", asked.backbone, source.kind)
    loading.load(network, asked.backbone, channels, weights.fetch(source))
    return network, source.licence


def _memory_for_data(order: Order) -> int:
    return order.data_memory or devices.available_memory() // 3


def _known(
    progress: Progress, data: DataSet, spec: TrainingSpec, normalization: Normalization, licence: str | None
) -> Known:
    """What the model will say of its data. A resumed training keeps the statistics that it began with."""
    if progress.known:
        stats = Known.from_wire(progress.known).stats
    elif normalization.strategy == "fixed_range":
        stats = None
    else:
        stats = measure(data.train.images, normalization, spec.training.seed)
    summary = data.summary
    return Known(
        stats=stats,
        colours=[info.color for info in summary.classes],
        source=", ".join(summary.source_images),
        licence=licence,
        warnings=summary.warnings,
        patches={"train": summary.train, "validation": summary.validation},
        pixels=dict(zip(spec.classes, summary.train_pixels, strict=True)),
    )


def _announce(setting: Setting, network: nn.Module, data: DataSet) -> None:
    """Say in the log what is trained on what, and what memory that will take."""
    spec, summary, place, kind = setting.spec, data.summary, setting.place, setting.train.architecture
    height, width, _ = summary.sizes[0]
    shape = (
        min(spec.training.batch_size, len(data.train)),
        spec.network_channels,
        *padded_size(height, width, kind.size_divisor, kind.size_least),
    )
    needed = memory.estimate(network, shape, place)
    log.info("%s on %s, on %s in %s", spec.architecture.type, spec.architecture.backbone, place.info, place.precision)
    log.info(
        "%d patches to train on, %d to validate; %s decoded, of which %s in memory",
        len(data.train),
        len(data.validation),
        human_bytes(data.nbytes),
        human_bytes(data.in_memory),
    )
    log.info("estimated memory: %s for the network at batch size %d", human_bytes(needed), shape[0])
    free = devices.available_memory() if place.kind != "cuda" else torch.cuda.mem_get_info(place.device)[0]
    if needed > free:
        log.warning("only %s is free: lower the batch size if the training fails", human_bytes(free))
    for warning in summary.warnings:
        log.warning("%s", warning)


def _report(epoch: EpochDone) -> None:
    log.info(
        "epoch %d: training loss %.4f, validation loss %.4f, accuracy %.4f, mean IoU %.4f; %.1f s, peak memory %s",
        epoch.epoch,
        epoch.train_loss,
        epoch.val_loss,
        epoch.accuracy,
        epoch.mean_iou,
        epoch.seconds,
        human_bytes(epoch.peak_memory),
    )


def _finish(order: Order, kind: Architecture, network: nn.Module, progress: Progress, known: Known) -> Finished:
    """Write the model folder."""
    spec, best = order.spec, progress.best
    if best is None:
        raise BadInputError("The training has no finished epoch: resume it with more epochs.")
    network = network.cpu().float()
    folder = order.model_folder
    export.write_weights(network, folder)
    (folder / HISTORY_FILE).write_text(json.dumps(progress.history, indent=2), encoding="utf-8")
    described = metadata.describe(spec, kind, known, best=best, epochs_run=progress.epoch, warnings=known.warnings)
    properties = {"classes": spec.classes, **{key: described[key] for key in KEPT_IN_ONNX if key in described}}
    lacking = export.write_onnx(
        network,
        folder,
        channels=spec.network_channels,
        divisor=kind.size_divisor,
        least=kind.size_least,
        properties=properties,
    )
    warnings = [f"The model has no ONNX file: {lacking}. It needs torch to run."] if lacking else []
    described["training"]["warnings"] += warnings
    log.info("finished: best epoch %d of %d", best["epoch"], progress.epoch)
    return Finished(described, warnings)
