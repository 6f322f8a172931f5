"""Tiles on their way through the engine: whatever waits when it falls free rides in its next batch."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from segserve.engines import agreement
from segserve.engines.base import Engine, EngineError
from segserve.engines.verdict import Choice
from segserve.errors import BadInputError
from segserve.models.formats.tile_onnx import check_output

Values = NDArray[np.float32]
Answer = TypeVar("Answer")

CHECK_SECONDS = 0.1
"""How soon whoever waits notices that nobody wants the answer."""


@dataclass(frozen=True)
class Limits:
    """How large a batch may be: tiles and, as memory goes with them, pixels; one tile always fits.

    Attributes:
        fixed: the batch of a network that takes no other, or is right with no other.
    """

    tiles: int
    pixels: int
    fixed: int | None = None


def unless_abandoned(answer: Future[Answer], abandoned: Callable[[], bool]) -> Answer:
    """Wait for an answer as long as somebody wants it.

    Raises:
        CancelledError: it was abandoned first; whoever computes it is not disturbed.
        Exception: whatever came instead of the answer.
    """
    while not answer.done():
        if abandoned():
            raise CancelledError
        wait([answer], CHECK_SECONDS)
    return answer.result()


def shareable(choice: Choice, pair: Values) -> bool:
    """Whether a network gives a tile the same map in company as alone.

    Args:
        choice: the engine that runs it.
        pair: two different tiles, float32 (2, C, H, W).
    """
    try:
        alone = choice.engine(pair[1:]).copy()
        together = choice.engine(pair)
    except (EngineError, MemoryError):
        return False
    if together.shape != (2, *alone.shape[1:]):
        return False
    exact = choice.candidate.exact
    apart = agreement.differences(together[1:], alone, "softmax" if alone.shape[1] > 1 else "sigmoid")
    return agreement.error_of(apart, largest=exact) <= agreement.tolerance(exact=exact)


@dataclass(eq=False)
class _Waiting:
    values: Values
    most: int
    abandoned: Callable[[], bool]
    answer: Future[Values] = field(default_factory=Future)


class Batcher:
    """Feeds an engine from one thread of its own, oldest tiles first, tiles of one shape together."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self._engine = engine
        self._limits = limits
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name="engine", daemon=True).start()

    def run(self, values: Values, abandoned: Callable[[], bool], *, most: int = 2**31) -> Values:
        """Run one tile; blocks until its batch is done.

        Args:
            values: float32 (C, H, W).
            most: tiles that may share a batch which begins with this one.
            abandoned: whether nobody wants the answer any more, which is then for good: a tile that waits is not
                computed, and one that is being computed is not waited for.

        Returns:
            float32 logits (K, H', W'), the caller's own.

        Raises:
            EngineError: the network failed on its batch.
            CancelledError: it was abandoned.
        """
        waiting = _Waiting(values, most, abandoned)
        with self._changed:
            self._queue.append(waiting)
            self._changed.notify()
        return unless_abandoned(waiting.answer, abandoned)

    def _work(self) -> None:
        while True:
            if batch := self._next_batch():
                self._serve(batch)

    def _serve(self, batch: list[_Waiting]) -> None:
        """Answer those who wait; tiles that fail together are computed one by one, for one may be to blame, or none."""
        try:
            answers = self._computed(batch)
        except Exception as error:  # whatever it is, those who wait must hear of it
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
                return
            for waiting in batch:
                if not waiting.abandoned():
                    self._serve([waiting])
            return
        for waiting, logits in zip(batch, answers, strict=True):
            waiting.answer.set_result(logits)

    def _computed(self, batch: list[_Waiting]) -> list[Values]:
        """The logits of each tile.

        Raises:
            EngineError: the network failed, or gives something else than a map for each tile.
        """
        tiles = self._stacked(batch)
        answers = self._engine(tiles)
        try:
            check_output(tiles.shape, answers.shape)
        except BadInputError as error:
            raise EngineError(error.message) from None
        return [logits.copy() for logits in answers[: len(batch)]]  # the engine's buffer holds until its next call only

    def _next_batch(self) -> list[_Waiting]:
        with self._changed:
            self._changed.wait_for(lambda: self._queue)
            waiting = [one for one in self._queue if not one.abandoned()]
            chosen = [one for one in waiting if one.values.shape == waiting[0].values.shape]
            chosen = chosen[: self._most(waiting[0])] if waiting else []
            self._queue = deque(one for one in waiting if one not in chosen)
            return chosen

    def _most(self, first: _Waiting) -> int:
        if self._limits.fixed:
            return self._limits.fixed
        height, width = int(first.values.shape[1]), int(first.values.shape[2])
        return max(1, min(self._limits.tiles, first.most, self._limits.pixels // (height * width)))

    def _stacked(self, batch: list[_Waiting]) -> Values:
        """The batch (N, C, H, W); a network of fixed batch gets the last tile again where there are not enough."""
        missing = max((self._limits.fixed or 0) - len(batch), 0)
        tiles = [one.values for one in batch]
        return np.stack([*tiles, *[tiles[-1]] * missing])
