"""Many cases of one kind: some of them in every run, the others marked slow."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest


def thinned(*axes: Iterable[Any], every: int) -> list[Any]:
    """Each combination of the axes as a parameter set; all but every so-many-th are slow.

    With as many values on the last axis as it is `every`, or one more or less, the fast ones visit each value.
    """
    return [
        pytest.param(*values, marks=[] if place % every == 0 else [pytest.mark.slow])
        for place, values in enumerate(product(*axes))
    ]
