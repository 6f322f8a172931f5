"""Programs other than ours that segment a volume, and their time told from a share of its windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from benchmarks.timing import seconds

Patch = TypeVar("Patch")


class Sampled(Generic[Patch]):
    """A forward pass that is run for every `every`-th window; the windows between are given its last answer.

    All that a program does around the network is then done in full, and the network's own time, which is the same for
    each window, is known from a sample.
    """

    def __init__(self, forward: Callable[[Patch], Patch], every: int) -> None:
        self._forward = forward
        self._every = every
        self._spent: list[float] = []
        self._left_out = 0

    def __call__(self, patch: Patch) -> Patch:
        """The logits of this window, or of one before it."""
        if self._left_out < (self._every - 1) * len(self._spent):
            self._left_out += 1
        else:
            self._spent.append(seconds(lambda: self._run(patch)))
        return self._logits

    def _run(self, patch: Patch) -> None:
        self._logits = self._forward(patch)

    @property
    def saved(self) -> float:
        """The seconds that the windows left out would have taken."""
        return self._left_out * sum(self._spent) / len(self._spent)


@dataclass(frozen=True)
class Other(Generic[Patch]):
    """A program and its network.

    Attributes:
        program: reads the image, runs the windows through the network and writes the labels.
        forward: the network.
    """

    program: Callable[[Path, Path, Callable[[Patch], Patch]], None]
    forward: Callable[[Patch], Patch]

    def segment(self, image: Path, target: Path) -> None:
        """Segment a volume."""
        self.program(image, target, self.forward)

    def seconds(self, image: Path, target: Path, every: int) -> float:
        """The seconds that `segment` would take, by every `every`-th window; the labels are worth nothing."""
        sample = Sampled(self.forward, every)
        return seconds(lambda: self.program(image, target, sample)) + sample.saved
