"""The training loop: batches, epochs, validation, the best weights so far, and when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segserve.training.batchnorm import Remeasuring
from segserve.training.device import Place
from segserve.training.events import BatchDone, CheckpointReady, EpochDone, Event, Paused
from segserve.training.feed import Feed
from segserve.training.learner import Learner
from segserve.training.memory import Peak
from segserve.training.metrics import Evaluation, Scores
from segserve.training.network.freeze import Frozen
from segserve.training.progress import Progress
from segserve.training.schedule import learning_rate
from segserve.training.spec import TrainingSpec

CHECKPOINT_SECONDS = 30.0
MEASURED_PATCHES = 64


@dataclass(frozen=True)
class Setting:
    """What a loop works with: two feeds, a place, what is frozen, and the classes' weights (None: all alike)."""

    spec: TrainingSpec
    train: Feed
    validation: Feed
    place: Place
    frozen: Frozen
    class_weights: list[float] | None


@dataclass
class Loop:
    """One network in training.

    Attributes:
        setting: what it works with.
        network: trained in place.
        progress: how far it is; a resumed training brings its own.
        pause_asked: whether to stop after the batch at hand.
    """

    setting: Setting
    network: nn.Module
    progress: Progress
    pause_asked: Callable[[], bool]

    def __post_init__(self) -> None:
        setting = self.setting
        self._learner = Learner(
            self.network, setting.spec.training, setting.place, setting.frozen, setting.class_weights
        )
        self._peak = Peak(setting.place)
        self._saved = -math.inf
        if self.progress.state:
            self._learner.restore(self.progress.state)
            self.progress.state = None  # it holds every weight twice

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
                yield CheckpointReady(self._state(), pausing=True)
                yield Paused()
                return
            yield self._finish_epoch(scores, time.monotonic() - began)
            if time.monotonic() - self._saved >= CHECKPOINT_SECONDS:
                yield CheckpointReady(self._state())
                self._saved = time.monotonic()
        if self.progress.best:
            self.network.load_state_dict(self.progress.best["state"])

    def _batches(self) -> Iterator[Event]:
        """The rest of the running epoch, or as much of it as comes before a pause."""
        self._learner.start()
        hyper, progress = self.setting.spec.training, self.progress
        plan = self._plan()
        for images, masks in self.setting.train.batches(plan[progress.batch :]):
            if self.pause_asked():
                return
            total = len(plan) * hyper.epochs
            step = progress.epoch * len(plan) + progress.batch
            progress.rate = learning_rate(hyper.scheduler, hyper.learning_rate, step, total)
            loss = self._learner.step(images, masks, epoch=progress.epoch, batch=progress.batch, rate=progress.rate)
            progress.count_batch(loss, len(images))
            self._peak.look()
            yield BatchDone(progress.epoch + 1, progress.batch, len(plan), progress.train_loss)

    def _plan(self) -> list[list[int]]:
        """The running epoch's batches of training patches."""
        hyper = self.setting.spec.training
        return self.setting.train.plan(hyper.batch_size, seed=hyper.seed, epoch=self.progress.epoch, shuffle=True)

    def _remeasure(self) -> Remeasuring:
        """Give batch normalisation the statistics of some training patches, as they are without augmentation."""
        measuring = Remeasuring(self.network, self.setting.frozen)
        most = max(1, MEASURED_PATCHES // self.setting.spec.training.batch_size)
        with torch.no_grad():
            for images, _ in self.setting.train.batches(self._plan()[:most] if measuring.layers else []):
                if self.pause_asked():
                    break
                self._learner.run(images)
        measuring.end()
        return measuring

    def _validate(self) -> Scores | None:
        """The scores of the network as it is; None if a pause is asked for meanwhile."""
        self.network.eval()
        spec = self.setting.spec
        evaluation = Evaluation(spec.classes)
        plan = self.setting.validation.plan(spec.training.batch_size, seed=0, epoch=0, shuffle=False)
        with torch.no_grad():
            for images, masks in self.setting.validation.batches(plan):
                if self.pause_asked():
                    return None
                evaluation.add(*self._learner.look(images, masks, epoch=self.progress.epoch))
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
        self._learner.give_memory_back()
        return done

    def _is_waiting_in_vain(self) -> bool:
        hyper = self.setting.spec.training
        return hyper.early_stopping and self.progress.waited >= hyper.early_stopping_patience

    def _state(self) -> dict[str, Any]:
        best, network = self.progress.best, _copied(self.network.state_dict())
        if best and all(torch.equal(tensor, best["state"][name]) for name, tensor in network.items()):
            network = best["state"]  # right after its best epoch: written once, not twice
        return self.progress.state_with(
            network=network,
            **self._learner.state(),
            batch_size=self.setting.spec.training.batch_size,
            threads=torch.get_num_threads(),
        )


def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict that later steps do not change, in main memory."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
