"""Choosing the engine that runs a network: each candidate is checked against float32 and timed on this machine."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import asdict, dataclass

import numpy as np

from segserve.engines import agreement
from segserve.engines.base import Engine, EngineError, Network
from segserve.engines.candidates import Candidate, Wish, candidates, start
from segserve.engines.verdict import Batch, Choice, Trial, Verdict

log = logging.getLogger(__name__)

TIMING_SECONDS = 60.0
MOST_REPEATS, REPEAT_SECONDS = 5, 1.0
NO_TIME = "not tried: {:.0f} s had passed"
ROOM = 1.2  # what a candidate is expected to take, in times of the best so far
SLOW = 0.25  # of the time that is left: a reference that takes more is run again only if it is chosen


def choose(network: Network, wish: Wish, trial: Trial) -> Choice:
    """The fastest engine that agrees with float32.

    Raises:
        EngineError: no engine can run the network; the reference's reason.
        BadInputError: `trial.check` refuses the network.
        MissingExtraError: the engine asked for is not installed.
    """
    contest = _Contest(network, trial, time.monotonic() + TIMING_SECONDS)
    field_of = candidates(wish, type(network))
    for candidate in field_of:
        contest.enter(candidate, alone=len(field_of) == 1)
    return contest.result()


@dataclass
class _Entry:
    """A candidate that may be chosen.

    Attributes:
        bits: digests of what it gave for each patch of the first batch.
        repeatable: see `Choice`; None until it is run a second time.
    """

    engine: Engine
    verdict: Verdict
    seconds: float
    bits: list[bytes]
    shape: tuple[int, ...]
    repeatable: bool | None = None


class _Contest:
    """Candidates one after the other; of their engines, few are held in memory: the reference, the best, the newest."""

    def __init__(self, network: Network, trial: Trial, deadline: float) -> None:
        self._network = network
        self._trial = trial
        self._deadline = deadline
        self._reference: Engine | None = None
        self._references: list[Batch] = []
        self._activation = "softmax"
        self._best: _Entry | None = None
        self._verdicts: list[Verdict] = []
        self._failure: EngineError | None = None

    def enter(self, candidate: Candidate, *, alone: bool) -> None:
        """Try one candidate."""
        verdict = Verdict(**asdict(candidate))
        self._verdicts.append(verdict)
        missing = len(self._trial.batches) - len(self._references)
        if self._best and (ROOM + missing) * self._best.seconds > self._left():
            verdict.refused = NO_TIME.format(TIMING_SECONDS)
            return
        try:
            engine = start(candidate, self._network, self._trial.batches[0].shape)
            self._try(engine, candidate, verdict, alone=alone)
        except EngineError as error:
            verdict.refused = error.message
            self._failure = self._failure or error

    def result(self) -> Choice:
        best = self._best
        if best is None:
            assert self._failure
            raise self._failure
        if best.repeatable is None:
            self._repeat(best)
        choice = Choice(best.engine, bool(best.repeatable), best.shape, self._verdicts)
        log.info("engine: %s", choice.candidate)
        return choice

    def _left(self) -> float:
        return self._deadline - time.monotonic()

    def _try(self, engine: Engine, candidate: Candidate, verdict: Verdict, *, alone: bool) -> None:
        began = time.monotonic()
        logits = engine(self._trial.batches[0])
        entry = _Entry(engine, verdict, time.monotonic() - began, _bits(logits), logits.shape)
        put_off = False
        if self._references:
            self._compare(engine, logits, candidate, verdict)
        else:
            self._activation = self._trial.check(logits)
            if not alone:
                self._reference = engine
                self._references = [logits.copy()]  # an engine's own buffer lives until its next call
                put_off = entry.seconds > SLOW * self._left()
        if verdict.refused:
            return
        verdict.seconds = round(entry.seconds, 4)
        if not put_off:
            self._repeat(entry)
        if self._best is None or entry.seconds < self._best.seconds:
            self._best = entry

    def _repeat(self, entry: _Entry) -> None:
        """Run an entry again if there is time for that."""
        if entry.seconds < self._left():
            entry.seconds, entry.repeatable = _repeat(entry.engine, self._trial.batches[0], entry.bits)
            entry.verdict.seconds = round(entry.seconds, 4)

    def _compare(self, engine: Engine, logits: Batch, candidate: Candidate, verdict: Verdict) -> None:
        for place, batch in enumerate(self._trial.batches):
            if place and self._left() < 0:
                verdict.refused = NO_TIME.format(TIMING_SECONDS)
                return
            reference = self._reference_for(place)
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

    def _reference_for(self, place: int) -> Batch:
        """What the reference gave for a batch; the later ones are only run when there is something to compare."""
        if self._reference and place == len(self._references):
            self._references.append(self._reference(self._trial.batches[place]).copy())
        if len(self._references) == len(self._trial.batches):
            self._reference = None
        return self._references[place]


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
