"""What a worker can do with the tile network it holds: many requests at once, their tiles sharing the engine."""

from __future__ import annotations

import contextvars
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segserve.engines.candidates import Wish
from segserve.errors import TooLargeError
from segserve.tiles.batch import unless_abandoned
from segserve.tiles.header import MAX_VALUES_PER_PIXEL, Header, check_tile
from segserve.tiles.io import read_header, read_image
from segserve.tiles.maps import classes, deliver_map, means
from segserve.tiles.model import TileModel
from segserve.tiles.recipe import Recipe
from segserve.tiles.room import Room, tile_need
from segserve.workers.verbs.base import Cancelled, Request

log = logging.getLogger("segserve.worker")

TILES_AT_ONCE = 24
LARGEST_AT_ONCE = 4
"""How many tiles of the largest size may be in hand at once; of smaller ones as many as take no more memory."""
MOST_MEANS = 2**19
"""Of the tiles of a request together; as JSON they must fit into one message to the server, and into its memory."""
USUAL_BATCH = 16
LAST_SECONDS = 5.0
DTYPES: dict[str, np.dtype[Any]] = {"uint8": np.dtype("u1"), "float32": np.dtype("<f4")}


class TileVerbs:
    """The verbs, and the model they share."""

    at_once = 64

    def __init__(self, choices: Path) -> None:
        """Hold no model yet.

        Args:
            choices: a folder where choices of engines are kept.
        """
        self._choices = choices
        self._model: TileModel | None = None
        # More tiles than the engine takes at a time, so that some are read and others written while it computes.
        self._tiles = ThreadPoolExecutor(TILES_AT_ONCE, "tile")
        self._room = Room()

    def load(self, request: Request) -> dict[str, Any]:
        """Load a model; replies what is in force."""
        path = Path(request.body["path"])
        self._model = TileModel.load(path, Wish(**request.body["wish"]), choices=self._choices)
        log.info("loaded %s", path.parent.name)
        return {"card": self._model.describe(), "fingerprint": ""}

    def classify(self, request: Request) -> dict[str, Any]:
        """Classify the tiles of one request; replies their maps' shapes, or their class means."""
        model = self._model
        if model is None:
            raise RuntimeError("classify needs a loaded model")
        job = _Job(model, request, self._room)
        tiles = list(_tiles(request))
        if job.want == "means":
            _check_means(len(tiles), model.classes)
        futures = [
            self._tiles.submit(contextvars.copy_context().run, job.run, index, tile) for index, tile in enumerate(tiles)
        ]
        try:
            done = list(job.collected(futures))
        except CancelledError:
            raise Cancelled from None
        finally:
            job.over = True
            # Those that are being read or written; not for ever: the server ends a process that does not reply.
            wait([future for future in futures if not future.cancel()], LAST_SECONDS)
        reply: dict[str, Any] = {**model.in_force, "shapes": [one.shape for one in done]}
        if job.want == "means":
            reply["means"] = [one.means for one in done]
        return reply


@dataclass(frozen=True)
class _Tile:
    """One tile of a request: its id, and how to get its size and itself."""

    name: str
    header: Callable[[], Header]
    read: Callable[[], NDArray[Any]]


@dataclass(frozen=True)
class _Done:
    """What came of a tile: the shape of its map, and the map itself only where somebody still needs it."""

    shape: list[int]
    means: list[float]
    values: NDArray[Any] | None


class _Job:
    """One request's tiles."""

    def __init__(self, model: TileModel, request: Request, room: Room) -> None:
        self.want: str = request.body["want"]
        self.over = False
        self._model = model
        self._room = room
        self._max_pixels: int = request.body["max_pixels"]
        self._max_bytes: int = request.body["max_bytes"]
        self._request = request
        self._recipe = Recipe.of(_with_defaults(request.body, model.metadata), model.metadata)
        self._inline = request.outputs.get("inline")
        asked = request.body.get("options", {}).get("gpu_batch_size")
        self._most = asked if isinstance(asked, int) and asked > 0 else USUAL_BATCH

    def run(self, index: int, tile: _Tile) -> _Done:
        """Classify one tile, and write its map if there is a file for it alone."""
        if self._abandoned():
            raise CancelledError
        header = tile.header()
        check_tile(header, tile.name, self._max_pixels, self._max_bytes)
        self._model.check_channels(header.channels, self._recipe, tile.name)
        need = tile_need(header, self._model.classes)
        with self._room.taken(need, LARGEST_AT_ONCE * self._max_bytes, tile.name, self._abandoned):
            return self._classified(index, tile)

    def _classified(self, index: int, tile: _Tile) -> _Done:
        found = self._model.classify(
            tile.read(),
            self._recipe,
            tile.name,
            blocked="blob" in self._request.body,
            abandoned=self._abandoned,
            most=self._most,
        )
        if self.want == "means":
            return _Done(list(found.shape), means(found), None)
        values = classes(found) if self.want == "classes" else found
        target = self._request.outputs.get(str(index))
        if target:
            deliver_map(target, values, tile.name)
        return _Done(list(values.shape), [], values if self._inline else None)

    def collected(self, futures: list[Future[_Done]]) -> Iterator[_Done]:
        """What came of the tiles, in order; where one file takes all maps, each is written and let go in turn."""
        with self._inline.open("wb") if self._inline else nullcontext() as stream:
            for place, future in enumerate(futures):
                done = unless_abandoned(future, self._abandoned)
                futures[place] = Future()  # nothing else holds the map any more
                if stream and done.values is not None:
                    stream.write(np.ascontiguousarray(done.values).data)
                yield _Done(done.shape, done.means, None)

    def _abandoned(self) -> bool:
        return self.over or self._request.cancelled()


def _check_means(tiles: int, classes: int) -> None:
    if tiles * classes > MOST_MEANS:
        raise TooLargeError(
            f"The means of {tiles} tiles for {classes} classes are {tiles * classes} numbers, and {MOST_MEANS} are the "
            f"most in one answer: send {max(MOST_MEANS // classes, 1)} tiles at a time."
        )


def _with_defaults(body: dict[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The oldest of the protocol's routes sends no normalisation and divides by 255 unless the model knows better."""
    config = metadata.get("input_config")
    known = isinstance(config, dict) and config.get("normalization")
    if not body.get("divide_by_255") or known:
        return body
    return {**body, "input_config": {"normalization": {"strategy": "fixed_range"}}}


def _tiles(request: Request) -> Iterator[_Tile]:
    blob = request.body.get("blob")
    if blob is None:
        # Bounds that a file meets which meets the settings: it could have been changed since its header was read.
        pixels = max(request.body["max_pixels"], request.body["max_bytes"] // MAX_VALUES_PER_PIXEL)
        for tile in request.body["tiles"]:
            path, name = request.inputs[tile["file"]], f"tile {tile['id']}"
            read = partial(read_image, path, name=name, max_pixels=pixels)
            yield _Tile(tile["id"], partial(read_header, path, name=name), read)
        return
    dtype = DTYPES[blob["dtype"]]
    shape = (blob["height"], blob["width"], blob["channels"])
    for index, name in enumerate(blob["ids"]):
        yield _Tile(name, partial(Header, *shape, dtype), partial(_cut, request.inputs["blob"], dtype, shape, index))


def _cut(path: Path, dtype: np.dtype[Any], shape: tuple[int, int, int], index: int) -> NDArray[Any]:
    """Tile number `index` of a buffer of tiles of one shape."""
    count = math.prod(shape)
    return np.fromfile(path, dtype, count, offset=index * count * dtype.itemsize).reshape(shape)
