"""A training as the server remembers it, and how it goes from state to state."""

from __future__ import annotations

import time
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from segserve.jobs.errors import wrong_state
from segserve.training.spec import TrainingSpec

State = Literal["queued", "training", "paused", "completed", "failed", "cancelled"]
ENDED: frozenset[State] = frozenset({"completed", "failed", "cancelled"})
MOST_DEATHS = 2


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

    def pause(self) -> None:
        """Stop at once where it waits; where it trains, note that it is to stop.

        Raises:
            BadInputError: it has ended.
        """
        if self.state in ENDED:
            raise wrong_state("pause", self.state, "only one that is queued or training can be paused")
        if self.state == "queued":
            self.state = "paused"
        elif self.state == "training":
            self.pause_asked = True

    def check_resumable(self, *, running: bool) -> None:
        """Refuse a resume that is not possible.

        Args:
            running: a process is still at work on it.

        Raises:
            BadInputError: it is not paused, nor did it end with its checkpoint kept.
        """
        if not self.resumable or (running and self.state != "paused"):
            raise wrong_state(
                "resume", self.state, "only a paused one can go on, or one that ended with its checkpoint kept"
            )

    def resume(self, spec: TrainingSpec) -> None:
        """Wait again, for what `spec` says now."""
        before, after = self.spec, spec
        unchanged = (before.data_path, before.training.batch_size) == (after.data_path, after.training.batch_size)
        self.same_batches = self.same_batches and unchanged
        self.spec, self.state, self.error, self.ended, self.deaths = spec, "queued", "", None, 0
        self.enqueued, self.cleared = time.time(), False

    def stop(self, otherwise: State) -> None:
        """Its process is gone before the end: it is paused if that was asked for, or else in another state."""
        self.state, self.pause_asked = ("paused" if self.pause_asked else otherwise), False

    def count_death(self, reason: str) -> None:
        """Its process died of something: it waits again, unless it is the second time without getting further."""
        self.deaths += 1
        if self.deaths < MOST_DEATHS:
            self.stop("queued")
        else:
            self.fail(f"The training stopped twice without getting further: {reason}. Its log tells how far it came.")

    def fail(self, error: str) -> None:
        """End with a sentence for the user."""
        self.error = error
        self.end("failed")

    def end(self, state: State) -> None:
        """Move to an ended state."""
        self.state, self.stage, self.pause_asked, self.ended = state, "", False, time.time()

    def warn(self, text: str) -> None:
        """Remember a warning, once."""
        if text not in self.warnings:
            self.warnings = [*self.warnings, text]
