"""How far a training is: everything of it that is not in the network or the optimiser."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

KEPT = ("epoch", "batch", "loss_sum", "loss_count", "rate", "best", "watched", "waited", "history", "known")


@dataclass
class Progress:
    """Where the next batch is, and what has been seen so far.

    Attributes:
        epoch: epochs finished.
        batch: batches done of the running epoch.
        loss_sum, loss_count: of the running epoch's training loss.
        rate: the last learning rate used.
        best: score, epoch, loss, accuracy, mean IoU and weights of the best epoch so far.
        watched: the score that early stopping compares with, and `waited`, epochs since it moved.
        history: the finished epochs as they were told.
        known: what the finished model will say of its data, as JSON.
        state: a checkpoint that has yet to be put into network and optimiser.
    """

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    rate: float = 0.0
    best: dict[str, Any] | None = None
    watched: float | None = None
    waited: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    known: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] | None = None

    @property
    def train_loss(self) -> float:
        """The running epoch's mean loss over patches."""
        return self.loss_sum / max(self.loss_count, 1)

    def is_best(self, score: float) -> bool:
        """Whether a score (higher is better) beats every one before."""
        return self.best is None or score > self.best["score"]

    def count_patience(self, score: float, min_delta: float) -> None:
        """Note whether a score improves by more than `min_delta` on the last that did."""
        if self.watched is None or score > self.watched + min_delta:
            self.watched, self.waited = score, 0
        else:
            self.waited += 1

    def count_batch(self, loss: float | None, patches: int) -> None:
        """Note that a batch is done; its loss is None where there was nothing to learn from."""
        self.batch += 1
        if loss is not None:
            self.loss_sum += loss * patches
            self.loss_count += patches

    def next_epoch(self, told: dict[str, Any]) -> None:
        """Close the running epoch."""
        self.history.append(told)
        self.epoch += 1
        self.restart_epoch()

    def restart_epoch(self) -> None:
        """Forget the running epoch's batches."""
        self.batch, self.loss_sum, self.loss_count = 0, 0.0, 0

    def state_with(self, **more: Any) -> dict[str, Any]:  # tensors and plain values
        """A checkpoint: this and `more`."""
        return {**{name: getattr(self, name) for name in KEPT}, **more}

    @classmethod
    def of(cls, state: dict[str, Any], *, same_batches: bool) -> Progress:
        """The progress in a checkpoint.

        Args:
            state: as `state_with` made it.
            same_batches: whether the running epoch can go on where it was: same data, same batch size.
        """
        progress = cls(**{name: state[name] for name in KEPT}, state=state)
        if not same_batches:
            progress.restart_epoch()
        return progress
