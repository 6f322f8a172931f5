"""A training as the server remembers it."""

from __future__ import annotations

import time
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from segserve.training.spec import TrainingSpec

State = Literal["queued", "training", "paused", "completed", "failed", "cancelled"]
ENDED: frozenset[State] = frozenset({"completed", "failed", "cancelled"})


class Job(BaseModel):
    """One training's record. Times are seconds since 1970; all figures are finite.

    Attributes:
        spec: what is asked; a resume may change it.
        enqueued: when it was last put into the queue, which is served in this order.
        stage: what a running one does: `starting`, `weights`, `data`, `training`, `export`.
        latest: the last finished epoch as it was told.
        batch, batches: of the running epoch.
        has_checkpoint: whether it can be resumed.
        pause_asked: a pause has yet to be heeded.
        same_batches: a resume can go on in the middle of an epoch.
        cleared: it was cancelled to free memory, not because nobody wants it.
        deaths: of its process since its last checkpoint.
    """

    model_config = ConfigDict(validate_assignment=True)

    id: str
    spec: TrainingSpec
    state: State = "queued"
    created: float = Field(default_factory=time.time)
    enqueued: float = Field(default_factory=time.time)
    ended: float | None = None
    stage: str = ""
    latest: dict[str, Any] | None = None
    batch: int = 0
    batches: int = 0
    batch_loss: float = 0.0
    device: str = ""
    device_info: str = ""
    warnings: list[str] = []
    error: str = ""
    model_id: str = ""
    final_loss: float = 0.0
    final_accuracy: float = 0.0
    has_checkpoint: bool = False
    pause_asked: bool = False
    cleared: bool = False
    same_batches: bool = True
    deaths: int = 0

    @property
    def epoch(self) -> int:
        """The last finished epoch, from 1; 0 before."""
        return int(self.latest["epoch"]) if self.latest else 0

    @property
    def resumable(self) -> bool:
        """Whether a resume is possible: paused, or ended short of completion with its checkpoint kept."""
        ended_early = self.state in {"failed", "cancelled"}
        return self.state == "paused" or (ended_early and (self.has_checkpoint or self.cleared))

    def end(self, state: State) -> None:
        """Move to an ended state."""
        self.state, self.stage, self.pause_asked, self.ended = state, "", False, time.time()

    def warn(self, text: str) -> None:
        """Remember a warning, once."""
        if text not in self.warnings:
            self.warnings = [*self.warnings, text]
