"""How good a network is on the validation patches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own custom
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from segserve.training.spec import UNLABELLED

DIGITS = 4
LARGEST_LOSS = 1e9  # of a class, where a network is infinitely sure of another one: JSON has no infinity


@dataclass(frozen=True)
class Scores:
    """Figures over all labelled validation pixels; the maps hold the classes that have one.

    `mean_iou` is the mean of TP / (TP + FP + FN) over those classes; class losses are unweighted cross entropies.
    """

    loss: float
    accuracy: float
    mean_iou: float
    per_class_iou: dict[str, float]
    per_class_loss: dict[str, float]


@contextmanager
def _counting_plainly() -> Iterator[None]:
    """Counts on the processor are deterministic anyway; told to be, torchmetrics lays out pixels x classes squared."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


class Evaluation:
    """Collects batches of one validation pass."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes
        self._confusion = MulticlassConfusionMatrix(len(classes))
        self._class_loss = torch.zeros(len(classes), dtype=torch.float64)
        self._loss = 0.0
        self._patches = 0

    def add(self, logits: Tensor, target: Tensor, loss: Tensor) -> None:
        """Take a batch: logits (N, K, H, W), target (N, H, W) int64 with 255 unlabelled, and the batch's loss."""
        labelled = target != UNLABELLED
        if not bool(labelled.any()):
            return
        patches = int(labelled.flatten(1).any(1).sum())
        self._loss += float(loss) * patches
        self._patches += patches
        pixel_loss = F.cross_entropy(logits.float(), target, ignore_index=UNLABELLED, reduction="none")[labelled]
        # Counted on the processor: MPS has no float64, and CUDA no deterministic count.
        found, truth = logits.argmax(1)[labelled].cpu(), target[labelled].cpu()
        with _counting_plainly():
            self._confusion.update(found, truth)
            self._class_loss += torch.bincount(truth, pixel_loss.cpu().double(), minlength=len(self._classes))

    def scores(self) -> Scores:
        """The figures of everything added; zeros if nothing labelled was."""
        if not self._patches:
            return Scores(0.0, 0.0, 0.0, {}, {})
        confusion = self._confusion.compute().double()
        truth, found, right = confusion.sum(1), confusion.sum(0), confusion.diagonal()
        present = [index for index in range(len(self._classes)) if truth[index] > 0]
        iou = (right / (truth + found - right).clamp(min=1)).tolist()
        losses = (self._class_loss / truth.clamp(min=1)).clamp(max=LARGEST_LOSS).tolist()
        return Scores(
            loss=self._loss / self._patches,
            accuracy=float(right.sum() / truth.sum()),
            mean_iou=round(sum(iou[index] for index in present) / len(present), DIGITS),
            per_class_iou={self._classes[index]: round(iou[index], DIGITS) for index in present},
            per_class_loss={self._classes[index]: round(losses[index], DIGITS) for index in present},
        )
