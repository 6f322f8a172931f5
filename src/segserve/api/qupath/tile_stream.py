"""A JSON body of tiles, taken apart while it arrives: the images in it go to files, so it is never whole in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ijson

from segserve.api.limits import LARGEST_JSON
from segserve.api.qupath.tile_files import MOST_TILES, SHOWN, is_data_url, keep_image
from segserve.errors import TooLargeError, human_bytes

LARGEST_TILE = 256 * 2**20
DEEPEST = 50
EVENT_COST = 8  # bytes: also values without text take memory
TILE = ["tiles", None]
PLACEHOLDER = "data:"
MAP, ARRAY = "start_map", "start_array"
CLOSING = frozenset({"end_map", "end_array"})


class NotJsonError(ValueError):
    """The body is not JSON, and why."""


class TileStream:
    """Takes a body piece by piece.

    Attributes:
        size: bytes taken.
    """

    def __init__(self, folder: Path, most: int = LARGEST_JSON) -> None:
        """Nothing taken yet; `folder` gets the images, and what is said besides them may have `most` bytes."""
        self.size = 0
        self._found = _Found(folder, most)
        # The parser holds what it tells, and nothing that it tells may hold the parser: such rings are never freed.
        self._parser = ijson.basic_parse_coro(self._found, use_float=True)

    @property
    def images(self) -> dict[int, Path]:
        """The files that hold the data URLs, by the place of their tile."""
        return self._found.images

    def write(self, piece: bytes) -> None:
        """Take the next piece.

        Raises:
            NotJsonError: it does not go on as JSON, or is nested too deeply.
            TooLargeError: there are too many tiles, or too much is said of them.
            OSError: an image cannot be written.
        """
        if not piece:
            return
        self.size += len(piece)
        self._found.silence += len(piece)
        if self._found.silence > LARGEST_TILE:
            raise TooLargeError(
                f"The data of one tile is over {human_bytes(LARGEST_TILE)}: send it as a path, or in binary form."
            )
        try:
            self._parser.send(piece)
        except (ijson.JSONError, ValueError) as error:
            raise NotJsonError(_reason(error)) from None

    def finish(self) -> bytes:
        """The body without the images, when all of it was taken; where one was, the data is a URL without data.

        Raises:
            NotJsonError: it is cut short.
        """
        try:
            self._parser.close()
        except (ijson.JSONError, ValueError) as error:
            raise NotJsonError(_reason(error)) from None
        return json.dumps(self._found.rest.value).encode()


class _Found:
    """What the parser has found so far.

    Attributes:
        images: see `TileStream`.
        rest: builds what is said besides them.
        silence: bytes since it found something.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.images: dict[int, Path] = {}
        self.rest = ijson.ObjectBuilder()
        self.silence = 0
        self._folder = folder
        self._most = most
        self._cost = 0
        self._tile = -1
        # Of every value that is open the key that was read last; None in an array.
        self._keys: list[str | None] = []

    def send(self, told: tuple[str, Any]) -> None:
        """Take what the parser has found, before it goes on: a kind of event and its value."""
        self.silence = 0
        event, value = told
        if event in {MAP, ARRAY}:
            self._open(event)
        elif event in CLOSING:
            self._keys.pop()
        elif event == "map_key":
            self._keys[-1] = value
        elif event == "string" and self._keys == [*TILE, "data"]:
            value = self._kept(value)
        self._cost += EVENT_COST + (len(value) if isinstance(value, str) else 0)
        if self._cost > self._most:
            raise TooLargeError(
                f"The request says more than {human_bytes(self._most)} besides its images: send fewer tiles."
            )
        self.rest.event(event, value)

    def _open(self, event: str) -> None:
        if self._keys == ["tiles"] and event == ARRAY:
            self._tile = -1  # the last of several lists counts
            self.images.clear()
        elif self._keys == TILE:
            self._tile += 1
            if self._tile >= MOST_TILES:
                raise TooLargeError(f"The request has more than {MOST_TILES} tiles: send fewer at a time.")
        if len(self._keys) == DEEPEST:
            raise NotJsonError(f"nested more than {DEEPEST} levels deep")
        self._keys.append(None)

    def _kept(self, data: str) -> str:
        """What stays in the body of a tile's data."""
        self.images.pop(self._tile, None)  # the last of several `data` of a tile counts
        if not is_data_url(data):
            return data
        image = keep_image(data, self._folder / f"tile-{self._tile}")
        if image is None:
            return data.partition(",")[0][:SHOWN]
        self.images[self._tile] = image
        return PLACEHOLDER


def _reason(error: Exception) -> str:
    """The parser's words without its picture of the place."""
    told = error.args[0] if error.args else ""
    text = told.decode("utf-8", "replace") if isinstance(told, bytes) else str(told)
    return text.partition("\n")[0].strip() or type(error).__name__
