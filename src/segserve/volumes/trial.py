"""What a network makes of its first patch: whether that is a segmentation, and what to do where it fails."""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from segserve.engines.base import EngineError
from segserve.errors import BadInputError, by
from segserve.models.plan import Plan
from segserve.volumes.labels import label_dtype

# What torch and networks say when they do not fit what they are fed.
OF_CHANNELS = re.compile(r"channel", re.IGNORECASE)
OF_SIZE = re.compile(r"size|shape|dimension|divisible|stride", re.IGNORECASE)


def check_logits(logits: NDArray[np.float32], plan: Plan) -> str:
    """Refuse what is no segmentation of the patch.

    Args:
        logits: what the network gave for one batch.
        plan: which batch that was.

    Returns:
        What turns the logits into probabilities: `softmax`, or the plan's activation for one class.

    Raises:
        BadInputError: with the shape found and the one expected.
    """
    shape = logits.shape
    expected = f"({plan.batch}, K, {', '.join(str(size) for size in plan.patch_size)})"
    if len(shape) != 5 or shape[0] != plan.batch or shape[2:] != plan.patch_size or math.prod(shape) == 0:
        raise BadInputError(f"The network's output has the shape {shape}; a segmentation network gives {expected}.")
    label_dtype(shape[1])
    return plan.activation if shape[1] == 1 else "softmax"


def advised(error: EngineError, plan: Plan) -> EngineError:
    """The failure of a network whose file does not say what it takes, with what to do about it."""
    advice = ""
    if OF_CHANNELS.search(error.message):
        advice = " Networks are fed one channel, the image: load one that takes (N, 1, Z, Y, X)."
    elif OF_SIZE.search(error.message):
        batch = f" and forward_batch_windows {plan.batch}" if plan.batch > 1 else ""
        advice = f" It was run with patch_size {by(plan.patch_size)}{batch}: send those that it was made for."
    return EngineError(error.message + advice)
