"""Choosing the engine that runs a network: each candidate is checked against float32 and timed on this machine."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segserve.engines import agreement
from segserve.engines.base import Engine, EngineError, OnnxNetwork
from segserve.engines.candidates import Candidate, Wish, candidates, start

log = logging.getLogger(__name__)

TIMING_SECONDS = 60.0
MOST_REPEATS, REPEAT_SECONDS = 5, 1.0

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
        verdicts: of every candidate.
    """

    engine: Engine
    repeatable: bool
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


def choose(network: OnnxNetwork, wish: Wish, trial: Trial) -> Choice:
    """The fastest engine that agrees with float32.

    Raises:
        EngineError: no engine can run the network; the reference's reason.
        BadInputError: `trial.check` refuses the network.
        MissingExtraError: the engine asked for is not installed.
    """
    contest = _Contest(network, trial, time.monotonic() + TIMING_SECONDS)
    field_of = candidates(wish)
    for candidate in field_of:
        contest.enter(candidate, alone=len(field_of) == 1)
    return contest.result()


class _Contest:
    """Candidates one after the other; only the best so far and the newest are held in memory."""

    def __init__(self, network: OnnxNetwork, trial: Trial, deadline: float) -> None:
        self._network = network
        self._trial = trial
        self._deadline = deadline
        self._reference: list[Batch] = []
        self._activation = "softmax"
        self._best: tuple[float, Engine, bool] | None = None
        self._verdicts: list[Verdict] = []
        self._failure: EngineError | None = None

    def enter(self, candidate: Candidate, *, alone: bool) -> None:
        """Try one candidate."""
        verdict = Verdict(**asdict(candidate))
        self._verdicts.append(verdict)
        if self._best and time.monotonic() + 2 * self._best[0] > self._deadline:
            verdict.refused = f"not tried: {TIMING_SECONDS:.0f} s had passed"
            return
        try:
            engine = start(candidate, self._network)
            self._try(engine, candidate, verdict, alone=alone)
        except EngineError as error:
            verdict.refused = error.message
            self._failure = self._failure or error

    def result(self) -> Choice:
        if self._best is None:
            assert self._failure
            raise self._failure
        _, engine, repeatable = self._best
        choice = Choice(engine, repeatable, self._verdicts)
        log.info("engine: %s", choice.candidate)
        return choice

    def _try(self, engine: Engine, candidate: Candidate, verdict: Verdict, *, alone: bool) -> None:
        first = self._trial.batches[0]
        began = time.monotonic()
        logits = engine(first)
        seconds = time.monotonic() - began
        bits = _bits(logits)
        if self._reference:
            self._compare(engine, logits, candidate, verdict)
        else:
            self._activation = self._trial.check(logits)
            if not alone:
                # Copies: an engine's own buffer lives until its next call.
                self._reference = [logits.copy(), *(engine(batch).copy() for batch in self._trial.batches[1:])]
        if verdict.refused:
            return
        repeatable = False
        if time.monotonic() + seconds < self._deadline:
            seconds, repeatable = _repeat(engine, first, bits)
        verdict.seconds = round(seconds, 4)
        if self._best is None or seconds < self._best[0]:
            self._best = (seconds, engine, repeatable)

    def _compare(self, engine: Engine, logits: Batch, candidate: Candidate, verdict: Verdict) -> None:
        for place, (batch, reference) in enumerate(zip(self._trial.batches, self._reference, strict=True)):
            answer = engine(batch) if place else logits
            if answer.shape != reference.shape:
                verdict.refused = f"gives the shape {answer.shape} where {reference.shape} is right"
                return
            apart = agreement.differences(answer, reference, self._activation)
            # Only the first batch is surely of a scale that the network knows: on others float32 rounding alone
            # can turn a few voxels.
            error = agreement.error_of(apart, largest=candidate.exact and not place)
            verdict.error = max(verdict.error or 0.0, error)
        allowed = agreement.tolerance(exact=candidate.exact)
        if not (verdict.error or 0.0) <= allowed:
            verdict.error = min(verdict.error or 0.0, 1.0)
            verdict.refused = f"its probabilities are {verdict.error:.2g} off, {allowed:g} at most is allowed"


def _repeat(engine: Engine, batch: Batch, bits: list[bytes]) -> tuple[float, bool]:
    """Run a batch again, its patches in other places; the time, and whether every patch gave the same bits.

    A fast one is run several times, and its best time counts: other programs only ever add to it.
    """
    turned = np.roll(batch, 1, axis=0)
    times: list[float] = []
    while not times or (len(times) < MOST_REPEATS and sum(times) < REPEAT_SECONDS):
        began = time.monotonic()
        logits = engine(turned)
        times.append(time.monotonic() - began)
    again = _bits(logits)
    return min(times), [*again[1:], again[0]] == bits


def _bits(logits: Batch) -> list[bytes]:
    """A digest of each patch's logits."""
    return [hashlib.blake2b(np.ascontiguousarray(patch).data).digest() for patch in logits]
