"""What a training knows of its data once it has seen it, and its model will say of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from segserve.tiles.statistics import ChannelStats


@dataclass(frozen=True)
class Known:
    """Facts that outlive the data.

    Attributes:
        stats: of the training set, one entry a channel the network sees; None for a fixed range.
        colours: of the classes, `#RRGGBB`, None where the data set names none.
        source: names of the images the patches came from.
        licence: of the pretrained weights; None without such.
        warnings: what is odd about the data.
        patches: how many of them, by part.
        pixels: labelled ones to train on, by class.
    """

    stats: list[ChannelStats] | None
    colours: list[str | None]
    source: str
    licence: str | None
    warnings: list[str]
    patches: dict[str, int]
    pixels: dict[str, int]

    def to_wire(self) -> dict[str, Any]:
        """As JSON, for a checkpoint."""
        return {**asdict(self), "stats": None if self.stats is None else [entry.to_wire() for entry in self.stats]}

    @staticmethod
    def from_wire(wire: dict[str, Any]) -> Known:
        """What `to_wire` wrote."""
        stats = wire["stats"]
        return Known(**{**wire, "stats": None if stats is None else [ChannelStats.from_wire(e) for e in stats]})
