"""What engines are tried on, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segserve.engines.base import Engine
from segserve.engines.candidates import Candidate

Batch = NDArray[np.float32]
Check = Callable[[Batch], str]


@dataclass(frozen=True)
class Trial:
    """What candidates are tried on.

    Attributes:
        batches: real shapes, realistic values; the first is the one that is timed.
        check: looks at the first logits, raises BadInputError if the network is no use to anybody, and says which
            activation turns them into probabilities.
    """

    batches: Sequence[Batch]
    check: Check


@dataclass
class Verdict:
    """What became of one candidate.

    Attributes:
        seconds: for one batch.
        error: how far its probabilities are from the reference's; None if they were not compared.
        refused: why it may not be used; None if it may.
    """

    engine: str
    device: str
    precision: str
    seconds: float | None = None
    error: float | None = None
    refused: str | None = None


@dataclass(frozen=True)
class Choice:
    """The engine that runs the network from now on.

    Attributes:
        repeatable: whether a patch gives the same bits whenever it is run, whatever shares its batch.
        shape: of what it gave for the trial's first batch.
        verdicts: of every candidate.
    """

    engine: Engine
    repeatable: bool
    shape: tuple[int, ...]
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def candidate(self) -> Candidate:
        """What was chosen."""
        return Candidate(self.engine.name, self.engine.device, self.engine.precision)

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        return {"chosen": asdict(self.candidate), "repeatable": self.repeatable, "engines": self.wire_verdicts()}

    def wire_verdicts(self) -> list[dict[str, Any]]:
        """The verdicts as JSON."""
        return [asdict(verdict) for verdict in self.verdicts]
