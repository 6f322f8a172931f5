"""The training loop: batches, epochs, validation, the best weights so far, and when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from segserve.errors import BadInputError
from segserve.training.augment import augment
from segserve.training.batchnorm import Remeasuring
from segserve.training.device import Place
from segserve.training.events import BatchDone, CheckpointReady, EpochDone, Event, Paused
from segserve.training.feed import Feed
from segserve.training.loss import training_loss
from segserve.training.memory import Peak
from segserve.training.metrics import Evaluation, Scores
from segserve.training.network.freeze import Frozen
from segserve.training.progress import Progress
from segserve.training.schedule import learning_rate
from segserve.training.spec import UNLABELLED, TrainingSpec

CHECKPOINT_SECONDS = 30.0
MEASURED_PATCHES = 64


@dataclass(frozen=True)
class Setting:
    """What a loop works with: two feeds, a place, what is frozen, and the classes' weights (None: all alike)."""

    spec: TrainingSpec
    train: Feed
    validation: Feed
    place: Place
    frozen: Frozen | None
    class_weights: list[float] | None


@dataclass
class Loop:
    """One network in training.

    Attributes:
        setting: what it works with.
        network: trained in place.
        progress: how far it is; a resumed training brings its own.
        pause_asked: whether to stop after the batch at hand.
        stopped_early: set when early stopping ended the training.
    """

    setting: Setting
    network: nn.Module
    progress: Progress
    pause_asked: Callable[[], bool]
    stopped_early: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        place, hyper = self.setting.place, self.setting.spec.training
        devices: list[int] | int = [int(place.device.partition(":")[2])] if place.kind == "cuda" else 1
        self._fabric = Fabric(accelerator=place.kind, devices=devices, precision=place.precision)
        network = self.network.to(memory_format=torch.channels_last)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        kind = torch.optim.Adam if hyper.optimizer == "adam" else torch.optim.AdamW
        fused = place.kind != "mps" and place.precision != "16-mixed"
        optimizer = kind(trained, lr=hyper.learning_rate, weight_decay=hyper.weight_decay, fused=fused)
        model, wrapped = self._fabric.setup(network, optimizer)
        self._model, self._optimizer = cast("nn.Module", model), cast("torch.optim.Optimizer", wrapped)
        self._weights = self._to_device(self.setting.class_weights)
        self._peak = Peak(place)
        self._saved = -math.inf
        if self.progress.state:
            self._restore(self.progress.state)

    def run(self) -> Iterator[Event]:
        """Train to the last epoch, to early stopping, or until a pause is asked for; tell what happens."""
        hyper = self.setting.spec.training
        while self.progress.epoch < hyper.epochs and not self._is_waiting_in_vain():
            began = time.monotonic()
            yield from self._batches()
            measured = self._remeasure()
            scores = None if self.pause_asked() else self._validate()
            if scores is None:
                measured.undo()  # when the training goes on, it is done again, and from the same start
                yield CheckpointReady(self._state())
                yield Paused()
                return
            yield self._finish_epoch(scores, time.monotonic() - began)
            if time.monotonic() - self._saved >= CHECKPOINT_SECONDS:
                yield CheckpointReady(self._state())
                self._saved = time.monotonic()
        self.stopped_early = self.progress.epoch < hyper.epochs
        if self.progress.best:
            self.network.load_state_dict(self.progress.best["state"])

    def _batches(self) -> Iterator[Event]:
        """The rest of the running epoch, or as much of it as comes before a pause."""
        self._model.train()
        if self.setting.frozen:
            self.setting.frozen.hold()
        hyper, progress = self.setting.spec.training, self.progress
        plan = self.setting.train.plan(hyper.batch_size, seed=hyper.seed, epoch=progress.epoch, shuffle=True)
        for images, masks in self.setting.train.batches(plan[progress.batch :]):
            if self.pause_asked():
                return
            total = len(plan) * hyper.epochs
            step = progress.epoch * len(plan) + progress.batch
            progress.rate = learning_rate(hyper.scheduler, hyper.learning_rate, step, total)
            self._step(images, masks, _seed(hyper.seed, progress.epoch, progress.batch))
            progress.batch += 1
            self._peak.look()
            yield BatchDone(progress.epoch + 1, progress.batch, len(plan), progress.train_loss)

    def _step(self, images: Tensor, masks: Tensor, seed: int) -> None:
        hyper, device = self.setting.spec.training, self._fabric.device
        torch.manual_seed(seed)  # for dropout
        images, masks = images.to(device, memory_format=torch.channels_last), masks.to(device)
        if hyper.augmentation:
            images, masks = augment(images, masks, seed)
        if not bool((masks != UNLABELLED).any()):
            return  # nothing to learn from, and Adam would drift on its momentum
        for group in self._optimizer.param_groups:
            group["lr"] = self.progress.rate
        self._optimizer.zero_grad()
        loss = training_loss(hyper.loss_function, self._model(images), masks, self._weights)
        value = float(loss.detach())
        self._refuse_divergence(value)
        self._fabric.backward(loss)
        if hyper.gradient_clip:
            self._fabric.clip_gradients(
                self._model, self._optimizer, max_norm=hyper.gradient_clip, error_if_nonfinite=False
            )
        self._optimizer.step()
        self.progress.loss_sum += value * len(images)
        self.progress.loss_count += len(images)

    def _remeasure(self) -> Remeasuring:
        """Give batch normalisation the statistics of some training patches, as they are without augmentation."""
        hyper, feed = self.setting.spec.training, self.setting.train
        plan = feed.plan(hyper.batch_size, seed=hyper.seed, epoch=self.progress.epoch, shuffle=True)
        measuring = Remeasuring(self.network, self.setting.frozen)
        batches = plan[: max(1, MEASURED_PATCHES // hyper.batch_size)] if measuring.layers else []
        with torch.no_grad():
            for images, _ in feed.batches(batches):
                if self.pause_asked():
                    break
                self._model(images.to(self._fabric.device, memory_format=torch.channels_last))
        measuring.end()
        return measuring

    def _validate(self) -> Scores | None:
        """The scores of the network as it is; None if a pause is asked for meanwhile."""
        self._model.eval()
        spec, device = self.setting.spec, self._fabric.device
        evaluation = Evaluation(spec.classes)
        plan = self.setting.validation.plan(spec.training.batch_size, seed=0, epoch=0, shuffle=False)
        with torch.no_grad():
            for images, masks in self.setting.validation.batches(plan):
                if self.pause_asked():
                    return None
                target = masks.to(device)
                logits = self._model(images.to(device, memory_format=torch.channels_last))
                loss = training_loss(spec.training.loss_function, logits, target, self._weights)
                self._refuse_divergence(float(loss))
                evaluation.add(logits, target, loss)
                self._peak.look()
        return evaluation.scores()

    def _finish_epoch(self, scores: Scores, seconds: float) -> EpochDone:
        hyper, progress = self.setting.spec.training, self.progress
        score = -scores.loss if hyper.early_stopping_metric == "val_loss" else scores.mean_iou
        if not scores.per_class_iou:  # nothing labelled to validate on
            score = -progress.train_loss
        best = progress.is_best(score)
        if best:
            progress.best = {
                "score": score,
                "epoch": progress.epoch + 1,
                "loss": scores.loss,
                "accuracy": scores.accuracy,
                "mean_iou": scores.mean_iou,
                "state": _copied(self.network.state_dict()),
            }
        progress.count_patience(score, hyper.early_stopping_min_delta)
        done = EpochDone(
            epoch=progress.epoch + 1,
            train_loss=progress.train_loss,
            val_loss=scores.loss,
            accuracy=scores.accuracy,
            mean_iou=scores.mean_iou,
            per_class_iou=scores.per_class_iou,
            per_class_loss=scores.per_class_loss,
            learning_rate=progress.rate,
            seconds=round(seconds, 3),
            peak_memory=self._peak.take(),
            best=best,
        )
        progress.next_epoch(done.wire())
        self._give_memory_back()
        return done

    def _is_waiting_in_vain(self) -> bool:
        hyper = self.setting.spec.training
        return hyper.early_stopping and self.progress.waited >= hyper.early_stopping_patience

    def _refuse_divergence(self, loss: float) -> None:
        if math.isfinite(loss):
            return
        hyper = self.setting.spec.training
        raise BadInputError(
            f"The training diverged in epoch {self.progress.epoch + 1}: its loss is no longer a number. "
            f"Lower the learning rate (it is {hyper.learning_rate:g}; try {hyper.learning_rate / 10:g}), "
            f"and if that does not help, switch mixed_precision off."
        )

    def _state(self) -> dict[str, Any]:
        best, progress = self.progress.best, self.progress
        # Right after its best epoch the network is its own best: written once, not twice.
        is_best = best is not None and best["epoch"] == progress.epoch and progress.batch == 0
        return progress.state_with(
            network=best["state"] if best and is_best else _copied(self.network.state_dict()),
            optimizer=self._optimizer.state_dict(),
            precision=self._fabric.strategy.precision.state_dict(),
            batch_size=self.setting.spec.training.batch_size,
            threads=torch.get_num_threads(),
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        hyper = self.setting.spec.training
        for group in self._optimizer.param_groups:
            group["weight_decay"] = hyper.weight_decay
        if state["precision"]:  # empty unless it had a scaler
            self._fabric.strategy.precision.load_state_dict(state["precision"])
        self.progress.state = None  # it holds every weight twice

    def _to_device(self, weights: list[float] | None) -> Tensor | None:
        return None if weights is None else torch.tensor(weights, dtype=torch.float32, device=self._fabric.device)

    def _give_memory_back(self) -> None:
        if self.setting.place.kind == "cuda":
            torch.cuda.empty_cache()
        elif self.setting.place.kind == "mps":
            torch.mps.empty_cache()


def _seed(seed: int, epoch: int, batch: int) -> int:
    """The seed of one batch: of nothing but these three numbers."""
    return int(np.random.SeedSequence((seed, epoch, batch)).generate_state(1, np.uint32)[0])


def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict that later steps do not change, in main memory."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
