"""A loaded tile network: images in, probability maps out, several at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segserve.engines.base import EngineError
from segserve.engines.candidates import Wish
from segserve.engines.remembered import choose_once
from segserve.engines.trial import trial_batches
from segserve.engines.verdict import Choice, Trial
from segserve.models.classifiers import read_metadata
from segserve.models.formats.onnx import model_files
from segserve.models.formats.tile_onnx import check_output, open_tile_onnx, trial_shape, whole_metadata
from segserve.tiles.batch import Batcher, Limits, shareable
from segserve.tiles.channels import choose
from segserve.tiles.maps import probabilities
from segserve.tiles.prepare import Prepared, padded_more, prepare
from segserve.tiles.recipe import Needs, Recipe

log = logging.getLogger(__name__)

# On a processor a batch gains nothing once a tile keeps all cores busy, and takes memory and the first tile's time.
PROCESSOR_PIXELS = 512 * 512
GPU_PIXELS = 64 * 512 * 512
MOST_TILES = 64
USUAL_DIVISOR = 32
"""What most encoders halve: tried for networks that do not say what they need."""
MOST_REFUSED = 1000


class TileModel:
    """A network ready to classify tiles; its methods may be called from many threads."""

    def __init__(self, choice: Choice, needs: Needs, metadata: Mapping[str, Any], limits: Limits) -> None:
        self.metadata = metadata
        self.classes = max(choice.shape[1], 2)
        self._needs = needs
        # Sizes that it does not take as they are, each for itself, so that no tile changes another's map; those that
        # are forgotten are only refused once more.
        self._refused: set[tuple[int, ...]] = set()
        self._choice = choice
        self._batcher = Batcher(choice.engine, limits)

    @classmethod
    def load(cls, path: Path, wish: Wish, *, choices: Path | None = None) -> TileModel:
        """Load a network, and choose the engine for it.

        Args:
            path: an .onnx file; a `metadata.json` beside it says how its tiles are made.
            wish: which engines may be chosen.
            choices: a folder where choices of engines are kept.

        Raises:
            BadInputError: the file is no network for tiles, with what was found and expected.
            MissingExtraError: the engine asked for is not installed.
        """
        file = open_tile_onnx(path)
        metadata = whole_metadata(file, read_metadata(path.parent) or {})
        shape = trial_shape(file)

        def check(logits: NDArray[np.float32]) -> str:
            return "softmax" if check_output(shape, logits.shape) > 1 else "sigmoid"

        trial = Trial(trial_batches(shape, unit=True), check)
        choice = choose_once(file.network(changing=True), model_files(path), wish, trial, choices)
        limits = _limits(choice, shape, file.input.shape[0])
        return cls(choice, Needs.of(metadata, file.input.shape), metadata, limits)

    def describe(self) -> dict[str, Any]:
        """What is in force, as JSON."""
        return {**self.in_force, "engines": self._choice.wire_verdicts()}

    @property
    def in_force(self) -> dict[str, Any]:
        """What an answer tells: how many classes, and what computed them."""
        return {"num_classes": self.classes, **asdict(self._choice.candidate)}

    def check_channels(self, channels: int, recipe: Recipe, name: str) -> None:
        """Refuse a tile by what is known of it before it is read.

        Raises:
            BadInputError: it has not the channels that the network takes; with both numbers.
        """
        choose(channels, recipe.selected, self._needs, name)

    def classify(
        self,
        image: NDArray[Any],
        recipe: Recipe,
        name: str,
        *,
        blocked: bool = False,
        abandoned: Callable[[], bool] = lambda: False,
        most: int = MOST_TILES,
    ) -> NDArray[np.float32]:
        """Classify one tile.

        Args:
            image: (H, W, C) uint8, uint16 or float32, in the file's units.
            recipe: how it is to be read.
            name: of the tile, for errors.
            blocked: whether detail and context lie one after the other in it.
            abandoned: whether nobody waits for it any more.
            most: tiles that may share a batch with it.

        Returns:
            float32 (K, H, W), probabilities that sum to 1.

        Raises:
            BadInputError: the tile does not fit the network, or the network gives no numbers for it.
        """

        def classified(tile: Prepared) -> NDArray[np.float32]:
            return probabilities(self._batcher.run(tile.values, abandoned, most=most), tile, name)

        needs = self._needs
        prepared = prepare(image, recipe, needs, name, blocked=blocked)
        size = prepared.values.shape[1:]
        if size not in self._refused:
            try:
                return classified(prepared)
            except EngineError:
                if needs.divisor != 1 or needs.fixed:
                    raise
        larger = replace(needs, divisor=USUAL_DIVISOR, least=max(needs.least, USUAL_DIVISOR))
        answer = classified(padded_more(prepared, larger))
        if len(self._refused) >= MOST_REFUSED:
            self._refused.clear()
        self._refused.add(size)
        return answer


def _limits(choice: Choice, shape: tuple[int, int, int, int], fixed: int | None) -> Limits:
    """How large batches of a network may be: of one tile if it goes wrong with more."""
    pixels = PROCESSOR_PIXELS if choice.engine.device == "cpu" else GPU_PIXELS
    _, channels, height, width = shape
    if fixed is None and 2 * height * width <= pixels:
        (pair,) = trial_batches((2, channels, height, width), unit=True)
        if not shareable(choice, pair):
            log.warning("this network is not right with several tiles in a batch: it gets one at a time")
            fixed = 1
    return Limits(MOST_TILES, pixels, fixed)
