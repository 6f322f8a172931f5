"""Learning rates as pure functions of how much of the training is done, so that a resumed one needs no memory."""

from __future__ import annotations

import math

WARM_UP = 0.3
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_END = 1 / 250_000
COSINE_END = 0.01
STEP_FACTOR = 0.1
STEPS = 3


def learning_rate(scheduler: str, peak: float, step: int, total: int) -> float:
    """The learning rate of one optimiser step.

    Args:
        scheduler: `none`; `cosine`: from `peak` to 1 % of it along half a cosine (Loshchilov & Hutter 2017, without
            restarts); `step`: a tenth after each third; `onecycle`: up from 4 % in the first 30 %, then down to
            1/250000, both along half a cosine (Smith & Topin 2019).
        peak: the highest learning rate.
        step: number of the step, from 0.
        total: steps of the whole training.
    """
    done = min(step / max(total - 1, 1), 1.0)
    if scheduler == "cosine":
        return peak * _half_cosine(1.0, COSINE_END, done)
    if scheduler == "step":
        return peak * float(STEP_FACTOR ** (STEPS * min(step, total - 1) // total))
    if scheduler == "onecycle":
        if done < WARM_UP:
            return peak * _half_cosine(ONE_CYCLE_START, 1.0, done / WARM_UP)
        return peak * _half_cosine(1.0, ONE_CYCLE_END, (done - WARM_UP) / (1 - WARM_UP))
    return peak


def _half_cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
