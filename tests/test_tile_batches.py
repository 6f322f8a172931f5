"""Tiles that share an engine: each is answered, and as if it were alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray

from segserve.engines.base import EngineError
from segserve.engines.candidates import Wish
from segserve.tiles.batch import Batcher, Limits
from segserve.tiles.model import TileModel
from tests.tile_client import picture
from tests.tile_networks import forgetful_classifier, mixing_classifier, pixel_answer
from tests.tile_recipes import recipe

SECONDS = 30.0
COUNT = 8
BYTES = recipe("fixed_range")
Values = NDArray[np.float32]


def load(folder: Path) -> TileModel:
    return TileModel.load(folder / "model.onnx", Wish("openvino", "cpu"))


def at_once(classify: Callable[[int], Any], count: int = COUNT) -> list[Any]:
    """What comes of calls from several threads; a call that is never answered fails the test, and holds up nothing."""
    answers: list[Future[Any]] = [Future() for _ in range(count)]

    def work(number: int) -> None:
        try:
            answers[number].set_result(classify(number))
        except Exception as error:
            answers[number].set_exception(error)

    for number in range(count):
        threading.Thread(target=work, args=(number,), daemon=True).start()
    return [answer.result(SECONDS) for answer in answers]


class Scripted:
    """An engine that does what the test says."""

    name, device, precision = "scripted", "cpu", "float32"

    def __init__(self, answer: Callable[[Values], Values]) -> None:
        self._answer = answer

    def __call__(self, batch: Values) -> Values:
        return self._answer(batch)


def never() -> bool:
    return False


@pytest.mark.parametrize("keeps", [1, 2], ids=["seen when it loads", "seen in a batch of three"])
def test_a_network_that_answers_for_fewer_tiles_than_it_is_fed_serves_them_all(tmp_path: Path, keeps: int) -> None:
    model = load(forgetful_classifier(tmp_path / "forgetful", keeps))
    tiles = [picture(seed=seed) for seed in range(COUNT)]
    maps = at_once(lambda number: model.classify(tiles[number], BYTES, str(number)))
    for tile, found in zip(tiles, maps, strict=True):
        np.testing.assert_allclose(found, pixel_answer(tile), atol=1e-5)


def test_a_network_that_mixes_the_tiles_of_a_batch_gets_them_one_by_one(tmp_path: Path) -> None:
    model = load(mixing_classifier(tmp_path / "mixing"))
    tiles = [picture(seed=seed) for seed in range(COUNT)]
    maps = at_once(lambda number: model.classify(tiles[number], BYTES, str(number)))
    for tile, found in zip(tiles, maps, strict=True):
        np.testing.assert_allclose(found, pixel_answer(tile), atol=1e-5)


def test_one_tile_that_fails_fails_alone() -> None:
    def positive(batch: Values) -> Values:
        time.sleep(0.05)  # so that the others wait together
        if batch.min() < 0:
            raise EngineError("it does not like that")
        return batch

    batcher = Batcher(Scripted(positive), Limits(64, 2**20))

    def ask(number: int) -> Values | EngineError:
        values = np.full((1, 2, 2), -1 if number == 3 else number, np.float32)
        try:
            return batcher.run(values, never)
        except EngineError as error:
            return error

    answers = at_once(ask)
    assert isinstance(answers.pop(3), EngineError)
    assert [float(found[0, 0, 0]) for found in answers] == [0, 1, 2, 4, 5, 6, 7]


def test_an_answer_that_finds_no_room_in_memory_is_told_and_the_next_is_served() -> None:
    class Scarce(np.ndarray[Any, Any]):
        def copy(self, order: object = "C") -> NoReturn:
            raise MemoryError

    answers = iter([np.zeros((1, 1, 2, 2), np.float32).view(Scarce), np.ones((1, 1, 2, 2), np.float32)])
    batcher = Batcher(Scripted(lambda _: next(answers)), Limits(64, 2**20))
    values = np.zeros((1, 2, 2), np.float32)
    with pytest.raises(MemoryError):
        at_once(lambda _: batcher.run(values, never), 1)
    (found,) = at_once(lambda _: batcher.run(values, never), 1)
    assert found.sum() == 4
