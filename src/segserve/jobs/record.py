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
# More than it takes deaths of its own to fail: a server dies of much that no training has to do with.
MANY_OUTAGES = 3
OUTAGES_TOLD = "The server ended "
TO_GO_ON = "Resume the training to go on."


class Job(BaseModel):
    """One training's record. Times are seconds since 1970; all figures are finite.

    Attributes:
        spec: what is asked; a resume may change it.
        enqueued: when it was last put into the queue, which is served in this order; never before another's that was
            put there earlier, even if the clock was set back.
        kept: seconds that the server has run since it ended.
        stage: what a running one does: `starting`, `weights`, `data`, `training`, `export`.
        latest: the last finished epoch as it was told.
        batch, batches: of the running epoch.
        has_checkpoint: whether it can be resumed.
        began_with: what `JobFolder.checkpoint_version` was as its last life began; None until that has been looked up.
        pause_asked: a pause has yet to be heeded.
        same_batches: a resume can go on in the middle of an epoch.
        blameless: it ended because memory was cleared or the disk was full: not of itself, nor because nobody wants it.
        deaths: of its process since its last checkpoint.
        outages: deaths of the server while it trained, since its last checkpoint.
        trouble: why its process cannot write a checkpoint, and what to do; of the moment, not of the record.
    """

    model_config = ConfigDict(validate_assignment=True)

    id: str
    spec: TrainingSpec
    state: State = "queued"
    created: float = Field(default_factory=time.time)
    enqueued: float = Field(default_factory=time.time)
    ended: float | None = None
    kept: float = 0.0
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
    began_with: int | None = 0
    pause_asked: bool = False
    blameless: bool = False
    same_batches: bool = True
    deaths: int = 0
    outages: int = 0
    trouble: str = Field(default="", exclude=True)

    @property
    def epoch(self) -> int:
        """The last finished epoch, from 1; 0 before."""
        return int(self.latest["epoch"]) if self.latest else 0

    @property
    def resumable(self) -> bool:
        """Whether a resume is possible: paused, or ended short of completion with its checkpoint kept, or blameless."""
        ended_early = self.state in {"failed", "cancelled"}
        return self.state == "paused" or (ended_early and (self.has_checkpoint or self.blameless))

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

    def resume(self, spec: TrainingSpec, enqueued: float) -> None:
        """Wait again, for what `spec` says now."""
        before, after = self.spec, spec
        unchanged = (before.data_path, before.training.batch_size) == (after.data_path, after.training.batch_size)
        self.same_batches = self.same_batches and unchanged
        self.spec, self.state, self.error, self.ended, self.kept = spec, "queued", "", None, 0.0
        self.enqueued, self.blameless, self.deaths, self.outages = enqueued, False, 0, 0

    def note_checkpoint(self) -> None:
        """There is a new checkpoint."""
        self.has_checkpoint, self.same_batches, self.deaths, self.outages, self.trouble = True, True, 0, 0, ""

    def look_back(self, version: int) -> None:
        """Its life is over, with this version of a checkpoint on disk: a new one counts even if nobody heard of it."""
        if self.began_with is not None and version not in {0, self.began_with}:
            self.note_checkpoint()

    @property
    def suspect(self) -> bool:
        """Whether it may be what ends the server: that keeps happening while it trains, and it gets no further."""
        return self.outages >= MANY_OUTAGES

    def start(self) -> None:
        """Its turn has come. What its last life began with must not be taken for what this one begins with."""
        self.state, self.stage, self.began_with = "training", "starting", None

    def stop(self, otherwise: State) -> None:
        """Its process is gone before the end: it is paused if that was asked for, or else in another state."""
        self.state, self.pause_asked = ("paused" if self.pause_asked else otherwise), False

    def count_death(self, reason: str, log_end: str) -> None:
        """Its process died of something: it waits again, unless it is the second time without getting further."""
        self.deaths += 1
        if self.deaths < MOST_DEATHS:
            self.stop("queued")
        else:
            self.fail(f"The training stopped twice without getting further: {reason}. {_told(log_end)}")

    def count_outage(self) -> None:
        """The server died while this trained: it waits again, with a warning if that keeps happening.

        Who took whom along cannot be told. One that had not begun to work is beyond suspicion: its server may be
        unable to start for reasons of its own.
        """
        self.outages += self.stage != "starting"
        self.stop("queued")
        if self.suspect:
            self.warnings = [text for text in self.warnings if not text.startswith(OUTAGES_TOLD)]
            self.warn(
                f"{OUTAGES_TOLD}{self.outages} times while this training ran, which got no further in between: perhaps "
                "it needs more memory than the machine has; if so, cancel it and try a lower batch_size."
            )

    def fail(self, error: str, *, blameless: bool = False) -> None:
        """End with a sentence for the user."""
        self.error, self.blameless = f"{error} {TO_GO_ON}" if blameless else error, blameless
        self.end("failed")

    def end(self, state: State) -> None:
        """Move to an ended state."""
        self.state, self.stage, self.pause_asked, self.ended = state, "", False, time.time()

    def warn(self, text: str) -> None:
        """Remember a warning, once."""
        if text not in self.warnings:
            self.warnings = [*self.warnings, text]


def _told(log_end: str) -> str:
    return f"Its log ends: {log_end}" if log_end else "Its log is empty."
