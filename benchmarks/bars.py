"""What is to be reached, and whether it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Bar:
    """A bound on a figure.

    Attributes:
        sign: on which side of `limit` a figure has to lie.
        limit: in the figure's own unit.
        moot: why this run cannot be judged; empty if it can.
    """

    sign: Literal["<=", ">="]
    limit: float
    moot: str = ""

    def verdict(self, figure: float) -> str:
        """In words, to be printed behind the figure."""
        reached = figure <= self.limit if self.sign == "<=" else figure >= self.limit
        judgement = f"not judged: {self.moot}" if self.moot else "ok" if reached else "missed"
        return f"(bar {self.sign} {self.limit:g}: {judgement})"
